"""`--attention-backend flashinfer` for block rows."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend
from sglang.srt.mem_cache.layout.paged_view import paged_kv_view
from torch import Tensor

from llada_sglang.attention.flashinfer_rows import FlashInferRows
from llada_sglang.attention.flashinfer_wrapper import Heads
from llada_sglang.attention.host_forwards import BlockRowForwards


class BlockRowFlashInferBackend(BlockRowForwards, FlashInferAttnBackend):  # type: ignore[misc]
    """The host's backend, with block rows through the paged prefill kernel by whole pages.

    The host plans DLLM_EXTEND by slots, in buffers of one entry per request, and reads its
    indptr back from the device at each plan.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner, init_new_workspace=model_runner.init_new_workspace)
        heads = self.indices_updater_prefill
        self._rows: FlashInferRows = FlashInferRows(
            req_to_token=self.req_to_token_pool.req_to_token,
            page_size=self.page_size,
            block=model_runner.decode_num_tokens_per_req(),
            heads=Heads(
                query=heads.num_qo_heads,
                kv=heads.num_kv_heads,
                dim=heads.head_dim,
                q_dtype=heads.q_data_type,
                kv_dtype=heads.data_type,
            ),
            workspace=self.workspace_buffer,
            max_context=self.max_context_len,
        )

    def _attend(self, query: Tensor, layer: Any) -> Tensor:
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        return self._rows.attend(
            query,
            paged_kv_view(keys, self.page_size, layer.tp_k_head_num, layer.head_dim),
            paged_kv_view(values, self.page_size, layer.tp_v_head_num, layer.v_head_dim),
            scaling=layer.scaling,
            # Floats: a scale read from the device would be a wait per layer.
            k_scale=layer.k_scale_float,
            v_scale=layer.v_scale_float,
        )
