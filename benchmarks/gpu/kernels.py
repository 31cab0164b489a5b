"""Every kernel of ours on a GPU: its time, the bytes it moves, its share of the roofline.

`python -m benchmarks.gpu.kernels`, on a machine with a GPU, about three minutes. Each kernel runs
in a CUDA graph of its own, so that launches count as they do in a served step. Beside it runs what
it stands in for: its torch twin, eagerly, and the host's kernel where there is one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch

from benchmarks import report
from llada_sglang.decoding.statistics import shard_statistics
from llada_sglang.kernels import vocab_statistics
from llada_sglang.kernels.rotary import (
    HeadShape,
    KVTarget,
    QueryKeyNorm,
    rotate_and_store,
    rotated_and_stored,
)
from llada_sglang.kernels.threshold import CanvasTensors, threshold_step, threshold_update
from llada_sglang.models.torch_moe import route_blocks
from llada_sglang.roofline import kernels as roofline
from llada_sglang.roofline.shape import BUILT_IN, Shape

MODULE = "benchmarks.gpu.kernels"
NAME = "gpu-kernels"
BLOCK, VOCABULARY, MASK_ID = 32, 157_184, 156_895
CALLS = 20
"""Per graph, so that the graph's own launch weighs little."""
Call = Callable[[], object]


class Candidate(NamedTuple):
    """A kernel at one size. twin, host: what it stands in for."""

    name: str
    rows: int
    cost: roofline.KernelCost
    ours: Call
    twin: Call
    host: Call | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--model", choices=sorted(BUILT_IN), default="mini")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu.kernels needs a CUDA device, and torch sees none. "
            "`llada-sglang doctor` says why."
        )
    shape = Shape.of(BUILT_IN[arguments.model])
    bandwidth = _copy_bandwidth()
    lines = []
    for rows in arguments.rows:
        for one in candidates(rows, shape):
            ours = graph_times(one.ours, arguments.repetitions)
            best = statistics.median(ours)
            share = one.cost.seconds(bandwidth) / (best * 1e-6)
            lines.append(
                [
                    one.name,
                    one.rows,
                    report.summary(ours, 1),
                    f"{one.cost.bytes / 1e6:.2f}",
                    f"{one.cost.bytes / best / 1e6:.2f}",
                    f"{100 * share:.0f} %",
                    report.summary(eager_times(one.twin, arguments.repetitions), 1),
                    report.summary(graph_times(one.host, arguments.repetitions), 1)
                    if one.host
                    else report.MISSING,
                ]
            )
            print(*lines[-1], sep=" | ", flush=True)
    header = ["kernel", "rows", "us", "MB", "TB/s", "of the roofline", "torch, eager, us"]
    path = report.write(
        NAME,
        "Kernels",
        MODULE,
        [
            f"Shapes of LLaDA2.0-{arguments.model}, blocks of {BLOCK}. Roofline: bytes that have "
            f"to move at {bandwidth / 1e12:.2f} TB/s, what a copy of 4 GiB reaches on this GPU; "
            "small inputs lie in the cache, so they can be above it. Median (least - greatest).",
            report.table([*header, "host's kernel, us"], lines),
        ],
    )
    print(f"written to {path}")


def candidates(rows: int, shape: Shape) -> Iterator[Candidate]:
    """Every kernel, for `rows` block rows."""
    draw = torch.Generator("cuda").manual_seed(rows)
    yield _statistics(rows, draw)
    yield _step(rows, draw)
    yield _routing(rows, shape, draw)
    yield _rotary(rows, shape, draw, torch.bfloat16)
    yield _rotary(rows, shape, draw, torch.float8_e4m3fn)


def _statistics(rows: int, draw: torch.Generator) -> Candidate:
    # More logits than this never exist at once.
    positions = min(rows * BLOCK, 2048)
    logits = torch.randn(positions, VOCABULARY, device="cuda", dtype=torch.bfloat16, generator=draw)
    return Candidate(
        "vocabulary statistics",
        rows,
        roofline.vocabulary_statistics(positions, VOCABULARY),
        lambda: vocab_statistics(logits, vocab_start=0, mask_id=MASK_ID),
        lambda: shard_statistics(logits.float(), vocab_start=0, mask_id=MASK_ID),
    )


def _step(rows: int, draw: torch.Generator) -> Candidate:
    def integers(high: int, *size: int) -> torch.Tensor:
        return torch.randint(0, high, size, device="cuda", generator=draw)

    width = 4096
    table = CanvasTensors(
        integers(VOCABULARY, rows, width),
        torch.rand(rows, width, device="cuda", generator=draw) < 0.5,
        torch.full((rows,), 0.95, dtype=torch.float64, device="cuda"),
        torch.full((rows, 4), -1, device="cuda"),
        integers(width, rows),
        torch.full((rows,), width, device="cuda"),
    )
    slots = torch.arange(rows, device="cuda")
    starts = integers(width // BLOCK, rows) * BLOCK
    candidate = integers(VOCABULARY, rows, BLOCK)
    confidence = torch.rand(rows, BLOCK, device="cuda", generator=draw)
    arguments = (table, slots, starts, torch.ones_like(slots), candidate, confidence)
    return Candidate(
        "step of threshold",
        rows,
        roofline.threshold_update(rows, BLOCK),
        lambda: threshold_update(*arguments),
        lambda: threshold_step(*arguments),
    )


def _routing(rows: int, shape: Shape, draw: torch.Generator) -> Candidate:
    from llada_sglang.kernels.block_routing import fused_route_blocks

    tokens, capacity = rows * BLOCK, 48
    logits = torch.randn(tokens, shape.experts, device="cuda", generator=draw)
    bias = torch.randn(shape.experts, device="cuda", generator=draw) * 0.1
    rule = {"block_size": BLOCK, "expert_capacity": capacity, "top_k": shape.top_k}
    host: Call | None = None
    with suppress(ImportError):
        from sglang.srt.models.llada2 import block_topk_triton

        def host() -> object:
            return block_topk_triton(logits, bias, BLOCK, capacity, shape.top_k)

    return Candidate(
        "block routing",
        rows,
        roofline.block_routing(tokens, shape),
        lambda: fused_route_blocks(logits, bias, **rule),
        lambda: route_blocks(logits, bias, **rule),
        host,
    )


def _rotary(rows: int, shape: Shape, draw: torch.Generator, pool: torch.dtype) -> Candidate:
    tokens, rotary_dim, slots = rows * BLOCK, shape.head_dim // 2, 1 << 18
    heads = HeadShape(shape.heads, shape.kv_heads, shape.head_dim, rotary_dim)
    qkv = torch.randn(tokens, heads.packed, device="cuda", dtype=torch.bfloat16, generator=draw)
    positions = torch.randint(0, 32768, (tokens,), device="cuda", generator=draw)
    angles = torch.randn(32768, rotary_dim, device="cuda", generator=draw)
    size = (slots, heads.kv_heads, heads.head_dim)
    where = torch.randperm(slots - 1, device="cuda", generator=draw)[:tokens] + 1
    target = KVTarget(*(torch.zeros(size, device="cuda").to(pool) for _ in range(2)), where)
    weight = torch.ones(heads.head_dim, device="cuda", dtype=torch.bfloat16)
    arguments = (qkv, positions, angles, heads, target, QueryKeyNorm(weight, weight, 1e-6))
    return Candidate(
        f"norm, rotary, store in {str(pool).removeprefix('torch.')}",
        rows,
        roofline.rotate_and_store(
            tokens, shape.heads, shape.kv_heads, shape.head_dim, rotary_dim, pool.itemsize
        ),
        lambda: rotate_and_store(*arguments),
        lambda: rotated_and_stored(*arguments),
    )


def graph_times(call: Call, repetitions: int) -> list[float]:
    """Microseconds per call, of CALLS calls in a graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return [elapsed / CALLS for elapsed in _timed(graph.replay, repetitions)]


def eager_times(call: Call, repetitions: int) -> list[float]:
    """Microseconds per call, the host's launches included."""
    return _timed(call, repetitions)


def _timed(call: Call, repetitions: int) -> list[float]:
    times = []
    for repetition in range(repetitions + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if repetition >= 2:
            times.append(1e3 * begin.elapsed_time(end))
    return times


def _copy_bandwidth() -> float:
    """Bytes/s read and written by a copy too large for any cache."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = min(_timed(lambda: target.copy_(source), 5))
    return 2 * source.nbytes / (best * 1e-6)


if __name__ == "__main__":
    main()
