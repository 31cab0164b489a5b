"""Block rows on the host's Triton kernel that reads all keys and values from the pool.

The host's usual pair of passes takes a row's own K and V as dense tensors and only what is before
from the pool; its unified kernel reads both from the pool, as block rows want it. The kernel gives
each query head its own program of up to 128 queries, of which a row fills 32: a fallback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llada_sglang.attention.page_indices import write_page_list
from llada_sglang.attention.paged_plan import (
    DeviceSegments,
    RowBatch,
    plan_rows,
    segment_ints,
    upload,
)


class TritonRows:
    """Plans and attends the rows of one forward after the other."""

    def __init__(
        self,
        *,
        req_to_token: Tensor,
        page_size: int,
        block: int,
        max_context: int,
        kernel: Callable[..., Any],
    ) -> None:
        """kernel: `extend_attention_fwd_unified` of the host."""
        self.block = block
        self.tiling = None  # the host's kernel returns no log-sum-exp to merge tiles by
        self._req_to_token = req_to_token
        self._device = req_to_token.device
        self._page_size = page_size
        self._max_context = max_context
        self._kernel = kernel

    def plan(self, batch: RowBatch) -> None:
        """Plan an eager forward; the layers' `attend` calls follow."""
        self._segments = self._load(batch)

    def init_graphs(self, max_rows: int) -> None:
        """Allocate what graphs of up to so many rows read."""
        device, slots = self._device, max_rows * self._max_context
        self._graph_segments = torch.zeros(segment_ints(max_rows), dtype=torch.int32, device=device)
        # 64 bits: the kernel multiplies a slot by the pool's stride in the slot's own dtype.
        self._graph_slots = torch.zeros(slots, dtype=torch.int64, device=device)

    def plan_graph(self, batch: RowBatch, *, capture: bool) -> None:
        """Plan a forward that is captured into, or replayed from, the graph of its row count."""
        self._segments = self._load(batch, self._graph_segments, self._graph_slots)

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

        query: [rows * block, heads, dim]; keys, values: [slots, kv heads, dim]. Returns the output
        like the query.
        """
        segments, slots = self._segments
        out = torch.empty_like(query)
        self._kernel(
            query,
            out,
            keys,
            values,
            1.0 if k_scale is None else k_scale,
            1.0 if v_scale is None else v_scale,
            segments.qo_indptr,
            segments.kv_indptr,
            slots,
            segments.kv_lens,  # of the prefix; without a causal mask only loaded
            self.block,
            sm_scale=scaling,
            is_causal=False,
            page_size=self._page_size,
        )
        return out

    def _load(
        self, batch: RowBatch, into: Tensor | None = None, slots: Tensor | None = None
    ) -> tuple[DeviceSegments, Tensor]:
        """The kernel takes slots, which are pages of one position."""
        plan = plan_rows(batch.kv_lens_host, block=self.block, page_size=1)
        segments = upload(plan, 1, self._device, into)
        if slots is None:
            slots = torch.empty(plan.pages, dtype=torch.int64, device=self._device)
        write_page_list(
            self._req_to_token,
            batch.requests,
            segments.first_page,
            segments.kv_indptr,
            slots,
            page_size=1,
            max_pages=plan.max_pages,
        )
        return segments, slots
