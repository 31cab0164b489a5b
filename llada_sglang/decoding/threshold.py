"""LLaDA2.0's policy: unmask what is confident enough, and always something."""

from __future__ import annotations

import torch
from torch import Tensor

CONFIDENCE_GRID = 1 << 14
"""Confidences are ranked by their logarithm in steps of 2^-14, so that positions the model
cannot tell apart (all of them, behind an empty prompt) tie, whatever the shape of the batch."""


def unmask_confident(
    canvas: Tensor,
    masked: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    *,
    threshold: Tensor | float,
    min_tokens: Tensor | int = 1,
) -> tuple[Tensor, Tensor]:
    """Unmask every masked position above the threshold, and at least the best `min_tokens`.

    canvas, candidate: int64 [rows, block]; masked: bool [rows, block];
    confidence: float32 [rows, block], in [0, 1], read at masked positions only.
    threshold, min_tokens: scalars or [rows, 1]. Ties, to CONFIDENCE_GRID, go to the lower
    position.
    Returns the new canvas and the new mask; no host sync.
    Source: LLaDA2.0 report section 5.4: T = H if |H| >= n_s, else the top n_s.
    """
    confidence = confidence.nan_to_num(nan=0.0)
    above = masked & (confidence > threshold)
    grade = (confidence.double().log() * CONFIDENCE_GRID).round()
    # A resolved position ranks behind a masked one of confidence 0, which is at -inf already.
    order = torch.where(masked, grade.clamp(min=-1e9), -torch.inf)
    order = order.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(canvas.shape[1], device=canvas.device).expand_as(order)
    )
    enough = above.sum(dim=-1, keepdim=True) >= min_tokens
    accepted = torch.where(enough, above, masked & (rank < min_tokens))
    return torch.where(accepted, candidate, canvas), masked & ~accepted
