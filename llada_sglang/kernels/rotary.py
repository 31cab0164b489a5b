"""From a layer's packed projection to rotated queries, and keys and values in the paged pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one rank. rotary_dim: how much of head_dim is rotated, from its beginning."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int

    @property
    def packed(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True)
class QueryKeyNorm:
    """RMSNorm over each head of queries and keys. query, key: floating [head_dim]."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class KVTarget:
    """Where a layer's keys and values go.

    keys, values: [slots, kv_heads, head_dim], a slot contiguous: the pool of the layer, bfloat16,
    float16, float32, float8_e4m3fn or float8_e5m2; written. slots: int64 or int32 [tokens].
    key_scale, value_scale: float32, one element, on the same device; what goes to a pool of another
    dtype than the projection's is divided by them. None for one.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    shape: HeadShape,
    target: KVTarget,
    norm: QueryKeyNorm | None = None,
) -> Tensor:
    """Normalise and rotate queries and keys, write keys and values to the pool, return queries.

    qkv: bfloat16, float16 or float32 [tokens, shape.packed], rows contiguous; only read. positions:
    int64 or int32 [tokens]. cos_sin: float32 [positions, rotary_dim], cosines before sines, NeoX
    halves: dimension i < rotary_dim / 2 turns with dimension i + rotary_dim / 2.
    Keys and values of a slot outside of (0, slots) are not written: 0 is where the host's graphs
    send what only pads a batch. What float8 cannot hold becomes its largest number.
    Returns [tokens, heads * head_dim] in the dtype of qkv, contiguous.
    On a GPU one Triton launch without a host sync; elsewhere, and in meaning, `rotated_and_stored`.
    Raises ValueError where a tensor is none of these.
    """
    if not qkv.is_cuda:
        return rotated_and_stored(qkv, positions, cos_sin, shape, target, norm)
    # Here and not above: a machine without a GPU need not have Triton.
    from llada_sglang.kernels.rotary_triton import fused_rotate_and_store

    return fused_rotate_and_store(qkv, positions, cos_sin, shape, target, norm)


def rotated_and_stored(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    shape: HeadShape,
    target: KVTarget,
    norm: QueryKeyNorm | None = None,
) -> Tensor:
    """The torch twin of `rotate_and_store`; rounds to the dtype of qkv where the host does."""
    tokens = qkv.shape[0]
    heads = qkv.unflatten(1, (-1, shape.head_dim))
    query, key, value = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    if norm is not None:
        query = _normalised(query, norm.query, norm.eps)
        key = _normalised(key, norm.key, norm.eps)
    turn = cos_sin[positions.long()][:, None, :]
    query = _rotated(query, turn, shape.rotary_dim)
    key = _rotated(key, turn, shape.rotary_dim)
    slots = target.slots.long()
    # On the device this is a host sync, which the kernel does not need.
    real = (slots > 0) & (slots < target.keys.shape[0])
    for pool, new, scale in (
        (target.keys, key, target.key_scale),
        (target.values, value, target.value_scale),
    ):
        stored = _as_stored(new[real], pool.dtype, scale)
        raw = pool.view(torch.uint8) if pool.dtype in FLOAT8 else pool
        raw[slots[real]] = stored.view(raw.dtype)
    return query.reshape(tokens, shape.heads * shape.head_dim)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    factor = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (wide * factor * weight.float()).to(x.dtype)


def _rotated(x: Tensor, turn: Tensor, rotary_dim: int) -> Tensor:
    first, second = x[..., :rotary_dim].float().chunk(2, dim=-1)
    cos, sin = turn.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([turned.to(x.dtype), x[..., rotary_dim:]], dim=-1)


def _as_stored(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    if x.dtype == dtype:
        return x
    if scale is not None:
        # In the dtype of x, as the host's pool does it.
        x = (x.float() / scale).to(x.dtype)
    if dtype in FLOAT8:
        limit = torch.finfo(dtype).max
        x = x.float().clamp(-limit, limit)
    return x.to(dtype)
