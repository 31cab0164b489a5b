"""LLaDA2 MoE in plain torch: the definition the engine is held to, and what nano is trained with.

Slow and obvious by default. `fast=True` computes the same function with fused attention and the
experts run over sorted segments; the trainer uses it and a test keeps the two equal.
Source of names and maths: sglang/srt/models/llada2.py (0.5.23); LLaDA2.0 report, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llada_sglang.reference.config import ModelShape
from llada_sglang.reference.moe import GatedMLP, MoE


def block_causal_mask(length: int, block_size: int) -> Tensor:
    """bool [length, length]: position i sees position j iff i // B >= j // B (LLaDA2.0, eq. 3)."""
    block = torch.arange(length) // block_size
    return block[:, None] >= block[None, :]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [..., rotary_dim / 2], for int positions [...]."""
    exponent = torch.arange(0, rotary_dim, 2, device=positions.device).float() / rotary_dim
    angle = positions.float()[..., None] * (1.0 / theta**exponent)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half on the first dimensions of x [rows, heads, length, head_dim]; the rest pass."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [rest], dim=-1)


class Attention(nn.Module):
    """Fused Q|K|V, per-head RMSNorm on Q and K before the partial rotary, grouped KV heads."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.head_dim
        total = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * width
        self.query_key_value = nn.Linear(shape.hidden_size, total, bias=False)
        self.query_layernorm = RMSNorm(width, shape.rms_norm_eps)
        self.key_layernorm = RMSNorm(width, shape.rms_norm_eps)
        self.dense = nn.Linear(shape.num_attention_heads * width, shape.hidden_size, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, *, fast: bool
    ) -> Tensor:
        """x [rows, length, hidden]; mask bool [rows, length, length], True where q sees k."""
        rows, length, _ = x.shape
        heads, kv_heads = self.shape.num_attention_heads, self.shape.num_key_value_heads
        mixed = self.query_key_value(x).view(rows, length, heads + 2 * kv_heads, -1)
        query, key, value = mixed.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        query = rotate(self.query_layernorm(query), *angles)
        key = rotate(self.key_layernorm(key), *angles)
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
        scale = self.shape.head_dim**-0.5
        if fast:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask[:, None], scale=scale
            )
        else:
            scores = (query @ key.transpose(-1, -2)).float() * scale
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
            out = scores.softmax(-1).to(value.dtype) @ value
        return self.dense(out.transpose(1, 2).reshape(rows, length, -1))


class Layer(nn.Module):
    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.attention = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        dense = index < shape.first_k_dense_replace
        self.mlp: GatedMLP | MoE = (
            GatedMLP(shape.hidden_size, shape.intermediate_size) if dense else MoE(shape)
        )

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        block: Tensor | None,
        *,
        fast: bool,
    ) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), angles, mask, fast=fast)
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, block, fast=fast) if isinstance(self.mlp, MoE) else self.mlp(y))


class Backbone(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class LLaDA2(nn.Module):
    """The whole model. Parameter names are those of the HF checkpoint, but for stacked experts."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        *,
        group: Tensor | None = None,
        select: Tensor | None = None,
        fast: bool = False,
    ) -> Tensor:
        """Logits in float32.

        input_ids, positions: int64 [rows, length]. mask: bool [rows, length, length], True where
        the query (second axis) may see the key (third); every query must see at least one key.
        group: int64 [rows, length], not negative: tokens of a row with the same number are one
        block to the router. Needed where the shape has an expert_capacity, else it does nothing.
        select: bool [rows, length]; with it the result is [selected, vocab], else
        [rows, length, vocab]. There is no cache: every call computes every position.
        """
        x = self.model.word_embeddings(input_ids)
        angles = rotary_angles(positions, self.shape.rotary_dim, self.shape.rope_theta)
        block = None
        if group is not None and self.shape.expert_capacity is not None:
            row = torch.arange(len(group), device=group.device)[:, None]
            numbers = row * (group.max() + 1) + group
            block = numbers.flatten().unique(return_inverse=True)[1]
        for layer in self.model.layers:
            x = layer(x, angles, mask, block, fast=fast)
        if select is not None:
            x = x[select]
        return self.lm_head(self.model.norm(x)).float()

    @torch.no_grad()
    def block_causal_logits(self, input_ids: Tensor, block_size: int) -> Tensor:
        """float32 [length, vocab] for one sequence int64 [length], the slow and obvious way."""
        length = len(input_ids)
        mask = block_causal_mask(length, block_size).to(input_ids.device)
        positions = torch.arange(length, device=input_ids.device)
        group = positions // block_size
        return self(input_ids[None], positions[None], mask[None], group=group[None])[0]
