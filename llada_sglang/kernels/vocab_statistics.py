"""Per-position (max, argmax, sum of exp) over a vocabulary shard, in one pass over the logits.

The logits are the largest tensor of a step: 157,184 columns for LLaDA2. Max, argmax and
softmax one after the other read them three times and write a float32 copy; an online softmax
(Milakov and Gimelshein, arXiv 1805.02867) reads them once, in the dtype the head wrote.

Every lane keeps its own running triple, so the loop holds no reduction across lanes, and a lane
sees its columns in ascending order, so a strict comparison keeps the lowest id on ties.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics

TILE = 2048
"""Columns per loop turn: 8 per thread, one 16-byte load of bfloat16, and 64 registers at most."""

WARPS = 8
STAGES = 4
"""Tiles in flight: asynchronous copies hide the memory's latency."""

PROGRAMS_PER_UNIT = 4
"""Programs that a multiprocessor runs at once, by its 65,536 registers."""

MAX_SPLITS = 64
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _reduce_columns(
    logits,
    maximum,
    token,
    sum_exp,
    row_stride,
    shard,
    chunk,
    vocab_start,
    mask_column,
    TILE: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
):
    """Program (row, split) reduces columns [split * chunk, (split + 1) * chunk) of its row."""
    row, split = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, TILE)
    begin = split * chunk
    end = tl.minimum(begin + chunk, shard)
    source = logits + row.to(tl.int64) * row_stride

    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    # Where no column is legal the first one is named, as torch.max does.
    best = begin + lane
    for offset in tl.range(begin, end, TILE, num_stages=STAGES):
        column = offset + lane
        # Chunks are whole tiles, so `shard` is the only bound. Nothing else may be in this mask,
        # or the loads come out one element wide.
        x = tl.load(source + column, mask=column < shard, other=float("-inf")).to(tl.float32)
        # NaN, which equals nothing, counts as -inf.
        x = tl.where((x == x) & (column != mask_column), x, float("-inf"))
        higher = x > top
        # One exp serves both cases: it scales the sum down, or is the new term. Equal infinities
        # have no difference; they weigh 1 at the top and nothing at the bottom.
        weight = tl.exp(tl.where(higher, top - x, x - top))
        weight = tl.where(x == top, tl.where(x == float("-inf"), 0.0, 1.0), weight)
        total = tl.where(higher, total * weight + 1.0, total + weight)
        best = tl.where(higher, column, best)
        top = tl.where(higher, x, top)

    peak = tl.max(top, axis=0)
    scale = tl.where(top == peak, 1.0, tl.exp(top - peak))
    winner = tl.min(tl.where(top == peak, best, shard), axis=0)
    weighed = tl.sum(total * scale, axis=0)
    weighed = tl.where(peak == float("inf"), peak, weighed)
    out = split * tl.num_programs(0) + row
    tl.store(maximum + out, peak)
    tl.store(token + out, winner.to(tl.int64) + vocab_start)
    tl.store(sum_exp + out, weighed)


# The number of splits follows the number of positions, which every step has its own of: a kernel
# for each would be compiled in the middle of serving.
@triton.jit(do_not_specialize=["splits"])
def _combine_splits(
    part_maximum,
    part_token,
    part_sum,
    maximum,
    token,
    sum_exp,
    splits,
    WIDTH: tl.constexpr,  # noqa: N803
):
    """Program (row) reduces the partial statistics [splits, positions] of its row."""
    row, positions = tl.program_id(0), tl.num_programs(0)
    split = tl.arange(0, WIDTH)
    held = split < splits
    place = split * positions + row
    top = tl.load(part_maximum + place, mask=held, other=float("-inf"))
    ids = tl.load(part_token + place, mask=held, other=0)
    total = tl.load(part_sum + place, mask=held, other=0.0)
    peak = tl.max(top, axis=0)
    scale = tl.where(top == peak, 1.0, tl.exp(top - peak))
    # Splits are in ascending order of ids: the lowest split at the peak holds the lowest id.
    owner = tl.min(tl.where((top == peak) & held, split, WIDTH), axis=0)
    weighed = tl.sum(total * scale, axis=0)
    weighed = tl.where(peak == float("inf"), peak, weighed)
    tl.store(maximum + row, peak)
    tl.store(token + row, tl.sum(tl.where(split == owner, ids, 0), axis=0))
    tl.store(sum_exp + row, weighed)


def fused_vocab_statistics(
    logits: Tensor, *, vocab_start: int, mask_id: int, splits: int | None = None
) -> ShardStatistics:
    """`decoding.statistics.shard_statistics` in one pass, without a copy and a host sync.

    logits: bfloat16, float16 or float32 [positions, shard], rows contiguous, any row stride; only
    read. vocab_start: global id of column 0. splits: over how many programs the columns of a
    position are divided, by default as many as fill the device.
    Raises ValueError for another shape, stride or dtype.
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.stride(1) != 1:
        raise ValueError(
            f"logits must be [positions, shard] with contiguous rows and shard > 0, got shape "
            f"{tuple(logits.shape)} with strides {logits.stride()}. Use logits.contiguous()."
        )
    if logits.dtype not in DTYPES:
        raise ValueError(
            f"logits must be bfloat16, float16 or float32, got {logits.dtype}. Use logits.float()."
        )
    positions, shard = logits.shape
    if splits is None:
        splits = split_count(positions, shard, _programs(logits.device))
    if not 1 <= splits <= MAX_SPLITS:
        raise ValueError(f"splits must be in [1, {MAX_SPLITS}], got {splits}.")
    # Whole tiles, so that only the last program of a row has a remainder.
    chunk = triton.cdiv(triton.cdiv(shard, splits), TILE) * TILE
    splits = triton.cdiv(shard, chunk)

    result = _empty(logits, positions)
    if positions == 0:
        return result
    partial = result if splits == 1 else _empty(logits, splits * positions)
    with torch.cuda.device_of(logits):
        _reduce_columns[(positions, splits)](
            logits,
            *partial,
            logits.stride(0),
            shard,
            chunk,
            vocab_start,
            mask_id - vocab_start,
            TILE=TILE,
            STAGES=STAGES,
            num_warps=WARPS,
        )
        if splits > 1:
            _combine_splits[(positions,)](*partial, *result, splits, WIDTH=MAX_SPLITS, num_warps=1)
    return result


def split_count(positions: int, shard: int, programs: int) -> int:
    """Over how many programs to divide the columns of a position.

    positions, shard: shape of the logits. programs: how many the device runs at once. A second
    pass over the parts only pays while positions alone leave most of the device idle.
    """
    if positions == 0 or 2 * positions > programs:
        return 1
    return max(1, min(programs // positions, triton.cdiv(shard, TILE), MAX_SPLITS))


@cache
def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count) * PROGRAMS_PER_UNIT


def _empty(like: Tensor, count: int) -> ShardStatistics:
    return ShardStatistics(
        torch.empty(count, dtype=torch.float32, device=like.device),
        torch.empty(count, dtype=torch.int64, device=like.device),
        torch.empty(count, dtype=torch.float32, device=like.device),
    )
