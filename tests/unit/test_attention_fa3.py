"""Block rows on FlashAttention 3's interface, with the kernel replaced by attention in torch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from attention_cases import (
    BLOCK,
    Forward,
    attend_rows,
    attend_slots,
    merge_natural,
    mixed_forward,
    prompt_forward,
)
from torch import Tensor

from llada_sglang.attention.fa3_rows import SPLIT_BYTES, FA3Rows
from llada_sglang.attention.paged_plan import RowBatch

KV_HEADS, HEADS, DIM = 2, 8, 16


class TorchKernel:
    """`flash_attn_with_kvcache` for what block rows ask of it; keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        *,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        page_table: Tensor,
        cache_seqlens: Tensor,
        cu_seqlens_q: Tensor,
        max_seqlen_q: int,
        k_descale: Tensor | None,
        v_descale: Tensor | None,
        softmax_scale: float,
        causal: bool,
        num_splits: int,
        return_softmax_lse: bool,
    ) -> Any:
        self.calls.append({k: v for k, v in locals().items() if k != "self"})
        assert not causal
        # 0 would let the kernel reckon with the longest context that the table has room for.
        assert num_splits >= 1
        assert q.dtype == k_cache.dtype
        for integers in (page_table, cache_seqlens, cu_seqlens_q):
            assert integers.dtype == torch.int32
        assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
        page = k_cache.shape[1]
        scale_k = torch.ones(len(cache_seqlens), k_cache.shape[2])
        scale_v = scale_k if v_descale is None else v_descale
        scale_k = scale_k if k_descale is None else k_descale
        out = torch.empty(q.shape, dtype=torch.float32)
        lse = torch.empty(q.shape[1], q.shape[0])
        for i, count in enumerate(cache_seqlens.tolist()):
            pages = page_table[i, : -(-count // page)].long()
            slots = (pages[:, None] * page + torch.arange(page)).view(-1)[:count].tolist()
            where = slice(int(cu_seqlens_q[i]), int(cu_seqlens_q[i + 1]))
            keys = k_cache.flatten(0, 1).float() * scale_k[i][:, None]
            values = v_cache.flatten(0, 1).float() * scale_v[i][:, None]
            part, natural = attend_slots(q[where].float(), keys, values, slots, softmax_scale)
            out[where], lse[:, where] = part.float(), natural.float().T
        return (out, lse) if return_softmax_lse else out


def build(
    forward: Forward,
    *,
    tile: int = 1,
    min_prefix: int = 4096,
    kv_dtype: torch.dtype = torch.float32,
) -> FA3Rows:
    return FA3Rows(
        req_to_token=forward.req_to_token,
        page_size=BLOCK,
        block=BLOCK,
        query_heads=HEADS,
        kv_heads=KV_HEADS,
        kv_dtype=kv_dtype,
        max_context=forward.req_to_token.shape[1],
        kernel=TorchKernel(),
        merge=merge_natural,
        processors=4,
        tile=tile,
        min_prefix=min_prefix,
    )


def batch_of(forward: Forward) -> RowBatch:
    lens = torch.tensor(forward.kv_lens)
    return RowBatch(torch.tensor(forward.requests), lens, forward.kv_lens, forward.requests)


def check(rows: FA3Rows, forward: Forward, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, forward.pages, BLOCK, KV_HEADS, DIM, generator=generator)
    query = torch.randn(len(forward.rows) * BLOCK, HEADS, DIM, generator=generator)
    expected = attend_rows(forward, query, keys.flatten(0, 1), values.flatten(0, 1), 0.3)
    got = rows.attend(query, keys, values, scaling=0.3)
    torch.testing.assert_close(got[: len(expected)], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_an_eager_forward_of_any_mix(seed: int) -> None:
    forward = mixed_forward(seed, blocks=12)
    rows = build(forward)
    rows.plan(batch_of(forward))
    check(rows, forward, seed)


@pytest.mark.parametrize("seed", range(4))
def test_tiles_are_the_same_attention(seed: int) -> None:
    forward = mixed_forward(seed, blocks=12)
    rows = build(forward, tile=3, min_prefix=BLOCK)
    rows.plan(batch_of(forward))
    check(rows, forward, seed)


def test_a_long_prompt_is_two_calls_and_the_forward_after_it_one() -> None:
    forward = prompt_forward(start=130, blocks=5)
    rows = build(forward, tile=4)
    rows.plan(batch_of(forward))
    check(rows, forward, 0)
    kernel: Any = rows._kernel
    assert [call["max_seqlen_q"] for call in kernel.calls] == [BLOCK, 4 * BLOCK]
    assert kernel.calls[1]["cache_seqlens"].tolist() == [130 * BLOCK]
    short = Forward(forward.req_to_token, forward.rows[:1], forward.pages)
    rows.plan(batch_of(short))
    check(rows, short, 1)
    assert len(kernel.calls) == 3


def test_graphs_of_several_row_counts_share_one_table_at_fixed_addresses() -> None:
    rows = build(mixed_forward(0, blocks=12))
    rows.init_graphs(24)
    addresses: dict[int, list[int]] = {}
    for seed in range(8):
        forward = mixed_forward(seed, blocks=12)
        size = next(s for s in (4, 12, 24) if s >= len(forward.rows))
        padded = Forward(
            forward.req_to_token,
            forward.rows + [(0, BLOCK)] * (size - len(forward.rows)),
            forward.pages,
        )
        rows._req_to_token = forward.req_to_token
        rows.plan_graph(batch_of(padded), capture=size not in addresses)
        check(rows, padded, seed)
        kernel: Any = rows._kernel
        call = kernel.calls[-1]
        held = [call[n].data_ptr() for n in ("page_table", "cache_seqlens", "cu_seqlens_q")]
        assert addresses.setdefault(size, held) == held
        assert call["page_table"].shape == (size, forward.req_to_token.shape[1] // BLOCK)
        rows.plan(batch_of(forward))  # an eager forward in between
        check(rows, forward, seed)


def test_an_fp8_cache_takes_the_query_along_and_one_scale_per_head() -> None:
    forward = mixed_forward(1, blocks=6)
    rows = build(forward, kv_dtype=torch.float8_e4m3fn)
    rows.plan(batch_of(forward))
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, forward.pages, BLOCK, KV_HEADS, DIM, generator=generator)
    keys, values = keys.to(torch.float8_e4m3fn), values.to(torch.float8_e4m3fn)
    query = torch.randn(len(forward.rows) * BLOCK, HEADS, DIM, generator=generator)
    query = query.to(torch.float8_e4m3fn).half()
    expected = attend_rows(
        forward,
        query.float(),
        keys.flatten(0, 1).float() * 0.5,
        values.flatten(0, 1).float() * 2.0,
        0.3,
    )
    got = rows.attend(
        query,
        keys,
        values,
        scaling=0.3,
        k_scale=torch.tensor([0.5]),
        v_scale=torch.tensor([2.0]),
    )
    # The kernel's own output is of another dtype.
    torch.testing.assert_close(got[: len(expected)], expected.half(), rtol=1e-3, atol=1e-3)


MINI = {"heads": 16, "dim": 128}


def splits_of(kv_heads: int = 4, processors: int = 132, divides: bool = True) -> FA3Rows:
    return FA3Rows(
        req_to_token=torch.zeros(2, BLOCK, dtype=torch.int32),
        page_size=BLOCK,
        block=BLOCK,
        query_heads=16,
        kv_heads=kv_heads,
        kv_dtype=torch.bfloat16,
        max_context=BLOCK,
        kernel=lambda **_: None,
        merge=merge_natural,
        processors=processors,
        divides=divides,
    )


def test_few_rows_are_divided_and_many_are_not() -> None:
    rows = splits_of()
    counts = [rows.splits(n, n * BLOCK, **MINI) for n in (1, 8, 32, 64, 131, 132, 512)]
    assert counts == [32, 32, 31, 15, 7, 1, 1]
    assert splits_of(divides=False).splits(1, BLOCK, **MINI) == 1
    assert splits_of(kv_heads=8, processors=2).splits(1, BLOCK, **MINI) == 1


def test_what_the_parts_take_is_bounded_and_planned() -> None:
    rows = splits_of()
    assert rows.graph_bytes(1, **MINI) == 32 * 4 * BLOCK * 16 * 129
    for most in (1, 7, 64, 131, 256):
        taken = rows.graph_bytes(most, **MINI)
        for n in range(1, most + 1):
            splits = rows.splits(n, n * BLOCK, **MINI)
            assert splits == 1 or splits * 4 * n * BLOCK * 16 * 129 <= taken <= SPLIT_BYTES
    assert splits_of(divides=False).graph_bytes(256, **MINI) == 0


def test_the_hosts_kernel_takes_every_argument_by_this_name() -> None:
    host = pytest.importorskip("sglang.kernels.ops.attention.flash_attention")
    ours = inspect.signature(TorchKernel.__call__).parameters.keys() - {"self"}
    assert ours <= inspect.signature(host.flash_attn_with_kvcache).parameters.keys()
