"""Runs attention's Triton kernels through its interpreter: TRITON_INTERPRET=1 python <this>.

A process of its own, because Triton decides at its import whether it interprets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def page_kernels() -> dict[str, tuple[torch.Tensor, ...]]:
    """Page lists and tables, each as the kernel and as the torch twin write it."""
    from attention_cases import BLOCK, mixed_forward, prompt_forward

    from llada_sglang.attention import page_indices, page_indices_kernel
    from llada_sglang.attention.paged_plan import plan_rows, plan_tiles, upload

    results = {}
    forwards = [mixed_forward(seed, blocks=9, padding=seed % 2) for seed in range(3)]
    forwards.append(prompt_forward(start=290, blocks=2))  # several programs per segment
    for seed, forward in enumerate(forwards):
        table, requests = forward.req_to_token, torch.tensor(forward.requests)
        for page, dtype in ((BLOCK, torch.int32), (1, torch.int64)):
            plan = plan_rows(forward.kv_lens, block=BLOCK, page_size=page)
            tiles = plan_tiles(
                forward.requests,
                forward.kv_lens,
                block=BLOCK,
                page_size=page,
                tile=4,
                min_prefix=BLOCK,
            )
            for part in (plan, tiles.tails) if tiles else (plan,):
                there = upload(part, page, torch.device("cpu"))
                written = []
                for write in (page_indices_kernel.launch_page_list, page_indices.write_page_list):
                    out = torch.full((part.pages + 5,), -1, dtype=dtype)
                    write(
                        table,
                        requests,
                        there.first_page,
                        there.kv_indptr,
                        out,
                        page_size=page,
                        max_pages=part.max_pages,
                    )
                    written.append(out)
                results[f"list-{seed}-{page}-{part is plan}"] = tuple(written)
                written = []
                for fill in (page_indices_kernel.launch_page_table, page_indices.write_page_table):
                    out = torch.full((part.segments, part.max_pages + 9), -1, dtype=torch.int32)
                    lens = torch.full((part.segments,), -1, dtype=torch.int32)
                    first = None if part is plan else there.first_page
                    fill(
                        table,
                        requests,
                        first,
                        part.kv_lens.long(),
                        out[:, :-4],
                        lens,
                        page_size=page,
                    )
                    written.append(torch.cat([out, lens[:, None]], dim=1))
                results[f"table-{seed}-{page}-{part is plan}"] = tuple(written)
    return results


def triton_rows() -> dict[str, tuple[torch.Tensor, ...]]:
    """`TritonRows` on the host's real kernel, eagerly and on the buffers of a graph."""
    from attention_cases import BLOCK, attend_rows, mixed_forward
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd_unified

    from llada_sglang.attention.paged_plan import RowBatch
    from llada_sglang.attention.triton_rows import TritonRows

    results = {}
    for seed in range(2):
        forward = mixed_forward(seed, requests=3, blocks=4, padding=1)
        generator = torch.Generator().manual_seed(seed)
        keys, values = torch.randn(2, forward.pages * BLOCK, 2, 32, generator=generator)
        query = torch.randn(len(forward.rows) * BLOCK, 8, 32, generator=generator)
        rows = TritonRows(
            req_to_token=forward.req_to_token,
            page_size=BLOCK,
            block=BLOCK,
            max_context=forward.req_to_token.shape[1],
            kernel=extend_attention_fwd_unified,
        )
        lens = torch.tensor(forward.kv_lens)
        batch = RowBatch(torch.tensor(forward.requests), lens, forward.kv_lens)
        expected = attend_rows(forward, query, keys, values, 0.2)
        rows.plan(batch)
        eager = rows.attend(query, keys, values, scaling=0.2)
        rows.init_graphs(batch.rows + 3)
        rows.plan_graph(batch, capture=True)
        graph = rows.attend(query, keys, values, scaling=0.2)
        assert torch.equal(eager, graph)
        results[f"attend-{seed}"] = (eager[: len(expected)], expected.float())
    return results


if __name__ == "__main__":
    out, tests = sys.argv[1:]
    sys.path.insert(0, tests)
    torch.set_num_threads(1)
    torch.save(page_kernels() | triton_rows(), Path(out))
