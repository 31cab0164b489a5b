"""Block rows on FlashInfer's paged prefill kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flashinfer.cascade import merge_state
from flashinfer.prefill import get_batch_prefill_module
from torch import Tensor

from llada_sglang.attention.flashinfer_wrapper import (
    INT_WORKSPACE,
    TEMPLATE,
    Heads,
    PlanStaging,
    RowPrefillWrapper,
)
from llada_sglang.attention.page_indices import write_page_list
from llada_sglang.attention.paged_plan import (
    TILED_PREFIX_MIN,
    PagedPlan,
    RowBatch,
    Tiling,
    blocks_per_tile,
    plan_rows,
    segment_ints,
    segment_views,
    upload,
)

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class FlashInferRows:
    """Plans and attends the rows of one forward after the other."""

    def __init__(
        self,
        *,
        req_to_token: Tensor,
        page_size: int,
        block: int,
        heads: Heads,
        workspace: Tensor,
        max_context: int,
        tile: int | None = None,
        min_prefix: int = TILED_PREFIX_MIN,
        merge: Merge = merge_state,
    ) -> None:
        """workspace: uint8, for partial results of long contexts. tile: most blocks of a tile,
        as many as fill the kernel's by default. min_prefix: fewest positions a tile shares."""
        self.block = block
        self._req_to_token = req_to_token
        self._page_size = page_size
        self._heads = heads
        self._workspace = workspace
        self._device = workspace.device
        self._max_pages = -(-max_context // page_size)
        self.tiling = Tiling(
            block=block,
            page_size=page_size,
            tile=blocks_per_tile(heads.query, heads.kv, block) if tile is None else tile,
            min_prefix=min_prefix,
        )
        self._merge = merge
        self._module = get_batch_prefill_module(
            TEMPLATE, heads.q_dtype, heads.kv_dtype, heads.q_dtype, torch.int32,
            heads.dim, heads.dim, 0, False, False, False,
        )  # fmt: skip
        self._staging = PlanStaging(self._device)
        self._integers = self._new_integers()
        self._rows = RowPrefillWrapper(self._module, workspace, self._integers)
        self._prefix: RowPrefillWrapper | None = None
        self._tokens: Tensor | None = None
        self._graphs: dict[int, RowPrefillWrapper] = {}
        self._current = self._rows

    def plan(self, batch: RowBatch) -> None:
        """Plan an eager forward; the layers' `attend` calls follow."""
        self._current, self._tokens = self._rows, None
        tiles = self.tiling.of(batch)
        if tiles is None:
            plan = plan_rows(batch.kv_lens_host, block=self.block, page_size=self._page_size)
            self._load(self._rows, plan, batch.requests)
            return
        if self._prefix is None:
            # Both plans of a forward are read by every layer.
            self._prefix = RowPrefillWrapper(self._module, self._workspace, self._new_integers())
        self._load(self._rows, tiles.tails, batch.requests)
        self._load(self._prefix, tiles.prefix, batch.requests)
        self._tokens = tiles.tokens.to(self._device, non_blocking=True)

    def init_graphs(self, max_rows: int) -> None:
        """Allocate what graphs of up to so many rows read; forget earlier graphs."""
        self._graphs.clear()
        need = split_workspace_bytes(
            max_rows, block=self.block, heads=self._heads, processors=_processors(self._device)
        )
        self._graph_workspace = self._workspace
        if self._workspace.nbytes < need:
            self._graph_workspace = torch.empty(need, dtype=torch.uint8, device=self._device)
        self._graph_segments = torch.zeros(
            segment_ints(max_rows), dtype=torch.int32, device=self._device
        )
        self._graph_pages = torch.zeros(
            max_rows * self._max_pages, dtype=torch.int32, device=self._device
        )

    def plan_graph(self, batch: RowBatch, *, capture: bool) -> None:
        """Plan a forward that is captured into, or replayed from, the graph of its row count."""
        rows = batch.rows
        if capture:
            views = segment_views(self._graph_segments, rows)
            self._graphs[rows] = RowPrefillWrapper(
                self._module,
                self._graph_workspace,
                self._integers,
                qo_indptr_buf=views.qo_indptr,
                paged_kv_indptr_buf=views.kv_indptr,
                paged_kv_indices_buf=self._graph_pages,
                paged_kv_last_page_len_buf=views.last_page_len,
            )
        self._current, self._tokens = self._graphs[rows], None
        plan = plan_rows(batch.kv_lens_host, block=self.block, page_size=self._page_size)
        self._load(
            self._current, plan, batch.requests, into=self._graph_segments, pages=self._graph_pages
        )

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float,
        k_scale: float | None = None,
        v_scale: float | None = None,
    ) -> Tensor:
        """Attend the planned rows of one layer, whose K and V the pool already holds.

        query: [rows * block, heads, dim]; keys, values: [pages, page_size, kv heads, dim].
        Returns the output like the query.
        """
        call: dict[str, Any] = {"scaling": scaling, "k_scale": k_scale, "v_scale": v_scale}
        cache = (keys, values)
        if self._tokens is None:
            return self._current.attend(query, cache, **call)
        assert self._prefix is not None
        tokens = self._tokens
        out, lse = self._current.attend(query, cache, **call, return_lse=True)
        shared, shared_lse = self._prefix.attend(query[tokens], cache, **call, return_lse=True)
        out[tokens] = self._merge(shared, shared_lse, out[tokens], lse[tokens])[0]
        return out

    def _load(
        self,
        wrapper: RowPrefillWrapper,
        plan: PagedPlan,
        requests: Tensor,
        into: Tensor | None = None,
        pages: Tensor | None = None,
    ) -> None:
        segments = upload(plan, self._page_size, self._device, into)
        if pages is None:
            pages = torch.empty(plan.pages, dtype=torch.int32, device=self._device)
        write_page_list(
            self._req_to_token,
            requests if plan.segments == len(requests) else requests[segments.rows],
            segments.first_page,
            segments.kv_indptr,
            pages,
            page_size=self._page_size,
            max_pages=plan.max_pages,
        )
        wrapper.load(
            plan,
            segments,
            pages,
            heads=self._heads,
            page_size=self._page_size,
            uniform=self.block if wrapper.is_cuda_graph_enabled else 0,
            staging=self._staging,
        )

    def _new_integers(self) -> Tensor:
        return torch.empty(INT_WORKSPACE, dtype=torch.uint8, device=self._device)


def split_workspace_bytes(rows: int, *, block: int, heads: Heads, processors: int) -> int:
    """Float workspace a captured forward of so many rows needs, as FlashInfer's plan reserves it.

    A graph always splits contexts, and its programs, two per multiprocessor or one per query tile,
    keep a float32 partial output and log-sum-exp of every query. processors: multiprocessors.
    Source: `PrefillPlanImpl` in flashinfer/attention/scheduler.cuh.
    """
    packed = block * heads.group
    tile = 128 if packed > 64 and heads.dim < 256 else 64 if packed > 16 else 16
    programs = max(2 * processors // heads.kv, rows * -(-packed // tile))
    queries = -(-programs * tile // heads.group)
    return heads.query * queries * (heads.dim + 1) * 4 + 32


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
