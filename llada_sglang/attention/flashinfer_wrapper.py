"""FlashInfer's paged prefill wrapper (FlashAttention 2 template), planned without the device.

FlashInfer divides the work of a forward among the device's programs on the host, in `plan`. Its
public `plan` would do, given host tensors, but does not pass on that all rows are as wide, which
in a graph saves up to half of the programs and of the workspace; nor may it be called while the
copy of the plan before is pending, since both use one pinned buffer. Source: flashinfer 0.7.2,
`prefill.py` and `attention/scheduler.cuh`; `fast_prefill_plan` of the host calls it as directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper
from torch import Tensor

from llada_sglang.attention.paged_plan import DeviceSegments, PagedPlan

TEMPLATE = "fa2"
INT_WORKSPACE = 8 << 20
"""Bytes of a plan's integers, as FlashInfer's wrappers allocate them."""

PLANS_IN_FLIGHT = 4
"""Plans whose copies may be pending: two per forward, one forward ahead."""


@dataclass(frozen=True, slots=True)
class Heads:
    """One layer's attention on this rank: numbers of heads, their width, dtypes of Q and of KV."""

    query: int
    kv: int
    dim: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype

    @property
    def group(self) -> int:
        return self.query // self.kv


class PlanStaging:
    """Pinned buffers that plans are written to, each reused only after its copy is done."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._slots = cycle(
            (
                torch.empty(INT_WORKSPACE, dtype=torch.uint8, pin_memory=self._on_gpu),
                torch.cuda.Event() if self._on_gpu else None,
            )
            for _ in range(PLANS_IN_FLIGHT)
        )

    def submit(self, plan: Callable[[Tensor], Any]) -> Any:
        """Call `plan` with a free buffer; it starts the copy on the current stream."""
        buffer, copied = next(self._slots)
        if copied is None:
            return plan(buffer)
        copied.synchronize()
        result = plan(buffer)
        copied.record()
        return result


class RowPrefillWrapper(BatchPrefillWithPagedKVCacheWrapper):
    """FlashInfer's wrapper with a plan made of what the host knows, for non-causal segments."""

    def __init__(self, module: Any, workspace: Tensor, integers: Tensor, **graph: Tensor) -> None:
        """module: of `get_batch_prefill_module`. graph: the buffers of the base class, for a
        wrapper that is captured."""
        super().__init__(workspace, "NHD", use_cuda_graph=bool(graph), backend=TEMPLATE, **graph)
        self._module = self._cached_module = module
        self._int_workspace_buffer = integers
        del self._pin_memory_int_workspace_buffer  # megabytes per wrapper; `PlanStaging` has ours
        self._pos_encoding_mode = "NONE"
        self._use_fp16_qk_reduction = False
        self._window_left = -1
        self._logits_soft_cap = 0.0
        self._rope_scale = self._rope_theta = None
        self._prefix_len_ptr = self._token_pos_in_items_ptr = self._max_item_len_ptr = None
        self._token_pos_in_items_len = 0
        self._causal = False

    def load(
        self,
        plan: PagedPlan,
        segments: DeviceSegments,
        pages: Tensor,
        *,
        heads: Heads,
        page_size: int,
        uniform: int,
        staging: PlanStaging,
    ) -> None:
        """Take a plan for the `attend` calls to come; the host waits for nothing.

        segments, pages: `plan` and its page list on the device. uniform: the width of every
        segment, where a captured wrapper's never change; else 0.
        """
        queries = plan.queries
        self._qo_indptr_buf = segments.qo_indptr
        self._paged_kv_indptr_buf = segments.kv_indptr
        self._paged_kv_indices_buf = pages
        self._paged_kv_last_page_len_buf = segments.last_page_len
        self._qo_indptr_last = queries
        self._max_total_num_rows = queries if self.is_cuda_graph_enabled else None
        self._batch_size = plan.segments
        self._max_q_len = self._max_kv_len = 0  # of other templates
        self._num_qo_heads, self._num_kv_heads = heads.query, heads.kv
        self._cached_q_data_type = self._cached_o_data_type = heads.q_dtype
        self._cached_kv_data_type = heads.kv_dtype
        self._plan_info = staging.submit(
            lambda pinned: self._module.plan(
                self._float_workspace_buffer,
                self._int_workspace_buffer,
                pinned,
                plan.qo_indptr,
                plan.kv_indptr,
                plan.kv_lens,
                queries,
                plan.segments,
                heads.query,
                heads.kv,
                page_size,
                self.is_cuda_graph_enabled,
                heads.dim,
                heads.dim,
                False,  # causal
                -1,  # window_left
                -1,  # fixed_split_size
                False,  # disable_split_kv
                0,  # num_colocated_ctas
                uniform,  # uniform_q_len
            )
        )

    def attend(
        self,
        query: Tensor,
        cache: tuple[Tensor, Tensor],
        *,
        scaling: float,
        k_scale: float | None,
        v_scale: float | None,
        return_lse: bool = False,
    ) -> Any:
        """query: [queries, heads, dim]; cache: K and V, each [pages, page, heads, dim].

        Returns the output like the query, with return_lse also its log-sum-exp to base 2, float32
        [queries, heads].
        """
        self._sm_scale = scaling
        run: Any = self.run
        return run(
            query,
            cache,
            k_scale=k_scale,
            v_scale=v_scale,
            # Left to itself FlashInfer zeroes an output that it then writes.
            out=torch.empty_like(query),
            return_lse=return_lse,
        )
