"""LLaDA2.2's block routing in one launch: the experts of a block, and its tokens' among them.

Twin: `models.torch_moe.route_blocks`. The host's two kernels (sglang.srt.models.llada2) follow the
same rule, but where a block's logits are all NaN its first one selects nothing and its second one
follows ids that were never written. Here NaN counts as -inf, so ids are experts whatever comes.

Scores are turned into integers that order as they do, with the id below them, so that one number
holds both score and tie-break: the lower id of equals is the greater.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8
SLICES = 4
"""Programs that share a block's tokens. Each finds the block's experts for itself, from the nearest
cache, which costs less than a second launch or one program for all tokens."""

MAX_EXPERTS = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_NOTHING = tl.constexpr(-(2**63))
"""A key below every expert's."""
_LEAST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _known(logits, legal):
    """The logits as float32, -inf only where there is none: NaN, or not legal."""
    return tl.where(legal & (logits == logits), tl.maximum(logits, _LEAST), float("-inf"))


@triton.jit
def _keys(logits, bias, expert, WIDTH: tl.constexpr):  # noqa: N803
    """int64 keys that order as (sigmoid(logits) + bias, -expert); logits: from `_known`."""
    score = 1.0 / (1.0 + tl.exp(-logits)) + bias
    score = tl.where(logits == float("-inf"), logits, score)
    bits = score.to(tl.int32, bitcast=True)
    # Negative floats order backwards in their bits; -0.0 does not come out of a sum with +0.0.
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) + (WIDTH - 1 - expert).to(tl.int64)


@triton.jit(do_not_specialize=["tokens"])
def _route_block(
    logits,
    expert_bias,
    weights,
    ids,
    tokens,
    logit_stride,
    bias_stride,
    EXPERTS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    SLICE: tl.constexpr,  # noqa: N803
    CAPACITY: tl.constexpr,  # noqa: N803
    TOP_K: tl.constexpr,  # noqa: N803
    TOP_WIDTH: tl.constexpr,  # noqa: N803
):
    """Program (block, slice) routes SLICE tokens of a block.

    WIDTH and TOP_WIDTH are the next powers of two of EXPERTS and TOP_K; BLOCK and SLICE are some.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    expert = tl.arange(0, WIDTH)
    there = expert < EXPERTS
    bias = tl.load(expert_bias + expert * bias_stride, mask=there, other=0.0).to(tl.float32)

    token = first + tl.arange(0, BLOCK)
    legal = (token < tokens)[:, None] & there[None, :]
    x = tl.load(logits + token[:, None] * logit_stride + expert[None, :], mask=legal, other=0.0)
    # The best score of an expert is that of its largest logit.
    key = _keys(tl.max(_known(x.to(tl.float32), legal), axis=0), bias, expert, WIDTH)
    # What pads the experts stands behind all of them, also behind those at -inf.
    key = tl.where(there, key, _NOTHING)
    ranked = tl.sort(key, descending=True)
    last = tl.sum(tl.where(expert == CAPACITY - 1, ranked, 0), axis=0)
    admitted = key >= last

    token = first + tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    held = token < tokens
    legal = held[:, None] & there[None, :]
    x = tl.load(logits + token[:, None] * logit_stride + expert[None, :], mask=legal, other=0.0)
    key = _keys(_known(x.to(tl.float32), legal), bias[None, :], expert[None, :], WIDTH)
    key = tl.where(admitted[None, :], key, _NOTHING)
    column = tl.arange(0, TOP_WIDTH)[None, :]
    best = tl.max(key, axis=1)
    chosen = tl.where(column == 0, best[:, None], _NOTHING)
    # Keys are all different: the next one is the greatest of the smaller ones.
    for k in range(1, TOP_K):
        best = tl.max(tl.where(key < best[:, None], key, _NOTHING), axis=1)
        chosen = tl.where(column == k, best[:, None], chosen)
    stored = held[:, None] & (column < TOP_K)
    # The lower half of a key; what pads the columns stays inside of the logits.
    name = (WIDTH - 1 - (chosen & 0xFFFFFFFF)).to(tl.int32)
    own = tl.load(logits + token[:, None] * logit_stride + name, mask=stored, other=0.0)
    weight = tl.where(stored, 1.0 / (1.0 + tl.exp(-own.to(tl.float32))), 0.0)
    weight = weight / (tl.sum(weight, axis=1)[:, None] + 1e-20)
    out = token[:, None] * TOP_K + column
    tl.store(ids + out, name, mask=stored)
    tl.store(weights + out, weight, mask=stored)


def fused_route_blocks(
    router_logits: Tensor,
    expert_bias: Tensor,
    *,
    block_size: int,
    expert_capacity: int,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """`models.torch_moe.route_blocks` in one launch, without a host sync.

    router_logits: float32, bfloat16 or float16 [tokens, experts], rows contiguous, any row stride;
    tokens in blocks of `block_size`, a power of two, the last of which may be incomplete.
    expert_bias: floating [experts]. A NaN logit is an expert nobody prefers; its weight is NaN.
    Returns weights float32 [tokens, top_k] that sum to one, best first, and expert ids int32
    [tokens, top_k].
    Raises ValueError for another shape, stride or dtype, or a capacity that cannot be met.
    """
    if router_logits.dim() != 2 or router_logits.stride(1) != 1:
        raise ValueError(
            f"router_logits must be [tokens, experts] with contiguous rows, got shape "
            f"{tuple(router_logits.shape)} with strides {router_logits.stride()}. "
            "Use router_logits.contiguous()."
        )
    tokens, experts = router_logits.shape
    if router_logits.dtype not in DTYPES or not expert_bias.is_floating_point():
        raise ValueError(
            f"router_logits must be float32, bfloat16 or float16 and expert_bias floating, got "
            f"{router_logits.dtype} and {expert_bias.dtype}. Use router_logits.float()."
        )
    if expert_bias.shape != (experts,):
        raise ValueError(f"expert_bias must be [{experts}], got {list(expert_bias.shape)}.")
    if block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, got {block_size}.")
    if not 1 <= top_k <= expert_capacity <= experts <= MAX_EXPERTS:
        raise ValueError(
            f"top_k <= expert_capacity <= experts <= {MAX_EXPERTS} must hold, got {top_k}, "
            f"{expert_capacity} and {experts}."
        )
    device = router_logits.device
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=device)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=device)
    if tokens == 0:
        return weights, ids
    slices = min(SLICES, block_size)
    with torch.cuda.device_of(router_logits):
        _route_block[(triton.cdiv(tokens, block_size), slices)](
            router_logits,
            expert_bias,
            weights,
            ids,
            tokens,
            router_logits.stride(0),
            expert_bias.stride(0),
            EXPERTS=experts,
            WIDTH=triton.next_power_of_2(experts),
            BLOCK=block_size,
            SLICE=block_size // slices,
            CAPACITY=expert_capacity,
            TOP_K=top_k,
            TOP_WIDTH=triton.next_power_of_2(top_k),
            num_warps=WARPS,
        )
    return weights, ids
