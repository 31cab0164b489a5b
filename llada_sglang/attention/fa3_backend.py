"""`--attention-backend fa3` for block rows."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention import flashattention_backend as host
from torch import Tensor

from llada_sglang.attention.fa3_rows import FA3Rows
from llada_sglang.attention.host_forwards import BlockRowForwards


class BlockRowFA3Backend(BlockRowForwards, host.FlashAttentionBackend):  # type: ignore[misc]
    """The host's backend, with graphs of block rows, for which it has none, and tiled prefill."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._rows: FA3Rows = FA3Rows(
            req_to_token=self.req_to_token,
            page_size=self.page_size,
            block=model_runner.decode_num_tokens_per_req(),
            query_heads=self.num_attention_heads,
            kv_heads=self.num_kv_heads,
            kv_dtype=self.kv_cache_dtype,
            max_context=self.max_context_len,
            kernel=host.flash_attn_with_kvcache,
            merge=host.merge_state_v2_wrapper,
            processors=torch.cuda.get_device_properties(self.device).multi_processor_count,
            divides=self.num_splits != 1,  # the host's --enable-deterministic-inference
        )

    def graph_attention_bytes(self, rows: int) -> int:
        """As of the mixin; the parts that the keys of a row are divided into."""
        return self._rows.graph_bytes(rows, self.num_attention_heads, self.head_dim)

    def _attend(self, query: Tensor, layer: Any) -> Tensor:
        keys, values = self.get_paged_mha_kv_cache(layer)
        return self._rows.attend(
            query,
            keys,
            values,
            scaling=layer.scaling,
            k_scale=layer.k_scale,
            v_scale=layer.v_scale,
        )
