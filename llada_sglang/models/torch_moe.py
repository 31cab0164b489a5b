"""Routing and experts of a LLaDA2 mixture-of-experts layer in plain torch.

The host's CPU path compiles the grouped top-k at the first request, which takes many seconds,
and never applies routed_scaling_factor; its kernels for GPUs round float32 to float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# torch.grouped_mm saves the calls of a loop over experts, the loop has the better cache
# locality; measured crossing on two x86-64 cores, in (token, expert) pairs per expert.
_GROUPED_MM_PAIRS_PER_EXPERT = 64
# grouped_mm asks for rows of whole 16-byte vectors.
_GROUPED_MM_ALIGNMENT = 8


def route(
    router_logits: Tensor,
    expert_bias: Tensor | None,
    *,
    top_k: int,
    num_groups: int | None,
    topk_group: int | None,
    normalize: bool,
    score_function: str | None = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts per token by score + bias, within the best `topk_group` groups.

    router_logits: [tokens, experts], any float dtype, computed on in float32.
    expert_bias: float32 [experts] or None; it decides the choice, never the weight.
    num_groups, topk_group: None or 0 for no grouping; a group scores the sum of its best two.
    Returns weights float32 [tokens, top_k], normalised to sum to one if `normalize`, and expert
    ids int32 [tokens, top_k].
    Source: LLaDA2.0 modelling code; sglang.srt.layers.moe.topk.biased_grouped_topk_impl.
    """
    logits = router_logits.float()
    scores = logits.softmax(-1) if score_function == "softmax" else logits.sigmoid()
    choice = scores if expert_bias is None else scores + expert_bias.float()
    if num_groups and topk_group and topk_group < num_groups:
        grouped = choice.unflatten(-1, (num_groups, -1))
        best_two = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(best_two, dtype=torch.bool)
        kept.scatter_(1, best_two.topk(topk_group, dim=-1).indices, True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    ids = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights, ids.to(torch.int32)


def route_blocks(
    router_logits: Tensor,
    expert_bias: Tensor,
    *,
    block_size: int,
    expert_capacity: int,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts per token by score + bias, within those the token's block admits.

    A block admits the `expert_capacity` experts whose best score + bias over its tokens is
    largest; of equals the lower id goes first, there and among a token's experts.
    router_logits: [tokens, experts], any float dtype, computed on in float32; tokens in blocks of
    `block_size`, the last of which may be incomplete. expert_bias: float32 [experts].
    Returns weights float32 [tokens, top_k], normalised to sum to one, and expert ids int32
    [tokens, top_k].
    Source: LLaDA2.2 report, section 2.2; sglang.srt.models.llada2.block_topk_triton.
    """
    tokens = router_logits.shape[0]
    scores = router_logits.float().sigmoid()
    choice = scores + expert_bias.float()
    whole = F.pad(choice, (0, 0, 0, -tokens % block_size), value=float("-inf"))
    best = whole.unflatten(0, (-1, block_size)).amax(1)
    admitted = best.sort(dim=-1, descending=True, stable=True).indices[:, :expert_capacity]
    closed = torch.ones_like(best, dtype=torch.bool).scatter_(1, admitted, False)
    choice = choice.masked_fill(closed.repeat_interleave(block_size, dim=0)[:tokens], float("-inf"))
    # torch.topk does not say which of equal values it takes.
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20), ids.to(torch.int32)


def run_experts(x: Tensor, weights: Tensor, ids: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """Sum of the chosen experts' SwiGLU outputs; experts nobody chose cost nothing.

    x: [tokens, hidden]; weights: float32 [tokens, k]; ids: integer [tokens, k], negative for
    an expert another rank holds. w13: [experts, 2 * inner, hidden], gate rows before up rows;
    w2: [experts, hidden, inner]. Returns [tokens, hidden] in the dtype of x, summed in float32.
    """
    tokens, k = ids.shape
    experts = w13.shape[0]
    if tokens == 0:
        return torch.zeros_like(x)
    pairs = ids.reshape(-1)
    order = pairs.argsort(stable=True)
    if bool((pairs < 0).any()):
        order = order[int((pairs < 0).sum()) :]
    counts = torch.bincount(pairs[order], minlength=experts)
    token_of = torch.div(order, k, rounding_mode="floor")
    gathered = x[token_of]
    # For CPUs: on a GPU it takes bfloat16 alone.
    small = x.is_cpu and pairs.numel() <= _GROUPED_MM_PAIRS_PER_EXPERT * experts
    aligned = w13.shape[2] % _GROUPED_MM_ALIGNMENT == 0 and w2.shape[2] % _GROUPED_MM_ALIGNMENT == 0
    if small and aligned:
        out = _experts_grouped(gathered, counts, w13, w2)
    else:
        out = _experts_in_turn(gathered, counts.tolist(), w13, w2)
    out = out.float() * weights.reshape(-1)[order].unsqueeze(1)
    if not x.is_cpu:
        # index_add_ adds there in any order, and the same text might not come out twice.
        return sum_in_order(out, order, ids.shape).to(x.dtype)
    total = torch.zeros(tokens, x.shape[1], dtype=torch.float32, device=x.device)
    return total.index_add_(0, token_of, out).to(x.dtype)


def sum_in_order(out: Tensor, order: Tensor, shape: Sequence[int]) -> Tensor:
    """Add what the experts of each token made, in the order of its choices.

    out: [pairs, hidden]; order: int64 [pairs], the place of each among the choices of all tokens,
    of which some may be missing. shape: (tokens, k). Returns [tokens, hidden].
    """
    tokens, k = shape
    every = out.new_zeros(tokens * k, out.shape[1]).index_copy_(0, order, out)
    return every.view(tokens, k, -1).sum(1)


def _experts_grouped(gathered: Tensor, counts: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(gathered, w13.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=ends)


def _experts_in_turn(gathered: Tensor, counts: list[int], w13: Tensor, w2: Tensor) -> Tensor:
    out = torch.empty_like(gathered)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        gate, up = F.linear(gathered[rows], w13[expert]).chunk(2, dim=-1)
        torch.mm(F.silu(gate) * up, w2[expert].t(), out=out[rows])
        start += count
    return out
