"""Triton kernels that take seconds when they are interpreted, at the vocabulary of LLaDA2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reduce_columns(
    *,
    logits: Tensor,
    maximum: Tensor,
    token: Tensor,
    sum_exp: Tensor,
    shard: int,
    chunk: int,
    vocab_start: int,
    mask_column: int,
    **constants: Any,
) -> None:
    """Our own: max, argmax and sum of exp of each chunk of columns of each row."""
    x = logits.float()
    x = torch.where(x.isnan(), -torch.inf, x)
    if 0 <= mask_column < shard:
        x[:, mask_column] = -torch.inf
    for split in range(len(maximum) // len(x)):
        part = x[:, split * chunk : (split + 1) * chunk]
        peak, column = part.max(dim=1)
        scaled = torch.where(part == peak[:, None], 0.0, part - peak[:, None])
        total = torch.where(part == -torch.inf, 0.0, scaled.exp()).sum(dim=1)
        mine = slice(split * len(x), (split + 1) * len(x))
        maximum[mine] = peak
        token[mine] = column + split * chunk + vocab_start
        sum_exp[mine] = torch.where(peak == torch.inf, peak, total)


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


def cast_logits(*, full_logits_ptr: Tensor, output_ptr: Tensor, **constants: Any) -> None:
    """A copy of the logits in float32, which the host's kernel for a soft cap makes for stock."""
    assert (constants["CAST_TO_FP32"], constants["APPLY_SOFTCAP"]) == (True, False)
    output_ptr.copy_(full_logits_ptr)


def sum_of_experts(
    *, input_ptr: Tensor, output_ptr: Tensor, routed_scaling_factor: float, **constants: Any
) -> None:
    output_ptr.copy_(input_ptr.float().sum(dim=1) * routed_scaling_factor)
