"""The CPU attention backend: block rows for diffusion models, the host's torch code otherwise."""

from __future__ import annotations

from math import gcd
from typing import Any

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from llada_sglang.attention.rows import RequestGroup, attend, plan_rows


class BlockRowTorchBackend(TorchNativeAttnBackend):  # type: ignore[misc]
    """torch_native, except that DLLM_EXTEND forwards cost q_len x kv_len per row.

    The host's backend pads the queries of a row to its kv_len. K and V are written to the pool
    before anything is read, so rows of one request see each other within a forward.
    """

    reads_pool = True
    """Keys and values of the forward itself are read from the pool as well."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._page_size = int(model_runner.page_size)
        self._unit = 1
        self._groups: tuple[RequestGroup, ...] = ()

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self._groups = ()
        if not forward_batch.forward_mode.is_dllm_extend():
            return
        kv_lens = _as_list(forward_batch.seq_lens_cpu, forward_batch.seq_lens)
        q_lens = _as_list(forward_batch.extend_seq_lens_cpu, forward_batch.extend_seq_lens)
        self._unit = gcd(self._page_size, *kv_lens)
        self._groups = plan_rows(
            forward_batch.req_pool_indices.tolist(),
            kv_lens,
            q_lens,
            self.req_to_token_pool.req_to_token,
            self._unit,
        )

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> Tensor:
        ours = (
            forward_batch.forward_mode.is_dllm_extend()
            and layer.attn_type == AttentionType.ENCODER_ONLY
            and not layer.is_cross_attention
            and not self.use_sliding_window_kv_pool
        )
        if not ours:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache and k is not None and v is not None:
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v
            )
        out = attend(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            self._groups,
            self._unit,
            layer.scaling,
        )
        return out.reshape(q.shape[0], -1)


def _as_list(on_host: Any, on_device: Tensor) -> list[int]:
    if on_host is None:
        on_host = on_device
    values = on_host.tolist() if isinstance(on_host, Tensor) else on_host
    return [int(value) for value in values]
