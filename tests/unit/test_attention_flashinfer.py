"""Block rows on FlashInfer's own Python, with its compiled module replaced by attention in torch.

The module keeps what `plan` was given and reads, in `paged_run`, the buffers that the kernel reads.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import BLOCK, Forward, attend_rows, attend_slots, mixed_forward, prompt_forward
from torch import Tensor

from llada_sglang.attention.paged_plan import RowBatch

flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")

KV_HEADS, HEADS, DIM = 2, 8, 16
LOG2_E = 1.4426950408889634


class TorchModule:
    """What FlashInfer compiles: `plan` and `paged_run` with its arguments in its order."""

    def __init__(self) -> None:
        self.plans: list[tuple[Any, ...]] = []

    def plan(self, *args: Any) -> int:
        qo_indptr, kv_indptr, kv_lens = args[3:6]
        for host in (qo_indptr, kv_indptr, kv_lens):
            assert host.dtype == torch.int32
            assert host.device.type == "cpu"
            assert host.is_contiguous()
        self.plans.append(args)
        return len(self.plans) - 1

    def paged_run(self, *args: Any) -> None:
        plan = self.plans[args[2]]
        query, keys, values, qo_indptr, kv_indptr, pages, last_page, out, lse = args[3:12]
        mask_mode, layout, window_left = args[12:15]
        assert (mask_mode, layout, window_left) == (0, 0, -1), "non-causal, NHD, no window"
        assert torch.equal(qo_indptr, plan[3])
        assert torch.equal(kv_indptr, plan[4])
        scaling, page = args[23], keys.shape[1]
        flat_k, flat_v = keys.flatten(0, 1), values.flatten(0, 1)
        for i in range(len(qo_indptr) - 1):
            own = pages[kv_indptr[i] : kv_indptr[i + 1]].long()
            count = (len(own) - 1) * page + int(last_page[i])
            slots = (own[:, None] * page + torch.arange(page)).view(-1)[:count].tolist()
            where = slice(int(qo_indptr[i]), int(qo_indptr[i + 1]))
            out[where], natural = attend_slots(query[where], flat_k, flat_v, slots, scaling)
            if lse is not None:
                lse[where] = (natural * LOG2_E).float()


def merge_base_2(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """`flashinfer.merge_state`, by its documentation."""
    lse = torch.logaddexp2(lse_a, lse_b)
    out = a * (lse_a - lse).exp2()[..., None] + b * (lse_b - lse).exp2()[..., None]
    return out, lse


def on_cpu(monkeypatch: pytest.MonkeyPatch, module: TorchModule) -> None:
    """Let FlashInfer's Python run where nothing can be compiled, pinned or launched."""
    from llada_sglang.attention import flashinfer_rows

    empty = torch.empty
    monkeypatch.setattr(flashinfer_rows, "get_batch_prefill_module", lambda *args: module)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr("flashinfer.prefill.device_support_pdl", lambda device: False)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> TorchModule:
    made = TorchModule()
    on_cpu(monkeypatch, made)
    return made


def build(
    forward: Forward, *, tile: int = 1, min_prefix: int = 4096, workspace: int = 1 << 20
) -> Any:
    from llada_sglang.attention.flashinfer_rows import FlashInferRows
    from llada_sglang.attention.flashinfer_wrapper import Heads

    return FlashInferRows(
        req_to_token=forward.req_to_token,
        page_size=BLOCK,
        block=BLOCK,
        heads=Heads(HEADS, KV_HEADS, DIM, torch.float32, torch.float32),
        workspace=torch.empty(workspace, dtype=torch.uint8),
        max_context=forward.req_to_token.shape[1],
        tile=tile,
        min_prefix=min_prefix,
        merge=merge_base_2,
    )


def batch_of(forward: Forward, *, ids: bool = True) -> RowBatch:
    lens = torch.tensor(forward.kv_lens)
    requests = torch.tensor(forward.requests)
    return RowBatch(requests, lens, forward.kv_lens, forward.requests if ids else None)


def tensors(forward: Forward, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, forward.pages, BLOCK, KV_HEADS, DIM, generator=generator)
    query = torch.randn(len(forward.rows) * BLOCK, HEADS, DIM, generator=generator)
    return query, keys, values


def check(rows: Any, forward: Forward, seed: int) -> None:
    query, keys, values = tensors(forward, seed)
    expected = attend_rows(forward, query, keys.flatten(0, 1), values.flatten(0, 1), 0.3)
    for _ in range(2):  # every layer reads the same plan
        got = rows.attend(query, keys, values, scaling=0.3)
        torch.testing.assert_close(got[: len(expected)], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_an_eager_forward_of_any_mix(seed: int, module: TorchModule) -> None:
    forward = mixed_forward(seed, blocks=12)
    rows = build(forward)
    rows.plan(batch_of(forward))
    check(rows, forward, seed)


def test_the_plan_is_given_lengths_of_the_host_in_the_order_of_the_library(
    module: TorchModule,
) -> None:
    forward = mixed_forward(3, blocks=12)
    rows = build(forward)
    rows.plan(batch_of(forward))
    (args,) = module.plans
    count = len(forward.rows)
    assert args[3].tolist() == [i * BLOCK for i in range(count + 1)]
    assert args[4].diff().tolist() == [kv_len // BLOCK for kv_len in forward.kv_lens]
    assert args[5].tolist() == forward.kv_lens
    assert args[6:] == (
        count * BLOCK, count, HEADS, KV_HEADS, BLOCK, False, DIM, DIM, False, -1, -1, False, 0, 0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_tiles_are_the_same_attention(seed: int, module: TorchModule) -> None:
    forward = mixed_forward(seed, blocks=12)
    rows = build(forward, tile=3, min_prefix=BLOCK)
    rows.plan(batch_of(forward))
    check(rows, forward, seed)


def test_a_long_prompt_takes_tiles_where_the_forward_names_its_requests(
    module: TorchModule,
) -> None:
    forward = prompt_forward(start=130, blocks=4)
    rows = build(forward, tile=4)
    rows.plan(batch_of(forward, ids=False))
    assert len(module.plans) == 1
    rows.plan(batch_of(forward))
    assert len(module.plans) == 3
    check(rows, forward, 0)
    short = Forward(forward.req_to_token, forward.rows[:1], forward.pages)
    rows.plan(batch_of(short))
    check(rows, short, 1)


def test_graphs_of_several_row_counts_share_buffers_and_are_replayed_in_any_order(
    module: TorchModule,
) -> None:
    forwards = [mixed_forward(seed, blocks=12) for seed in range(8)]
    sizes = [4, 12, 24]
    rows = build(forwards[0])
    rows.init_graphs(sizes[-1])
    for size in reversed(sizes):
        padded = Forward(forwards[0].req_to_token, [(0, BLOCK)] * size, 1)
        rows.plan_graph(batch_of(padded), capture=True)
    captured = {size: list(map(address, graph_buffers(rows, size))) for size in sizes}
    for seed, forward in enumerate(forwards):
        size = next(s for s in sizes if s >= len(forward.rows))
        padded = Forward(
            forward.req_to_token,
            forward.rows + [(0, BLOCK)] * (size - len(forward.rows)),
            forward.pages,
        )
        rows._req_to_token = forward.req_to_token
        rows.plan_graph(batch_of(padded), capture=False)
        assert list(map(address, graph_buffers(rows, size))) == captured[size]
        args = module.plans[-1]
        assert args[6:8] == (size * BLOCK, size), "as captured, whatever is in use"
        assert args[11] is True
        assert args[-1] == BLOCK, "rows are known to be uniform"
        check(rows, padded, seed)


def graph_buffers(rows: Any, size: int) -> list[Tensor]:
    wrapper = rows._graphs[size]
    return [
        wrapper._qo_indptr_buf,
        wrapper._paged_kv_indptr_buf,
        wrapper._paged_kv_indices_buf,
        wrapper._paged_kv_last_page_len_buf,
        wrapper._int_workspace_buffer,
        wrapper._float_workspace_buffer,
    ]


def address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def test_an_eager_forward_between_replays_leaves_the_graphs_alone(module: TorchModule) -> None:
    forward = mixed_forward(1, blocks=12)
    rows = build(forward)
    rows.init_graphs(len(forward.rows))
    rows.plan_graph(batch_of(forward), capture=True)
    before = list(map(address, graph_buffers(rows, len(forward.rows))))
    rows.plan(batch_of(forward))
    check(rows, forward, 0)
    rows.plan_graph(batch_of(forward), capture=False)
    assert list(map(address, graph_buffers(rows, len(forward.rows)))) == before
    check(rows, forward, 1)


def test_the_workspace_of_graphs_is_as_the_library_reserves_it(module: TorchModule) -> None:
    """By hand from PrefillPlanImpl: LLaDA2.0-mini and -flash, 132 multiprocessors."""
    from llada_sglang.attention.flashinfer_rows import split_workspace_bytes
    from llada_sglang.attention.flashinfer_wrapper import Heads

    mini = Heads(16, 4, 128, torch.bfloat16, torch.bfloat16)
    flash = Heads(32, 4, 128, torch.bfloat16, torch.bfloat16)

    def need(rows: int, heads: Heads) -> int:
        return split_workspace_bytes(rows, block=BLOCK, heads=heads, processors=132) - 32

    # 66 programs of 128 packed queries, 4 heads packed: 2112 queries.
    assert need(1, mini) == 16 * 2112 * (128 * 4 + 4)
    assert need(128, mini) == 16 * 4096 * (128 * 4 + 4)
    # A row of 32 queries by 8 heads is two tiles.
    assert need(512, flash) == 32 * (512 * 2 * 16) * (128 * 4 + 4)

    forward = mixed_forward(1, blocks=4)
    rows = build(forward, workspace=64)
    rows.init_graphs(4)
    assert rows._graph_workspace.nbytes == split_workspace_bytes(
        4, block=BLOCK, heads=rows._heads, processors=1
    )


def test_the_library_still_plans_and_runs_as_our_wrapper_assumes() -> None:
    """The argument lists that the module here imitates, in the installed library's source."""
    import inspect

    from flashinfer import prefill

    plan = inspect.getsource(prefill.BatchPrefillWithPagedKVCacheWrapper.plan)
    arguments = plan[plan.index("args = [") : plan.index("self._plan_info")]
    order = [
        "_float_workspace_buffer", "_int_workspace_buffer", "_pin_memory_int_workspace_buffer",
        "qo_indptr_host", "paged_kv_indptr_host", "kv_lens_arr_host", "total_num_rows",
        "batch_size", "num_qo_heads", "num_kv_heads", "page_size", "is_cuda_graph_enabled",
        "head_dim_qk", "head_dim_vo", "causal", "window_left", "fixed_split_size",
        "disable_split_kv)", "0)  # num_colocated_ctas", "0)  # uniform_q_len",
    ]  # fmt: skip
    places = [arguments.index(name) for name in order]
    assert places == sorted(places)
