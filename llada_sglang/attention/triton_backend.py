"""`--attention-backend triton` for block rows."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from torch import Tensor

from llada_sglang.attention.host_forwards import BlockRowForwards
from llada_sglang.attention.triton_rows import TritonRows


class BlockRowTritonBackend(BlockRowForwards, TritonAttnBackend):  # type: ignore[misc]
    """The host's backend, with block rows through its kernel that reads everything from the pool.

    The host's own DLLM_EXTEND keeps one entry per request in its buffers, and a forward has
    more rows than requests may run.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._rows: TritonRows = TritonRows(
            req_to_token=self.req_to_token,
            page_size=self.page_size,
            block=model_runner.decode_num_tokens_per_req(),
            max_context=self.max_context_len,
            kernel=self.extend_attention_fwd_unified,
        )

    def _attend(self, query: Tensor, layer: Any) -> Tensor:
        return self._rows.attend(
            query,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            scaling=layer.scaling,
            k_scale=layer.k_scale_float,
            v_scale=layer.v_scale_float,
        )
