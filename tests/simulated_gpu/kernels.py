"""What the kernels of the host's libraries compute, in torch, for the simulated device.

Three kinds: operators of torch that a library registers (its host code checks the arguments first),
functions of modules that the host compiles when it first needs them, and functions of FlashInfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from simulated_gpu import marlin, quantized
from simulated_gpu.reductions import (
    cast_logits,
    reduce_columns,
    rope,
    store_cache,
    sum_of_experts,
    uniform_experts,
)

Kernel = Callable[..., Any]


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * weight.float()


def rmsnorm(x: Tensor, weight: Tensor, out: Tensor, rows: int, eps: float) -> None:
    out.copy_(_normalised(x, weight, eps))


def qk_rmsnorm(x: Tensor, weight: Tensor, out: Tensor, rows: int, heads: int, eps: float) -> None:
    out.copy_(_normalised(x, weight, eps))


def fused_add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, rows: int, eps: float) -> None:
    total = x.float() + residual.float()
    residual.copy_(total)
    x.copy_(_normalised(total, weight, eps))


def qk_rmsnorm_in_place(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float
) -> None:
    for heads, weight in ((q, q_weight), (k, k_weight)):
        heads.copy_(_normalised(heads, weight, eps))


def run_activation(x: Tensor, out: Tensor, name: str) -> None:
    gate, up = x.float().chunk(2, dim=-1)
    assert name == "silu", name
    out.copy_(torch.nn.functional.silu(gate) * up)


def route(
    scores: Tensor,
    bias: Tensor,
    groups: int,
    groups_taken: int,
    taken: int,
    factor: float,
    weights: Tensor,
    experts: Tensor,
    pdl: bool = True,
    replay: Tensor | None = None,
) -> None:
    """Grouped sigmoid routing, as of DeepSeek-V3."""
    assert scores.dtype == bias.dtype == weights.dtype, "the kernel takes one dtype"
    gates = scores.float().sigmoid()
    biased = gates + bias.float()
    by_group = biased.view(len(scores), groups, -1)
    best = by_group.topk(min(2, by_group.shape[-1]), dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(best).scatter_(1, best.topk(groups_taken, dim=-1).indices, 1.0)
    masked = by_group.masked_fill(kept[..., None] == 0, -torch.inf).view_as(biased)
    chosen = masked.topk(taken, dim=-1).indices
    picked = gates.gather(1, chosen)
    weights.copy_(picked / picked.sum(dim=-1, keepdim=True) * factor)
    experts.copy_(chosen)


def moe_align_block_size(
    given: None,
    chosen: Tensor,
    experts: int,
    block: int,
    slots: Tensor,
    owners: Tensor,
    used: Tensor,
    cumulated: Tensor,
    pad: bool,
    ignore_invalid: bool,
) -> None:
    """Tokens sorted by expert, each expert's share padded to whole blocks.

    The host counts one expert more than there are, for those of another rank. used: the slots, and
    where there is room the blocks of no expert.
    """
    flat = chosen.flatten().long()
    if pad:
        slots.fill_(flat.numel())
    at = 0
    for expert in range(experts - 1):
        mine = (flat == expert).nonzero().flatten().to(slots)
        blocks = -(-len(mine) // block)
        slots[at : at + blocks * block] = flat.numel()
        slots[at : at + len(mine)] = mine
        owners[at // block : at // block + blocks] = expert
        at += blocks * block
    used.zero_()
    used[0] = at


def rotate_token(
    *,
    qkv: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    eps: float,
    **constants: Any,
) -> None:
    """Our own, by its torch twin: a program for every token is slow to interpret."""
    from llada_sglang.kernels import rotary

    dtype = {0: keys.dtype, 2: torch.float8_e5m2, 3: torch.float8_e4m3fn}[constants["FLOAT8"]]
    heads, kv_heads, dim, half = (constants[n] for n in ("HEADS", "KV_HEADS", "DIM", "HALF"))
    norm = None
    if query_weight is not None and key_weight is not None:
        norm = rotary.QueryKeyNorm(query_weight, key_weight, eps)
    queries.copy_(
        rotary.rotated_and_stored(
            qkv,
            positions,
            cos_sin,
            rotary.HeadShape(heads, kv_heads, dim, 2 * half),
            rotary.KVTarget(keys.view(dtype), values.view(dtype), slots, key_scale, value_scale),
            norm,
        )
    )


def moe_sum_reduce(given: None, parts: Tensor, out: Tensor, factor: float) -> None:
    out.copy_(parts.float().sum(dim=1) * factor)


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
    """FlashInfer's prefill over pages; its log-sum-exp is to base 2."""
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
        made, sums = _attended(q[first:end], keys, values, scaling)
        out[first:end] = made.to(out.dtype)
        if lse is not None:
            lse[first:end] = sums.T / math.log(2)


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
        made, sums = _attended(q[first:end], k[own].float(), v[own].float(), scaling)
        out[first:end] = made.to(out.dtype)
        if lse is not None:
            lse[first:end] = sums.T / math.log(2)


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


def merge_state(
    given: None, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, out: Tensor, lse: Tensor
) -> None:
    lse.copy_(torch.logaddexp(a_lse, b_lse))
    parts = (a, a_lse), (b, b_lse)
    out.copy_(sum(part.float() * (own - lse).exp()[..., None] for part, own in parts))


FLASHINFER: dict[str, dict[str, Kernel]] = {
    "flashinfer.norm.kernels.rmsnorm": {
        "_get_compiled_rmsnorm_kernel": rmsnorm,
        "_get_compiled_qk_rmsnorm_kernel": qk_rmsnorm,
    },
    "flashinfer.norm.kernels.fused_add_rmsnorm": {
        "_get_compiled_fused_add_rmsnorm_kernel": fused_add_rmsnorm,
    },
}
"""Functions that compile a kernel and return it, by module."""

COMPILED: dict[str, Kernel] = {
    "run_activation": run_activation,
    "qknorm": qk_rmsnorm_in_place,
    "run_rope": rope,
    "store_cache": store_cache,
    "NoAuxTc": route,
    "plan": plan,
    "paged_run": paged_run,
    "ragged_run": ragged_run,
    "merge_state": merge_base_2,
    "moe_align_block_size": lambda *args: moe_align_block_size(None, *args, False),
    **quantized.COMPILED,
    **marlin.COMPILED,
}
"""By the names that the host's compiled modules export, with their first argument if it matters."""

OPERATORS: dict[str, Kernel] = {
    "sgl_kernel::fwd": attend,
    "sgl_kernel::merge_state_v2": merge_state,
    "sgl_kernel::moe_sum_reduce": moe_sum_reduce,
    "sgl_kernel::moe_align_block_size": moe_align_block_size,
    **quantized.OPERATORS,
}
"""By qualified name of the operator; the first argument is what its host code returned."""

TRITON: dict[str, Kernel] = {
    **quantized.TRITON,
    "_rotate_token": rotate_token,
    "_fwd_kernel_unified": attend_slots,
    "_reduce_columns": reduce_columns,
    "_moe_sum_reduce_kernel": sum_of_experts,
    "softcap_inplace_logits_kernel": cast_logits,
    "_simulate_balanced_routing_kernel": uniform_experts,
}
"""By name, with the kernel's arguments by theirs; others are interpreted."""

ONLY_ON_GPU: dict[str, Kernel] = {
    "aten::_scaled_dot_product_efficient_attention": efficient_attention,
    **quantized.ONLY_ON_GPU,
}
"""Torch's own operators without a CPU kernel."""
