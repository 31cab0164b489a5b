"""Block rows on FlashAttention 3 over a paged cache.

Lengths and page table stay on the device, where the kernel divides the work itself: nothing is
planned on the host. A graph of any row count reads the same two buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_sglang.attention.page_indices import write_page_table
from llada_sglang.attention.paged_plan import (
    TILED_PREFIX_MIN,
    PagedPlan,
    RowBatch,
    Tiling,
    blocks_per_tile,
    upload,
)

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


MOST_SPLITS = 32
"""Parts that the keys of a row may be divided into. The kernel chooses for every row by the lengths
it finds; by itself it would take this bound from the longest context there can be."""

SPLIT_BYTES = 256 << 20
"""Most memory for what the parts of all rows compute, in float32, before it is summed."""

ROUNDS = 4
"""So many (row, head) tiles per processor keep a device busy without dividing any."""


class PagedSegments(NamedTuple):
    """What the kernel reads of some segments.

    qo_indptr: int32 [segments + 1]. lens: int32 [segments], positions read. table: int32
    [segments, pages]. max_queries: of the widest segment.
    """

    qo_indptr: Tensor
    lens: Tensor
    table: Tensor
    max_queries: int


class FA3Rows:
    """Plans and attends the rows of one forward after the other."""

    def __init__(
        self,
        *,
        req_to_token: Tensor,
        page_size: int,
        block: int,
        query_heads: int,
        kv_heads: int,
        kv_dtype: torch.dtype,
        max_context: int,
        kernel: Callable[..., Any],
        merge: Merge,
        processors: int,
        divides: bool = True,
        tile: int | None = None,
        min_prefix: int = TILED_PREFIX_MIN,
    ) -> None:
        """kernel: `flash_attn_with_kvcache` of the host. merge: of two outputs with log-sum-exp to
        base e, float32 [queries, heads]. processors: of the device. divides: False where a row
        must be computed alike in every batch. tile: most blocks of a tile, as many as fill the
        kernel's by default. min_prefix: fewest positions a tile shares."""
        self.block = block
        self._req_to_token = req_to_token
        self._device = req_to_token.device
        self._page_size = page_size
        self._kv_heads = kv_heads
        self._kv_dtype = kv_dtype
        self._max_pages = -(-max_context // page_size)
        self._kernel = kernel
        self._merge = merge
        self._processors = processors
        self._divides = divides
        self.tiling = Tiling(
            block=block,
            page_size=page_size,
            tile=blocks_per_tile(query_heads, kv_heads, block) if tile is None else tile,
            min_prefix=min_prefix,
        )
        self._prefix: PagedSegments | None = None
        self._tokens: Tensor | None = None

    def plan(self, batch: RowBatch) -> None:
        """Plan an eager forward; the layers' `attend` calls follow."""
        self._prefix = self._tokens = None
        tiles = self.tiling.of(batch)
        if tiles is not None:
            self._prefix = self._segments(tiles.prefix, batch.requests)
            self._rows = self._segments(tiles.tails, batch.requests)
            self._tokens = tiles.tokens.to(self._device, non_blocking=True)
            return
        pages = -(-max(batch.kv_lens_host) // self._page_size)
        rows = batch.rows
        self._rows = self._new_segments(self._uniform(rows), rows, pages, self.block)
        self._fill(self._rows, batch.requests, None, batch.kv_lens)

    def init_graphs(self, max_rows: int) -> None:
        """Allocate what graphs of up to so many rows read."""
        self._graph = self._new_segments(
            self._uniform(max_rows), max_rows, self._max_pages, self.block
        )

    def plan_graph(self, batch: RowBatch, *, capture: bool) -> None:
        """Plan a forward that is captured into, or replayed from, the graph of its row count."""
        rows = batch.rows
        everything = self._graph
        self._prefix = self._tokens = None
        self._rows = PagedSegments(
            everything.qo_indptr[: rows + 1],
            everything.lens[:rows],
            everything.table[:rows],
            self.block,
        )
        self._fill(self._rows, batch.requests, None, batch.kv_lens)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend the planned rows of one layer, whose K and V the pool already holds.

        query: [rows * block, heads, dim]; keys, values: [pages, page_size, kv heads, dim]. The
        query is taken to the dtype of an fp8 cache, as the kernel wants both alike; the scales,
        one element each, are then applied inside. Returns the output like the query.
        """
        dtype = query.dtype
        if self._kv_dtype.itemsize == 1:
            query = query.to(self._kv_dtype)
        else:
            k_scale = v_scale = None

        def run(segments: PagedSegments, queries: Tensor) -> Any:
            shape = (len(segments.lens), self._kv_heads)
            return self._kernel(
                q=queries,
                k_cache=keys,
                v_cache=values,
                page_table=segments.table,
                cache_seqlens=segments.lens,
                cu_seqlens_q=segments.qo_indptr,
                max_seqlen_q=segments.max_queries,
                k_descale=None if k_scale is None else k_scale.expand(shape),
                v_descale=None if v_scale is None else v_scale.expand(shape),
                softmax_scale=scaling,
                causal=False,
                num_splits=self.splits(len(segments.lens), queries.shape[0], *queries.shape[1:]),
                return_softmax_lse=self._prefix is not None,
            )

        if self._prefix is None:
            # Of an fp8 query the kernel's output is bfloat16, whatever the model computes in.
            return run(self._rows, query).to(dtype)
        assert self._tokens is not None
        tokens = self._tokens
        out, lse, *_ = run(self._rows, query)
        shared, shared_lse, *_ = run(self._prefix, query[tokens])
        # The kernel's log-sum-exp is [heads, queries].
        merged, _ = self._merge(
            shared, shared_lse.T.contiguous(), out[tokens], lse.T[tokens].contiguous()
        )
        out[tokens] = merged
        return out.to(dtype)

    def splits(self, segments: int, queries: int, heads: int, dim: int) -> int:
        """How many parts the keys of a segment may be divided into, at least 1."""
        if not self._divides or segments * self._kv_heads >= ROUNDS * self._processors:
            return 1
        return max(1, min(MOST_SPLITS, SPLIT_BYTES // _split_bytes(queries, heads, dim)))

    def graph_bytes(self, most_rows: int, heads: int, dim: int) -> int:
        """What the parts take in the largest of the graphs of up to so many rows."""
        taken = [0]
        for rows in range(1, most_rows + 1):
            splits = self.splits(rows, rows * self.block, heads, dim)
            if splits > 1:
                taken.append(splits * _split_bytes(rows * self.block, heads, dim))
        return max(taken)

    def _segments(self, plan: PagedPlan, requests: Tensor) -> PagedSegments:
        there = upload(plan, self._page_size, self._device)
        widest = int((plan.qo_indptr[1:] - plan.qo_indptr[:-1]).max())
        made = self._new_segments(there.qo_indptr, plan.segments, plan.max_pages, widest)
        self._fill(made, requests[there.rows], there.first_page, there.kv_lens)
        return made

    def _new_segments(
        self, qo_indptr: Tensor, segments: int, pages: int, widest: int
    ) -> PagedSegments:
        # Entries behind a segment's pages are never read, but must be pages.
        table = torch.zeros(segments, pages, dtype=torch.int32, device=self._device)
        lens = torch.empty(segments, dtype=torch.int32, device=self._device)
        return PagedSegments(qo_indptr, lens, table, widest)

    def _fill(
        self, segments: PagedSegments, requests: Tensor, first: Tensor | None, kv_lens: Tensor
    ) -> None:
        write_page_table(
            self._req_to_token,
            requests,
            first,
            kv_lens,
            segments.table,
            segments.lens,
            page_size=self._page_size,
        )

    def _uniform(self, rows: int) -> Tensor:
        return torch.arange(
            0, (rows + 1) * self.block, self.block, dtype=torch.int32, device=self._device
        )


def _split_bytes(queries: int, heads: int, dim: int) -> int:
    """Output and log-sum-exp of one part, in float32."""
    return 4 * queries * heads * (dim + 1)
