"""The step of the policy `threshold` in one launch: one program is one block.

Torch takes about forty launches for the same, most of them for ranks of 32 numbers; the work is
a hundredth of the launches' time. Bit-identical to `kernels.threshold.threshold_step`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llada_sglang.decoding.order import GRID, LEAST
from llada_sglang.kernels.threshold import MASKED, CanvasTensors

MAX_BLOCK = 128
"""Ranks come from comparing every position with every other."""

_GRID = tl.constexpr(float(GRID))
_LEAST = tl.constexpr(LEAST)
_MASKED = tl.constexpr(MASKED)
_ROUNDING = tl.constexpr(1.5 * 2**52)
"""Added to a float64 below 2^51 and taken away again, it leaves an integer, ties to even."""
_GREATEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def _grades(confidence, among):
    """`decoding.order.grades`, with what torch's sort makes of NaN: the greatest of all."""
    sure = tl.where(confidence == confidence, confidence, 0.0)
    # As torch.nan_to_num, which does not stop at NaN.
    sure = tl.minimum(tl.maximum(sure, -_GREATEST), _GREATEST)
    # A power of two scales exactly, so that a fused multiply-add changes nothing.
    grade = tl.log(sure.to(tl.float64)) * _GRID
    grade = (grade + _ROUNDING) - _ROUNDING
    grade = tl.where(grade < _LEAST, _LEAST, grade)
    grade = tl.where(grade == grade, grade, float("inf"))
    return tl.where(among, grade, float("-inf"))


# A step's rows begin anywhere in a matrix that it sends to the device: a kernel of its own for
# every alignment would be compiled in the middle of serving, and single numbers gain nothing.
@triton.jit(
    do_not_specialize=["stops"], do_not_specialize_on_alignment=["slots", "starts", "least"]
)
def _update_block(
    tokens,
    masked,
    thresholds,
    stop_ids,
    text_start,
    text_end,
    slots,
    starts,
    least,
    candidate,
    confidence,
    closed,
    report,
    token_stride,
    mask_stride,
    threshold_stride,
    stop_stride,
    slot_stride,
    start_stride,
    least_stride,
    candidate_stride,
    confidence_stride,
    stops,
    BLOCK: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    STOPS: tl.constexpr,  # noqa: N803
):
    """Program (row) updates one block; WIDTH and STOPS are the next powers of two."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row * slot_stride)
    start = tl.load(starts + row * start_stride)
    needed = tl.load(least + row * least_stride)
    threshold = tl.load(thresholds + slot * threshold_stride)
    first_text = tl.load(text_start + slot)
    last_text = tl.load(text_end + slot)

    column = tl.arange(0, WIDTH)
    held = column < BLOCK
    token_at = tokens + slot * token_stride + start + column
    mask_at = masked + slot * mask_stride + start + column
    canvas = tl.load(token_at, mask=held, other=0)
    mask = (tl.load(mask_at, mask=held, other=0) != 0) & held
    found = tl.load(candidate + row * candidate_stride + column, mask=held, other=0)
    sure = tl.load(confidence + row * confidence_stride + column, mask=held, other=0.0)

    proposed = mask & (sure.to(tl.float64) > threshold)
    enough = tl.sum(proposed.to(tl.int32), axis=0) >= needed
    # A position stands behind those of a higher grade and the lower ones of its own.
    grade = _grades(sure, mask)
    other, own = grade[None, :], grade[:, None]
    ahead = (other > own) | ((other == own) & (column[None, :] < column[:, None]))
    rank = tl.sum(ahead.to(tl.int32), axis=1)
    accepted = tl.where(enough, proposed, mask & (rank < needed))
    if closed is not None:
        accepted = accepted & (tl.load(closed + row) == 0)
    new_canvas = tl.where(accepted, found, canvas)
    new_mask = mask & (accepted == 0)
    tl.store(token_at, new_canvas, mask=held)
    tl.store(mask_at, new_mask.to(masked.dtype.element_ty), mask=held)

    stop = tl.arange(0, STOPS)
    ends = tl.load(stop_ids + slot * stop_stride + stop, mask=stop < stops, other=0)
    matches = (new_canvas[:, None] == ends[None, :]) & (stop < stops)[None, :]
    stopping = tl.sum(matches.to(tl.int32), axis=1) > 0
    stopping = stopping & held & (new_mask == 0) & (start + column >= first_text)
    first_mask = tl.min(tl.where(new_mask, column, BLOCK), axis=0)
    first_stop = tl.min(tl.where(stopping, column, BLOCK), axis=0)
    settled = (first_mask == BLOCK) | (first_stop < first_mask) | (first_mask + start >= last_text)

    out = report + row * (BLOCK + 1)
    shown = tl.where(new_mask, tl.full([WIDTH], _MASKED, tl.int64), new_canvas)
    tl.store(out + column, shown, mask=held)
    tl.store(out + BLOCK, settled.to(tl.int64))


def fused_threshold_step(
    table: CanvasTensors,
    slots: Tensor,
    starts: Tensor,
    least: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    closed: Tensor | None = None,
) -> Tensor:
    """`kernels.threshold.threshold_step` in one launch, without a host sync; same arguments.

    Raises ValueError for other shapes, strides or dtypes.
    """
    _check(table, slots, starts, least, candidate, confidence, closed)
    rows, block = candidate.shape
    report = torch.empty((rows, block + 1), dtype=torch.int64, device=candidate.device)
    if rows == 0:
        return report
    stops = table.stop_ids.shape[1]
    width = triton.next_power_of_2(block)
    with torch.cuda.device_of(candidate):
        _update_block[(rows,)](
            table.tokens,
            # One byte each, which Triton reads as such and not as a bit.
            table.masked.view(torch.uint8),
            table.thresholds,
            table.stop_ids,
            table.text_start,
            table.text_end,
            slots,
            starts,
            least,
            candidate,
            confidence,
            None if closed is None else closed.view(torch.uint8),
            report,
            table.tokens.stride(0),
            table.masked.stride(0),
            table.thresholds.stride(0),
            table.stop_ids.stride(0),
            slots.stride(0),
            starts.stride(0),
            least.stride(0),
            candidate.stride(0),
            confidence.stride(0),
            stops,
            BLOCK=block,
            WIDTH=width,
            STOPS=triton.next_power_of_2(max(1, stops)),
            num_warps=1 if width <= 32 else 4,
        )
    return report


def _check(
    table: CanvasTensors,
    slots: Tensor,
    starts: Tensor,
    least: Tensor,
    candidate: Tensor,
    confidence: Tensor,
    closed: Tensor | None,
) -> None:
    rows, block = candidate.shape if candidate.dim() == 2 else (-1, 0)
    if rows < 0 or not 1 <= block <= MAX_BLOCK:
        raise ValueError(
            f"candidate must be [rows, block] with block in [1, {MAX_BLOCK}], got "
            f"{tuple(candidate.shape)}. Use kernels.threshold.threshold_step."
        )
    slot_count, width = table.tokens.shape
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "candidate": (candidate, (rows, block), torch.int64),
        "confidence": (confidence, (rows, block), torch.float32),
        "slots": (slots, (rows,), torch.int64),
        "starts": (starts, (rows,), torch.int64),
        "least": (least, (rows,), torch.int64),
        "tokens": (table.tokens, (slot_count, width), torch.int64),
        "masked": (table.masked, (slot_count, width), torch.bool),
        "thresholds": (table.thresholds, (slot_count,), torch.float64),
        "stop_ids": (table.stop_ids, (slot_count, table.stop_ids.shape[-1]), torch.int64),
        "text_start": (table.text_start, (slot_count,), torch.int64),
        "text_end": (table.text_end, (slot_count,), torch.int64),
    }
    if closed is not None:
        wanted["closed"] = (closed, (rows,), torch.bool)
    strided = {"slots", "starts", "least", "thresholds"}
    for name, (tensor, shape, dtype) in wanted.items():
        contiguous = name in strided or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not contiguous:
            raise ValueError(
                f"{name} must be {dtype} {list(shape)} with contiguous rows, got {tensor.dtype} "
                f"{list(tensor.shape)} with strides {tensor.stride()}."
            )
