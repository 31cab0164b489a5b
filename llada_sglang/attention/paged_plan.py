"""Which pages of the KV pool each run of queries reads: planned on the host, for any paged kernel.

A segment is consecutive queries of one forward, and the consecutive pages of one request they all
see, without a mask. A block row is one segment; so a forward of rows needs nothing but lengths
that the host has anyway, and no copy from the device.

A tile is several rows of one prompt that share a segment for the pages before the first of them;
what they do not share is a segment per row, and both are merged by log-sum-exp. A kernel whose
query tile a single row does not fill then reads the prefix once per tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

QUERY_TILE = 128
"""Queries, heads of a group included, that one program of FlashAttention 2 and 3 attends."""

TILED_PREFIX_MIN = 4096
"""Shortest shared prefix, in positions, worth a second pass and a merge.

Not measured yet: `python -m llada_sglang.attention.measure` on a GPU prints where it pays.
"""

# Some kernels take their index arrays only from addresses of this alignment.
_ALIGNED = 256 // 4


@dataclass(frozen=True, slots=True)
class RowBatch:
    """The block rows of one forward.

    requests: integer [rows], rows of the table of cache slots, on the device. kv_lens: integer
    [rows], positions each row sees, on the device; kv_lens_host: the same. request_ids: `requests`
    on the host, or None where the forward does not say; without them rows are not tiled.
    """

    requests: Tensor
    kv_lens: Tensor
    kv_lens_host: Sequence[int]
    request_ids: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        return len(self.kv_lens_host)


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Segments of queries and the pages they read: int32 tensors on the host.

    qo_indptr: [segments + 1], offsets of their queries. kv_indptr: [segments + 1], offsets of
    their pages in the concatenation of all page lists. kv_lens: [segments], positions read.
    first_page: [segments], where in its request's page table each begins. rows: [segments], a row
    of the forward that belongs to the segment's request.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_lens: Tensor
    first_page: Tensor
    rows: Tensor

    @property
    def segments(self) -> int:
        return len(self.kv_lens)

    @property
    def queries(self) -> int:
        return int(self.qo_indptr[-1])

    @property
    def pages(self) -> int:
        return int(self.kv_indptr[-1])

    @property
    def max_pages(self) -> int:
        return int((self.kv_indptr[1:] - self.kv_indptr[:-1]).max())


class DeviceSegments(NamedTuple):
    """A plan on the device: int32 views of one buffer, filled by one copy.

    last_page_len: [segments], positions of a segment's last page that it reads.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_lens: Tensor
    last_page_len: Tensor
    first_page: Tensor
    rows: Tensor


class TilePlan(NamedTuple):
    """A forward in two passes.

    prefix: one segment per tile. tails: one segment per row of the forward, without what the
    row's tile has read. tokens: int64, the queries of `prefix` among the forward's, on the host.
    """

    prefix: PagedPlan
    tails: PagedPlan
    tokens: Tensor


def blocks_per_tile(query_heads: int, kv_heads: int, block: int) -> int:
    """How many rows fill a query tile of a kernel that packs the heads of a group, at least 1.

    With LLaDA2's groups of 4 and 8 heads and blocks of 32 one row does, and tiles gain nothing.
    """
    return max(1, QUERY_TILE // (block * max(1, query_heads // kv_heads)))


def plan_rows(
    kv_lens: Sequence[int], *, block: int, page_size: int, skip: Sequence[int] | None = None
) -> PagedPlan:
    """One segment per row, in the order of the forward.

    kv_lens: positions each row sees, at least 1. skip: leading positions of each row left to
    another pass, whole pages and fewer than kv_lens; none by default.
    """
    lens = np.asarray(kv_lens, dtype=np.int32)
    skipped = np.zeros_like(lens) if skip is None else np.asarray(skip, dtype=np.int32)
    queries = np.full(len(lens), block, dtype=np.int32)
    return _plan(queries, lens - skipped, skipped // page_size, np.arange(len(lens)), page_size)


def plan_tiles(
    request_ids: Sequence[int],
    kv_lens: Sequence[int],
    *,
    block: int,
    page_size: int,
    tile: int,
    min_prefix: int = TILED_PREFIX_MIN,
) -> TilePlan | None:
    """Tiles of up to `tile` consecutive blocks; None where the forward has none worth it.

    request_ids, kv_lens: one entry per row, in the order of the forward. min_prefix: fewest
    positions a tile has to share; at least one page. Rows of a tile are adjacent in the forward
    and each ends one block after the one before.
    """
    if tile < 2:
        return None
    prefixes = [(kv_len - block) // page_size * page_size for kv_len in kv_lens]
    least = max(min_prefix, page_size)
    skip = [0] * len(kv_lens)
    tiles: list[tuple[int, int, int]] = []
    first = 0
    for row in range(1, len(kv_lens) + 1):
        joins = (
            row < len(kv_lens)
            and row - first < tile
            and prefixes[first] >= least
            and request_ids[row] == request_ids[first]
            and kv_lens[row] == kv_lens[row - 1] + block
        )
        if joins:
            continue
        if row - first > 1:
            tiles.append((first, row - first, prefixes[first]))
            skip[first:row] = [prefixes[first]] * (row - first)
        first = row
    if not tiles:
        return None
    rows, counts, shared = np.array(tiles, dtype=np.int32).T
    prefix_plan = _plan(counts * block, shared, np.zeros_like(rows), rows, page_size)
    tokens = np.concatenate([np.arange(f * block, (f + n) * block) for f, n, _ in tiles])
    return TilePlan(
        prefix_plan,
        plan_rows(kv_lens, block=block, page_size=page_size, skip=skip),
        torch.from_numpy(tokens.astype(np.int64)),
    )


@dataclass(frozen=True, slots=True)
class Tiling:
    """When rows of a forward share a pass over their prefix; fields as `plan_tiles` takes them."""

    block: int
    page_size: int
    tile: int
    min_prefix: int = TILED_PREFIX_MIN

    def of(self, batch: RowBatch) -> TilePlan | None:
        """The tiles of a forward; None where it has none, or does not name its requests."""
        if batch.request_ids is None:
            return None
        return plan_tiles(
            batch.request_ids,
            batch.kv_lens_host,
            block=self.block,
            page_size=self.page_size,
            tile=self.tile,
            min_prefix=self.min_prefix,
        )


def upload(
    plan: PagedPlan, page_size: int, device: torch.device, into: Tensor | None = None
) -> DeviceSegments:
    """Copy a plan to the device, in one copy that the host does not wait for.

    into: int32 [segment_ints(plan.segments)] or longer, a buffer that keeps its address; a new one
    by default. Returns views of it.
    """
    n = plan.segments
    last = (plan.kv_lens - 1) % page_size + 1
    fields = (plan.qo_indptr, plan.kv_indptr, plan.kv_lens, last, plan.first_page, plan.rows)
    # Pinned memory comes from a cache that hands it out again only when its copy is done.
    host = torch.empty(segment_ints(n), dtype=torch.int32, pin_memory=device.type == "cuda")
    for view, field in zip(_views(host, n), fields, strict=True):
        view.copy_(field)
    if into is None:
        into = torch.empty(segment_ints(n), dtype=torch.int32, device=device)
    into[: len(host)].copy_(host, non_blocking=True)
    return _views(into, n)


def segment_ints(segments: int) -> int:
    """Length of the int32 buffer that holds a plan of so many segments."""
    return sum(_padded(length) for length in _lengths(segments))


def segment_views(buffer: Tensor, segments: int) -> DeviceSegments:
    """The fields of a plan of so many segments in a buffer that `upload` fills."""
    return _views(buffer, segments)


def _plan(
    queries: np.ndarray, lens: np.ndarray, first: np.ndarray, rows: np.ndarray, page_size: int
) -> PagedPlan:
    return PagedPlan(
        qo_indptr=_offsets(queries),
        kv_indptr=_offsets(-(-lens // page_size)),
        kv_lens=torch.from_numpy(lens.astype(np.int32)),
        first_page=torch.from_numpy(first.astype(np.int32)),
        rows=torch.from_numpy(rows.astype(np.int32)),
    )


def _offsets(counts: np.ndarray) -> Tensor:
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return torch.from_numpy(offsets)


def _lengths(segments: int) -> tuple[int, ...]:
    return (segments + 1, segments + 1, segments, segments, segments, segments)


def _padded(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED


def _views(buffer: Tensor, segments: int) -> DeviceSegments:
    views, offset = [], 0
    for length in _lengths(segments):
        views.append(buffer[offset : offset + length])
        offset += _padded(length)
    return DeviceSegments(*views)
