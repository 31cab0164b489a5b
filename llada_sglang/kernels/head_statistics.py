"""lm_head and statistics over the vocabulary in one pass, for a CPU.

The logits of a step are the largest tensor there is: 157,184 columns for LLaDA2. Here they are
made and reduced a tile of the vocabulary at a time, and never leave the cache.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, merge_shards, shard_statistics

TILE_ELEMENTS = 1 << 17
"""Logits per tile: half a MiB in float32, which a core's own cache holds."""

SHARED = 32
"""Up to so many positions, threads share every operation: those that torch keeps spinning after
the body would be in the way of others."""

FOLDED = 128
"""Columns below which torch reduces over rows many times slower than it could."""


MIN_TILE, MAX_TILE = 1024, 32768
"""Columns of the vocabulary per tile."""


def head_statistics(
    hidden: Tensor, weight: Tensor, *, vocab_start: int, mask_id: int
) -> ShardStatistics:
    """`shard_statistics(hidden @ weight.T)` without the logits.

    hidden: [positions, hidden]; weight: [shard, hidden], same dtype, any floating one. vocab_start:
    global id of row 0 of the weight. Semantics are those of `decoding.statistics.shard_statistics`.
    Where it is worth it, as many threads as torch uses share the vocabulary, each on its own:
    threads that share every single operation pass its operands from core to core.
    """
    positions = hidden.shape[0]
    if padding := _favoured(positions) - positions:
        hidden = torch.cat([hidden, hidden[-1:].expand(padding, -1)])
        padded = head_statistics(hidden, weight, vocab_start=vocab_start, mask_id=mask_id)
        return ShardStatistics(*(part[:positions] for part in padded))
    threads = torch.get_num_threads()
    if threads == 1 or hidden.shape[0] <= SHARED or weight.shape[0] < threads * MAX_TILE:
        return _statistics(hidden, weight, vocab_start, mask_id)
    share = -(-weight.shape[0] // threads)
    parts = _pool(threads).map(
        lambda begin: _statistics(
            hidden, weight[begin : begin + share], vocab_start + begin, mask_id
        ),
        range(0, weight.shape[0], share),
    )
    return merge_shards(ShardStatistics(*map(torch.stack, zip(*parts, strict=True))))


def _favoured(positions: int) -> int:
    """The next number of columns that the BLAS is fast with: 31 of them cost more than 32 do."""
    if positions > 32:
        return -(-positions // 32) * 32
    return max(2, 1 << (positions - 1).bit_length()) if positions else 0


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Torch's number of threads is a thread's own; so is inference mode.
    return ThreadPoolExecutor(threads, "head", initializer=torch.set_num_threads, initargs=(1,))


@torch.inference_mode()
def _statistics(hidden: Tensor, weight: Tensor, vocab_start: int, mask_id: int) -> ShardStatistics:
    positions = hidden.shape[0]
    tile = max(MIN_TILE, min(MAX_TILE, TILE_ELEMENTS // max(positions, 1)))
    floor = torch.finfo(torch.float32).min
    best = torch.full((positions,), -torch.inf)
    total = torch.zeros(positions)
    token = torch.zeros(positions, dtype=torch.int64)
    buffer = torch.empty(0)
    columns = hidden.t()
    for begin in range(0, weight.shape[0], tile):
        rows = weight[begin : begin + tile]
        if buffer.shape[0] != rows.shape[0]:
            buffer = torch.empty((rows.shape[0], positions), dtype=weight.dtype)
        # Weights times positions: the order in which the BLAS is fast for any number of these.
        logits = torch.mm(rows, columns, out=buffer).float()
        column = mask_id - vocab_start - begin
        if 0 <= column < rows.shape[0]:
            logits[column] = -torch.inf
        peak = _peaks(logits)
        # Naming the greatest costs ten times what finding it does, so only where it leads.
        leads = (peak > best).nonzero()[:, 0]
        if leads.numel():
            token[leads] = logits[:, leads].argmax(dim=0) + (vocab_start + begin)
        shift = peak.clamp(min=floor)
        terms = logits.sub_(shift).exp_().sum(dim=0)
        top = torch.maximum(best, peak)
        lead = top.clamp(min=floor)
        total = total * (best - lead).exp() + terms * (shift - lead).exp()
        best = top
    if bool((best.isnan() | (best == torch.inf)).any()):
        # Rare enough to be done again, at length.
        return shard_statistics(
            (hidden @ weight.t()).float(), vocab_start=vocab_start, mask_id=mask_id
        )
    token = torch.where(best == -torch.inf, vocab_start, token)
    return ShardStatistics(best, token, total)


def _peaks(logits: Tensor) -> Tensor:
    """The greatest of every column; logits: [rows, positions], contiguous."""
    rows, positions = logits.shape
    fold = 1
    while 2 * fold * positions <= FOLDED and rows % (2 * fold) == 0:
        fold *= 2
    wide = logits.view(rows // fold, fold * positions).amax(dim=0)
    return wide.view(fold, positions).amax(dim=0)
