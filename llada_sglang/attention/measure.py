"""`python -m llada_sglang.attention.measure`: when tiles of a long prompt beat rows, on this GPU.

Prints the time of one layer's attention over a prompt's rows, alone and in tiles of 2, 4 and 8
blocks, by prefix length. `paged_plan.TILED_PREFIX_MIN` is the shortest prefix at which a tile of
`blocks_per_tile` wins; where none does, it stays out of reach.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llada_sglang.attention.paged_plan import RowBatch

BLOCK, DIM = 32, 128
TILES = (1, 2, 4, 8)


def measure(
    backend: str, *, query_heads: int, kv_heads: int, prefix: int, blocks: int, tile: int
) -> float:
    """Milliseconds of one layer, bfloat16; the median of 20 runs after 5.

    backend: `flashinfer` or `fa3`. prefix: positions before the first of `blocks` rows of one
    request. tile: blocks per tile; 1 for rows alone.
    """
    positions = prefix + blocks * BLOCK
    pages = torch.randperm(positions // BLOCK, device="cuda") + 1
    slots = (pages[:, None] * BLOCK + torch.arange(BLOCK, device="cuda")).view(1, -1)
    table = torch.cat([torch.zeros_like(slots), slots]).int()
    shape = (positions // BLOCK + 1, BLOCK, kv_heads, DIM)
    keys, values = torch.randn(2, *shape, device="cuda", dtype=torch.bfloat16)
    query = torch.randn(blocks * BLOCK, query_heads, DIM, device="cuda", dtype=torch.bfloat16)
    kv_lens = [prefix + (i + 1) * BLOCK for i in range(blocks)]
    ids = [1] * blocks
    rows = _rows(backend, table, query_heads, kv_heads, tile)
    requests, lens = torch.tensor([ids, kv_lens], device="cuda")
    batch = RowBatch(requests, lens, kv_lens, ids)
    rows.plan(batch)
    return _milliseconds(lambda: rows.attend(query, keys, values, scaling=DIM**-0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llada_sglang.attention.measure")
    parser.add_argument("--backend", choices=("flashinfer", "fa3"), default="fa3")
    parser.add_argument("--heads", type=int, nargs=2, default=(16, 4), metavar=("Q", "KV"))
    parser.add_argument("--blocks", type=int, default=128, help="rows of the prompt in the forward")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("error: this needs a CUDA device, and there is none")
    query, kv = given.heads
    print(
        f"{torch.cuda.get_device_name()}, {given.backend}, {query} query and {kv} kv heads, "
        f"{given.blocks} rows, one layer, ms\n"
    )
    print("| prefix |" + "".join(f" {tile} per tile |" for tile in TILES))
    print("|---|" + "---|" * len(TILES))
    for prefix in (1024, 2048, 4096, 8192, 16384, 28672):
        times = [
            measure(
                given.backend,
                query_heads=query,
                kv_heads=kv,
                prefix=prefix,
                blocks=given.blocks,
                tile=tile,
            )
            for tile in TILES
        ]
        print(f"| {prefix} |" + "".join(f" {time:.3f} |" for time in times))


def _rows(backend: str, table: torch.Tensor, query_heads: int, kv_heads: int, tile: int) -> Any:
    common: dict[str, Any] = {
        "req_to_token": table,
        "page_size": BLOCK,
        "block": BLOCK,
        "max_context": table.shape[1],
        "tile": tile,
        "min_prefix": 0,
    }
    if backend == "flashinfer":
        from llada_sglang.attention.flashinfer_rows import FlashInferRows
        from llada_sglang.attention.flashinfer_wrapper import Heads

        return FlashInferRows(
            heads=Heads(query_heads, kv_heads, DIM, torch.bfloat16, torch.bfloat16),
            workspace=torch.empty(384 << 20, dtype=torch.uint8, device="cuda"),
            **common,
        )
    from sglang.srt.layers.attention import flashattention_backend as host

    from llada_sglang.attention.fa3_rows import FA3Rows

    return FA3Rows(
        query_heads=query_heads,
        kv_heads=kv_heads,
        kv_dtype=torch.bfloat16,
        kernel=host.flash_attn_with_kvcache,
        merge=host.merge_state_v2_wrapper,
        processors=torch.cuda.get_device_properties("cuda").multi_processor_count,
        **common,
    )


def _milliseconds(run: Callable[[], Any], runs: int = 20, warmup: int = 5) -> float:
    times = []
    for turn in range(warmup + runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if turn >= warmup:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


if __name__ == "__main__":
    main()
