"""What the attention kernels of FlashAttention 3, FlashInfer, the host and torch compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _attended(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """One segment's output [queries, heads, dim] and log-sum-exp [heads, queries], in float32.

    q: [queries, heads, dim]; k, v: float32 [positions, kv heads, dim].
    """
    groups = q.shape[1] // k.shape[1]
    keys, values = (cache.repeat_interleave(groups, dim=1) for cache in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scaling
    out = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values)
    return out, scores.logsumexp(dim=-1)


def attend(
    given: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,
) -> None:
    """FlashAttention 3 over pages: queries of segments, each with its pages and its length."""
    (_, _, _, _, starts, _, _, _, lens, _, _, table) = rest[:12]
    (_, _, _, _, _, _, k_scale, v_scale, scaling, causal) = rest[12:22]
    assert not causal
    out, lse = given[:2]
    page = k.shape[1]
    for segment, length in enumerate(lens.tolist()):
        first, end = starts[segment : segment + 2].tolist()
        pages = table[segment, : -(-length // page)].long()
        keys, values = (
            cache[pages].flatten(0, 1)[:length].float()
            * (1.0 if scale is None else scale[segment][:, None])
            for cache, scale in ((k, k_scale), (v, v_scale))
        )
        made, lse[:, first:end] = _attended(q[first:end], keys, values, scaling)
        out[first:end] = made.to(out.dtype)


def plan(
    float_workspace: Tensor,
    int_workspace: Tensor,
    pinned: Tensor,
    starts: Tensor,
    page_starts: Tensor,
    lens: Tensor,
    queries: int,
    segments: int,
    *heads_and_options: Any,
) -> list[int]:
    """Keeps the lengths where FlashInfer keeps which program does what; a run looks for its own."""
    assert (len(starts), int(starts[-1])) == (segments + 1, queries)
    assert pinned.is_pinned()
    assert not lens.is_cuda
    pinned.view(torch.int32)[:segments].copy_(lens)
    int_workspace.view(torch.int32)[:segments].copy_(pinned.view(torch.int32)[:segments])
    return [segments]


def _attend_base_2(
    mine: slice,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """FlashInfer's log-sum-exp is to base 2."""
    made, sums = _attended(q[mine], keys, values, scaling)
    out[mine] = made.to(out.dtype)
    if lse is not None:
        lse[mine] = sums.T / math.log(2)


def paged_run(
    float_workspace: Tensor,
    int_workspace: Tensor,
    plan_info: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    page_starts: Tensor,
    pages: Tensor,
    last_page_len: Tensor,
    out: Tensor,
    lse: Tensor | None,
    mask_mode: int,
    layout: int,
    window_left: int,
    pdl: bool,
    *rest: Any,
) -> None:
    """FlashInfer's prefill over pages."""
    (segments,) = plan_info
    assert (mask_mode, layout, window_left) == (0, 0, -1)
    scaling, page = rest[9], k.shape[1]
    for segment in range(segments):
        first, end = starts[segment : segment + 2].tolist()
        first_page, end_page = page_starts[segment : segment + 2].tolist()
        held, last = end_page - first_page, int(last_page_len[segment])
        planned = max(0, held - 1) * page + last  # that is 1 where a segment has no page
        assert planned == int(int_workspace.view(torch.int32)[segment]), "the plan of another batch"
        length = planned if held else 0
        own = pages[first_page:end_page].long()
        keys, values = (cache[own].flatten(0, 1)[:length].float() for cache in (k, v))
        _attend_base_2(slice(first, end), q, keys, values, scaling, out, lse)


def ragged_run(
    float_workspace: Tensor,
    int_workspace: Tensor,
    plan_info: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    out: Tensor,
    lse: Tensor | None,
    mask_mode: int,
    layout: int,
    window_left: int,
    pdl: bool,
    *rest: Any,
) -> None:
    """FlashInfer's prefill over keys and values that lie beside the queries, as stock has it."""
    (segments,) = plan_info
    scaling = rest[5] if len(rest) == 8 else rest[9]  # its FA3 and its FA2
    assert (mask_mode, layout, window_left) == (0, 0, -1)
    for segment in range(segments):
        first, end = starts[segment : segment + 2].tolist()
        own = slice(*key_starts[segment : segment + 2].tolist())
        keys, values = (cache[own].float() for cache in (k, v))
        _attend_base_2(slice(first, end), q, keys, values, scaling, out, lse)


def attend_slots(
    *,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sm_scale_withk: float,
    v_scale: float,
    **others: Any,
) -> None:
    """The host's own kernel, in Triton: the keys of a segment by their slots."""
    variants = ("IS_CAUSAL", "USE_CUSTOM_MASK", "HAS_SINK", "SCORE_MOD", "logit_cap")
    assert not any(others[variant] for variant in variants)
    queries, out, *caches = (others[name] for name in ("Q", "O", "K_Buffer", "V_Buffer"))
    for segment in range(len(qo_indptr) - 1):
        first, end = qo_indptr[segment : segment + 2].tolist()
        own = kv_indices[slice(*kv_indptr[segment : segment + 2].tolist())]
        keys, values = (cache.view(-1, *cache.shape[-2:])[own].float() for cache in caches)
        made, _ = _attended(queries[first:end], keys, values, sm_scale_withk)
        out[first:end] = (made * v_scale).to(out.dtype)


def merge_base_2(
    a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    lse.copy_(torch.logaddexp2(a_lse, b_lse))
    parts = (a, a_lse), (b, b_lse)
    out.copy_(sum(part.float() * (own - lse).exp2()[..., None] for part, own in parts))


def merge_state(
    given: None, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    lse.copy_(torch.logaddexp(a_lse, b_lse))
    parts = (a, a_lse), (b, b_lse)
    out.copy_(sum(part.float() * (own - lse).exp()[..., None] for part, own in parts))


def efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """What torch takes on a GPU for `scaled_dot_product_attention`; CPUs have another."""
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=causal, scale=scale
    )
    # The layout of its output: [batch, queries, heads, dim] in memory.
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out, torch.empty(0), torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)


COMPILED: dict[str, Callable[..., Any]] = {
    "plan": plan,
    "paged_run": paged_run,
    "ragged_run": ragged_run,
    "merge_state": merge_base_2,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "sgl_kernel::fwd": attend,
    "sgl_kernel::merge_state_v2": merge_state,
}
TRITON: dict[str, Callable[..., Any]] = {"_fwd_kernel_unified": attend_slots}
ONLY_ON_GPU: dict[str, Callable[..., Any]] = {
    "aten::_scaled_dot_product_efficient_attention": efficient_attention
}
"""As the registries of kernels.py, which they become a part of."""
