"""Ranking the masked positions of a block, the same in any batch."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 1 << 14
"""Confidences are ranked by their logarithm in steps of 2^-14, and entropies in such steps of a
nat, so that positions the model cannot tell apart (all of them, behind an empty prompt) tie,
whatever the shape of the batch. Ties go to the lower position."""

LEAST = -1e9
"""Grade of confidence 0; positions that are not ranked stand behind it, at -inf."""


def grades(confidence: Tensor, among: Tensor) -> Tensor:
    """What positions are ranked by. confidence: float32 [rows, block], NaN as 0; among: bool.

    Returns float64 [rows, block], -inf outside of `among`.
    """
    grade = (confidence.nan_to_num(nan=0.0).double().log() * GRID).round()
    return torch.where(among, grade.clamp(min=LEAST), -torch.inf)


def ranks(keys: Tensor) -> Tensor:
    """The place of every position in descending order of its key, lower positions first.

    keys: [rows, block]. Returns int64 [rows, block]: 0 for the best.
    """
    order = keys.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(keys.shape[-1], device=keys.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def best(confidence: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` best positions of `among`. count: int64 [rows, 1]. Returns bool [rows, block]."""
    return among & (ranks(grades(confidence, among)) < count)
