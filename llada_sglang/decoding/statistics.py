"""Per-position statistics over the vocabulary: what greedy unmasking needs, and no more.

A position needs its argmax and the probability of it. Both follow from (max, argmax,
sum of exp) per vocabulary shard, so tensor-parallel ranks exchange three numbers per position
instead of gathering `[positions, vocab]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ShardStatistics(NamedTuple):
    """Statistics of one vocabulary shard. All tensors [positions].

    maximum: float32, the largest logit, -inf where the shard has no legal id.
    token: int64, global id of the largest logit, the lowest one on ties.
    sum_exp: float32, sum over the shard of exp(logit - maximum); 0 where maximum is -inf.
    """

    maximum: Tensor
    token: Tensor
    sum_exp: Tensor


def shard_statistics(logits: Tensor, *, vocab_start: int, mask_id: int) -> ShardStatistics:
    """Reduce the logits of one vocabulary shard; the mask id is never a legal prediction.

    logits: float32 [positions, shard]; overwritten. vocab_start: global id of column 0.
    NaN counts as -inf, so that one bad logit cannot decide or stall a block.
    """
    column = mask_id - vocab_start
    if 0 <= column < logits.shape[1]:
        logits[:, column] = -torch.inf
    maximum, index = logits.max(dim=-1)
    # max() propagates NaN: only rows that hold one pay for the cleaning pass.
    if bool(maximum.isnan().any()):
        logits.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        maximum, index = logits.max(dim=-1)
    # exp(-inf - -inf) would be NaN; any finite shift gives the right 0.
    shift = maximum.clamp(min=torch.finfo(torch.float32).min, max=torch.finfo(torch.float32).max)
    sum_exp = logits.sub_(shift[:, None]).exp_().sum(dim=-1)
    return ShardStatistics(maximum, index + vocab_start, sum_exp)


def merge_shards(shards: ShardStatistics) -> ShardStatistics:
    """The statistics of several vocabulary shards as those of one.

    shards: every field [shards, positions], stacked in ascending order of ids. Returns fields
    [positions].
    """
    top, owner = shards.maximum.max(dim=0)
    token = shards.token.gather(0, owner[None])[0]
    scale = torch.where(shards.maximum == top, 0.0, shards.maximum - top).exp()
    return ShardStatistics(top, token, (shards.sum_exp * scale).sum(dim=0))


def combine_shards(shards: ShardStatistics) -> tuple[Tensor, Tensor]:
    """Candidate and confidence from the statistics of all vocabulary shards.

    shards: every field [shards, positions], stacked in ascending order of ids. Returns (candidate
    int64 [positions], confidence float32 [positions] in [0, 1]); a position without any legal id
    has confidence 0.
    """
    top, candidate, total = merge_shards(shards)
    confidence = torch.where(torch.isfinite(top), 1.0 / total, 0.0)
    # An infinite logit is certain; several share the certainty.
    confidence = torch.where(top == torch.inf, 1.0, confidence)
    return candidate, confidence.nan_to_num(nan=0.0)
