"""When a block needs no further step: resolved, or settled up to where its text ends."""

from __future__ import annotations

import torch
from torch import Tensor


def settled_rows(
    canvas: Tensor,
    masked: Tensor,
    starts: Tensor,
    *,
    stop_ids: Tensor,
    text_start: Tensor,
    text_end: Tensor,
) -> Tensor:
    """Tell which rows need no further denoise step.

    A row is settled when no mask is left, when a stop token stands behind no mask
    (LLaDA2.0's eos_early_stop), or when no mask stands before `text_end`. Text in front of
    that point can no longer change, so stopping there never changes what is emitted.

    canvas: int64 [rows, block]; masked: bool [rows, block]; starts: int64 [rows], absolute
    position of column 0. stop_ids: int64 [rows, stops], padded with -1; a row that may not
    stop early holds only -1. text_start, text_end: int64 [rows], absolute positions of the
    first generated token and of the first token past the request's budget.
    Returns bool [rows]; no host sync.
    """
    block = canvas.shape[1]
    column = torch.arange(block, device=canvas.device)
    position = starts[:, None] + column
    first_mask = torch.where(masked, column, block).amin(dim=-1)
    stops = (canvas[:, :, None] == stop_ids[:, None, :]).any(dim=-1)
    stops &= ~masked & (position >= text_start[:, None])
    first_stop = torch.where(stops, column, block).amin(dim=-1)
    return (first_mask == block) | (first_stop < first_mask) | (first_mask + starts >= text_end)
