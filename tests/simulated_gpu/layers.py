"""What the host's kernels outside of attention and quantisation compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    """Rotary embedding in place, of the first dimensions where it is partial, in halves."""
    cos, sin = cos_sin[positions.long()][:, None].chunk(2, dim=-1)
    half = cos.shape[-1]
    for heads in (q, k):
        first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
        heads[..., :half] = first * cos - second * sin
        heads[..., half : 2 * half] = second * cos + first * sin


def store_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    limit: int,
    skipped: int,
) -> None:
    taken = slots != skipped
    assert ((slots[taken] >= 0) & (slots[taken] < limit)).all()
    for cache, given in ((k_cache, k), (v_cache, v)):
        cache[slots[taken].long()] = given[taken]


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


def uniform_experts(
    *,
    topk_ids_ptr: Tensor,
    topk_weights_ptr: Tensor,
    num_experts: int,
    step: int,
    inv_k: float,
    seed: int,
    **constants: Any,
) -> None:
    """The host's: a random first expert of each token, its others `step` apart."""
    assert constants["RANDOM"]
    assert constants["num_token_shards"] == 1
    tokens, taken = topk_ids_ptr.shape
    first = torch.randint(num_experts, (tokens,), generator=torch.Generator().manual_seed(seed))
    topk_ids_ptr.copy_((first[:, None] + torch.arange(taken) * step) % num_experts)
    topk_weights_ptr.fill_(inv_k)
    if constants["HAS_NON_PADDED"]:
        padding = torch.arange(tokens) >= constants["num_non_padded_ptr"]
        topk_ids_ptr[padding] = -1
        topk_weights_ptr[padding] = 0


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


def moe_sum_reduce(given: None, parts: Tensor, out: Tensor, factor: float) -> None:
    out.copy_(parts.float().sum(dim=1) * factor)


def sum_of_experts(
    *, input_ptr: Tensor, output_ptr: Tensor, routed_scaling_factor: float, **constants: Any
) -> None:
    output_ptr.copy_(input_ptr.float().sum(dim=1) * routed_scaling_factor)


def cast_logits(*, full_logits_ptr: Tensor, output_ptr: Tensor, **constants: Any) -> None:
    """A copy of the logits in float32, which the host's kernel for a soft cap makes for stock."""
    assert (constants["CAST_TO_FP32"], constants["APPLY_SOFTCAP"]) == (True, False)
    output_ptr.copy_(full_logits_ptr)


FLASHINFER: dict[str, dict[str, Callable[..., Any]]] = {
    "flashinfer.norm.kernels.rmsnorm": {
        "_get_compiled_rmsnorm_kernel": rmsnorm,
        "_get_compiled_qk_rmsnorm_kernel": qk_rmsnorm,
    },
    "flashinfer.norm.kernels.fused_add_rmsnorm": {
        "_get_compiled_fused_add_rmsnorm_kernel": fused_add_rmsnorm,
    },
}
COMPILED: dict[str, Callable[..., Any]] = {
    "run_activation": run_activation,
    "qknorm": qk_rmsnorm_in_place,
    "run_rope": rope,
    "store_cache": store_cache,
    "NoAuxTc": route,
    "moe_align_block_size": lambda *args: moe_align_block_size(None, *args, False),
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "sgl_kernel::moe_sum_reduce": moe_sum_reduce,
    "sgl_kernel::moe_align_block_size": moe_align_block_size,
}
TRITON: dict[str, Callable[..., Any]] = {
    "_moe_sum_reduce_kernel": sum_of_experts,
    "softcap_inplace_logits_kernel": cast_logits,
    "_simulate_balanced_routing_kernel": uniform_experts,
}
"""As the registries of kernels.py, which they become a part of."""
