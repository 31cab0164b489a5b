"""One step of the policy `threshold` on the table of canvases, and what the host learns of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_sglang.decoding.finish import settled_rows
from llada_sglang.decoding.policies.threshold import Threshold
from llada_sglang.decoding.policy import Checkpoint, Step

MASKED = -1
"""Stands for a masked position in reports."""


class CanvasTensors(NamedTuple):
    """The table of canvases by slot, as views of whatever holds it.

    tokens: int64 [slots, width], by absolute position; masked: bool [slots, width]; both are
    written. thresholds: float64 [slots], any stride. stop_ids: int64 [slots, stops], padded with
    -1. text_start, text_end: int64 [slots], see `decoding.finish.settled_rows`.
    """

    tokens: Tensor
    masked: Tensor
    thresholds: Tensor
    stop_ids: Tensor
    text_start: Tensor
    text_end: Tensor


def threshold_update(
    table: CanvasTensors,
    slots: Tensor,
    starts: Tensor,
    least: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    closed: Tensor | None = None,
) -> Tensor:
    """Unmask what is above each row's threshold, or its `least` best; write it to the table.

    slots, starts, least: int64 [rows], any stride: slot, absolute position of column 0, and how
    many positions have to be unmasked, 0 where none has. Several rows may share a slot if their
    blocks do not overlap. candidate: int64 [rows, block]; confidence: float32 [rows, block] in
    [0, 1]; both are read where masked only. closed: bool [rows], blocks that keep what they hold.
    Returns int64 [rows, block + 1]: the new canvas with MASKED at masked positions, then 1 where
    the block is settled.
    On a GPU one Triton launch without a host sync; elsewhere, and in meaning, `threshold_step`.
    Raises ValueError where a tensor is none of these.
    """
    if not candidate.is_cuda:
        return threshold_step(table, slots, starts, least, candidate, confidence, closed)
    # Here and not above: a machine without a GPU need not have Triton.
    from llada_sglang.kernels.threshold_triton import fused_threshold_step

    return fused_threshold_step(table, slots, starts, least, candidate, confidence, closed)


def threshold_step(
    table: CanvasTensors,
    slots: Tensor,
    starts: Tensor,
    least: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    closed: Tensor | None = None,
) -> Tensor:
    """The torch twin of `threshold_update`: the policy and the settling rule, one after another."""
    block = candidate.shape[1]
    position = starts[:, None] + torch.arange(block, device=starts.device)
    where = (slots[:, None], position)
    canvas, masked = table.tokens[where], table.masked[where]
    text_start = table.text_start[slots]
    update = Threshold(Checkpoint(block=block, mask_id=MASKED)).update(
        Step(
            canvas=canvas,
            masked=masked,
            generated=position >= text_start[:, None],
            candidate=candidate,
            confidence=confidence,
            least=least[:, None],
            numbers={"threshold": table.thresholds[slots][:, None]},
        )
    )
    new_canvas, new_masked = update.canvas, update.masked
    if closed is not None:
        new_canvas = torch.where(closed[:, None], canvas, new_canvas)
        new_masked = new_masked | closed[:, None] & masked
    table.tokens[where] = new_canvas
    table.masked[where] = new_masked
    settled = settled_rows(
        new_canvas,
        new_masked,
        starts,
        stop_ids=table.stop_ids[slots],
        text_start=text_start,
        text_end=table.text_end[slots],
    )
    shown = new_canvas.masked_fill(new_masked, MASKED)
    return torch.cat([shown, settled[:, None]], dim=1)
