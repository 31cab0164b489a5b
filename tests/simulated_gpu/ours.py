"""Kernels of this package, by torch: interpreted a server that runs them takes minutes to start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rotate_token(
    *,
    qkv: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    eps: float,
    **constants: Any,
) -> None:
    """Our own, by its torch twin: a program for every token is slow to interpret."""
    from llada_sglang.kernels import rotary

    dtype = {0: keys.dtype, 2: torch.float8_e5m2, 3: torch.float8_e4m3fn}[constants["FLOAT8"]]
    heads, kv_heads, dim, half = (constants[n] for n in ("HEADS", "KV_HEADS", "DIM", "HALF"))
    norm = None
    if query_weight is not None and key_weight is not None:
        norm = rotary.QueryKeyNorm(query_weight, key_weight, eps)
    queries.copy_(
        rotary.rotated_and_stored(
            qkv,
            positions,
            cos_sin,
            rotary.HeadShape(heads, kv_heads, dim, 2 * half),
            rotary.KVTarget(keys.view(dtype), values.view(dtype), slots, key_scale, value_scale),
            norm,
        )
    )


def reduce_columns(
    *,
    logits: Tensor,
    maximum: Tensor,
    token: Tensor,
    sum_exp: Tensor,
    shard: int,
    chunk: int,
    vocab_start: int,
    mask_column: int,
    **constants: Any,
) -> None:
    """Our own: max, argmax and sum of exp of each chunk of columns of each row."""
    x = logits.float()
    x = torch.where(x.isnan(), -torch.inf, x)
    if 0 <= mask_column < shard:
        x[:, mask_column] = -torch.inf
    for split in range(len(maximum) // len(x)):
        part = x[:, split * chunk : (split + 1) * chunk]
        peak, column = part.max(dim=1)
        scaled = torch.where(part == peak[:, None], 0.0, part - peak[:, None])
        total = torch.where(part == -torch.inf, 0.0, scaled.exp()).sum(dim=1)
        mine = slice(split * len(x), (split + 1) * len(x))
        maximum[mine] = peak
        token[mine] = column + split * chunk + vocab_start
        sum_exp[mine] = torch.where(peak == torch.inf, peak, total)


def route_block(
    *,
    logits: Tensor,
    expert_bias: Tensor,
    weights: Tensor,
    ids: Tensor,
    **constants: Any,
) -> None:
    """By its torch twin."""
    from llada_sglang.models.torch_moe import route_blocks

    names = {"block_size": "BLOCK", "expert_capacity": "CAPACITY", "top_k": "TOP_K"}
    sizes = {name: constants[constant] for name, constant in names.items()}
    found, taken = route_blocks(logits, expert_bias, **sizes)
    weights.copy_(found)
    ids.copy_(taken)


TRITON: dict[str, Callable[..., Any]] = {
    "_rotate_token": rotate_token,
    "_reduce_columns": reduce_columns,
    "_route_block": route_block,
}
"""As the registries of kernels.py, which they become a part of."""
