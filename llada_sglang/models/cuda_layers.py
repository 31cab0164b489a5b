"""Layers of LLaDA2 with the package's kernels, for NVIDIA GPUs; in batches of block rows only."""

from __future__ import annotations

from typing import Any, cast

import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.srt.models import llada2 as host
from torch import Tensor

from llada_sglang.kernels.rotary import HeadShape, KVTarget, QueryKeyNorm, rotate_and_store


class FusedRotaryAttention(host.LLaDA2MoeAttention):  # type: ignore[misc]
    """QK-norm, partial rotary and the KV store as one launch, where the host has four.

    Only under a backend that reads all keys and values from the pool (`reads_pool`): one that
    takes the current ones from its arguments would get none.
    """

    def forward(self, positions: Tensor, hidden_states: Tensor, forward_batch: Any) -> Tensor:
        """As the host's. positions: int64 [tokens]; hidden_states: [tokens, hidden]."""
        backend = get_attn_backend()
        if (
            hidden_states.shape[0] == 0
            or not forward_batch.forward_mode.is_dllm_extend()
            or not getattr(backend, "reads_pool", False)
            or not self._stores_plainly(backend.token_to_kv_pool)
        ):
            return cast(Tensor, super().forward(positions, hidden_states, forward_batch))
        qkv, _ = self.query_key_value(hidden_states)
        norm = None
        if self.use_qk_norm:
            norm = QueryKeyNorm(
                self.query_layernorm.weight,
                self.key_layernorm.weight,
                self.query_layernorm.variance_epsilon,
            )
        layer, pool = self.attn.layer_id, backend.token_to_kv_pool
        queries = rotate_and_store(
            qkv,
            positions,
            self.rotary_emb.cos_sin_cache,
            HeadShape(self.num_heads, self.num_kv_heads, self.head_dim, self.rotary_dim),
            KVTarget(
                pool.get_key_buffer(layer),
                pool.get_value_buffer(layer),
                forward_batch.out_cache_loc,
                self.attn.k_scale,
                self.attn.v_scale,
            ),
            norm,
        )
        context = self.attn(queries, None, None, forward_batch, save_kv_cache=False)
        return cast(Tensor, self.dense(context)[0])

    def _stores_plainly(self, pool: Any) -> bool:
        """Whether the kernel writes what the host's rotary embedding and pool would."""
        return (
            type(pool) is MHATokenToKVPool
            and pool.kv_cache_layout == "nhd"
            and not pool.is_quantized_kv_cache
            and type(self.rotary_emb) is RotaryEmbedding
            and bool(self.rotary_emb.is_neox_style)
            and self.rotary_emb.cos_sin_cache.dtype == torch.float32
        )


class FusedBlockRouting(host.LLaDA2MoeSparseMoeBlock):  # type: ignore[misc]
    """Block routing in one launch; the host's second one follows ids that were never written
    where the logits of a block are NaN."""

    def _block_topk(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        # Here and not above: a machine without a GPU need not have Triton.
        from llada_sglang.kernels.block_routing import fused_route_blocks

        return fused_route_blocks(
            router_logits,
            self.correction_bias,
            block_size=self.block_size,
            expert_capacity=self.expert_capacity,
            top_k=self.top_k,
        )


def use_fused_kernels(model: host.LLaDA2MoeModel) -> None:
    """Turn the layers of a model into the subclasses above, which add behaviour and no state."""
    # The host builds its parts by global name and takes no factory.
    for layer in model.layers:
        if type(attention := getattr(layer, "attention", None)) is host.LLaDA2MoeAttention:
            attention.__class__ = FusedRotaryAttention
        block: Any = getattr(layer, "mlp", None)
        if type(block) is host.LLaDA2MoeSparseMoeBlock and block.use_block_routing:
            block.__class__ = FusedBlockRouting
