"""QK-norm, partial rotary and KV store in one launch: one program is one token.

Torch, and the host where rotary is partial, take four: norm, rotation, store, and a copy of the
queries that attention can read. Here the projection is read once, and what is written is written
where it is read from next.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llada_sglang.kernels.rotary import FLOAT8, HeadShape, KVTarget, QueryKeyNorm

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ELEMENTS_PER_WARP = 512
"""Of queries: 16 per thread, two 16-byte loads of bfloat16."""


@triton.jit
def _float8(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr):  # noqa: N803
    """Bits of the nearest float8, ties to even, LARGEST for what is greater; x: float32.

    In integers and not by a conversion, which an A100 has none of for e4m3.
    """
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(x), LARGEST)
    bits = size.to(tl.int32, bitcast=True)
    cut: tl.constexpr = 23 - MANTISSA
    odd = (bits >> cut) & 1
    normal = ((bits + ((1 << (cut - 1)) - 1) + odd) >> cut) - ((127 - BIAS) << MANTISSA)
    # Added to this number, a subnormal loses the bits below its quantum, rounded.
    magic: tl.constexpr = 2.0 ** (24 - BIAS - MANTISSA)
    shifted = (size + magic).to(tl.int32, bitcast=True)
    magic_bits: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23
    small = size < 2.0 ** (1 - BIAS)
    code = tl.where(small, shifted - magic_bits, normal)
    code = tl.where(x == x, code, 0x7F)
    return (code | sign).to(tl.uint8)


@triton.jit
def _write(
    pool,
    x,
    scale,
    inside,
    FLOAT8: tl.constexpr,  # noqa: N803
    LARGEST: tl.constexpr,  # noqa: N803
):
    """Store x at `pool`, divided by the scale behind `scale` if there is one.

    FLOAT8: mantissa bits of the pool's float8, 0 where it has another dtype.
    """
    if scale is not None:
        x = tl.div_rn(x.to(tl.float32), tl.load(scale)).to(x.dtype)
    if FLOAT8 == 0:
        tl.store(pool, x.to(pool.dtype.element_ty), mask=inside)
    elif FLOAT8 == 3:
        tl.store(pool, _float8(x.to(tl.float32), 3, 7, LARGEST), mask=inside)
    else:
        tl.store(pool, _float8(x.to(tl.float32), 2, 15, LARGEST), mask=inside)


@triton.jit
def _normalised(x, factor, weight, dim, inside):
    """x times factor and weight, rounded to its dtype, as where each step writes its result."""
    if weight is not None:
        own = tl.load(weight + dim, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * factor * own).to(x.dtype)
    return x


@triton.jit
def _squares(x):
    wide = x.to(tl.float32)
    return tl.sum(wide * wide, axis=1)


@triton.jit
def _move_heads(
    source,
    target,
    weight,
    angles,
    scale,
    real,
    eps,
    HEADS: tl.constexpr,  # noqa: N803
    HEADS_WIDTH: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
    HALF_WIDTH: tl.constexpr,  # noqa: N803
    REST_WIDTH: tl.constexpr,  # noqa: N803
    FLOAT8: tl.constexpr,  # noqa: N803
    LARGEST: tl.constexpr,  # noqa: N803
):
    """Normalise heads [HEADS, DIM] behind `source`, rotate them, and write them to `target`.

    In three parts, both halves of what is rotated and the rest, so that every load is contiguous.
    """
    head = tl.arange(0, HEADS_WIDTH)[:, None]
    dim = tl.arange(0, HALF_WIDTH)[None, :]
    turning = dim < HALF
    inside = (head < HEADS) & turning
    place = head * DIM + dim
    first = tl.load(source + place, mask=inside, other=0.0)
    second = tl.load(source + place + HALF, mask=inside, other=0.0)
    total = _squares(first) + _squares(second)
    if REST_WIDTH > 0:
        rest_dim = 2 * HALF + tl.arange(0, REST_WIDTH)[None, :]
        rest_place = head * DIM + rest_dim
        rest_inside = (head < HEADS) & (rest_dim < DIM)
        rest = tl.load(source + rest_place, mask=rest_inside, other=0.0)
        total += _squares(rest)
    factor = tl.rsqrt(total / DIM + eps)[:, None]

    x = _normalised(first, factor, weight, dim, turning).to(tl.float32)
    y = _normalised(second, factor, weight, dim + HALF, turning).to(tl.float32)
    cos = tl.load(angles + dim, mask=turning, other=1.0)
    sin = tl.load(angles + HALF + dim, mask=turning, other=0.0)
    turned = (x * cos - y * sin).to(first.dtype)
    _write(target + place, turned, scale, inside & real, FLOAT8, LARGEST)
    turned = (y * cos + x * sin).to(first.dtype)
    _write(target + place + HALF, turned, scale, inside & real, FLOAT8, LARGEST)
    if REST_WIDTH > 0:
        rest = _normalised(rest, factor, weight, rest_dim, rest_dim < DIM)
        _write(target + rest_place, rest, scale, rest_inside & real, FLOAT8, LARGEST)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_token(
    qkv,
    queries,
    keys,
    values,
    positions,
    slots,
    cos_sin,
    query_weight,
    key_weight,
    key_scale,
    value_scale,
    qkv_stride,
    angle_stride,
    key_stride,
    value_stride,
    pool_slots,
    eps,
    HEADS: tl.constexpr,  # noqa: N803
    HEADS_WIDTH: tl.constexpr,  # noqa: N803
    KV_HEADS: tl.constexpr,  # noqa: N803
    KV_WIDTH: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    DIM_WIDTH: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
    HALF_WIDTH: tl.constexpr,  # noqa: N803
    REST_WIDTH: tl.constexpr,  # noqa: N803
    FLOAT8: tl.constexpr,  # noqa: N803
    LARGEST: tl.constexpr,  # noqa: N803
):
    """Program (token). HALF: of the rotated dimensions; widths are the next powers of two."""
    token = tl.program_id(0).to(tl.int64)
    # A layer of a pool is larger than 2^31 bytes.
    slot = tl.load(slots + token).to(tl.int64)
    real = (slot > 0) & (slot < pool_slots)
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * angle_stride
    source = qkv + token * qkv_stride
    _move_heads(
        source,
        queries + token * (HEADS * DIM),
        query_weight,
        angles,
        None,
        token >= 0,
        eps,
        HEADS,
        HEADS_WIDTH,
        DIM,
        HALF,
        HALF_WIDTH,
        REST_WIDTH,
        0,
        LARGEST,
    )
    source += HEADS * DIM
    _move_heads(
        source,
        keys + slot * key_stride,
        key_weight,
        angles,
        key_scale,
        real,
        eps,
        KV_HEADS,
        KV_WIDTH,
        DIM,
        HALF,
        HALF_WIDTH,
        REST_WIDTH,
        FLOAT8,
        LARGEST,
    )
    source += KV_HEADS * DIM
    head = tl.arange(0, KV_WIDTH)[:, None]
    dim = tl.arange(0, DIM_WIDTH)[None, :]
    inside = (head < KV_HEADS) & (dim < DIM)
    place = head * DIM + dim
    value = tl.load(source + place, mask=inside, other=0.0)
    _write(values + slot * value_stride + place, value, value_scale, inside & real, FLOAT8, LARGEST)


def fused_rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    shape: HeadShape,
    target: KVTarget,
    norm: QueryKeyNorm | None = None,
) -> Tensor:
    """`kernels.rotary.rotate_and_store` in one launch, without a host sync; same arguments.

    Raises ValueError for other shapes, strides or dtypes.
    """
    _check(qkv, positions, cos_sin, shape, target, norm)
    tokens = qkv.shape[0]
    queries = torch.empty(
        (tokens, shape.heads * shape.head_dim), dtype=qkv.dtype, device=qkv.device
    )
    if tokens == 0:
        return queries
    keys, values, float8, largest = target.keys, target.values, 0, 0.0
    if keys.dtype in FLOAT8:
        float8 = 3 if keys.dtype == torch.float8_e4m3fn else 2
        largest = torch.finfo(keys.dtype).max
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    scaled = target.keys.dtype != qkv.dtype
    heads_width = triton.next_power_of_2(shape.heads)
    dim_width = triton.next_power_of_2(shape.head_dim)
    rest = shape.head_dim - shape.rotary_dim
    warps = min(8, max(1, heads_width * dim_width // ELEMENTS_PER_WARP))
    with torch.cuda.device_of(qkv):
        _rotate_token[(tokens,)](
            qkv,
            queries,
            keys,
            values,
            positions,
            target.slots,
            cos_sin,
            None if norm is None else norm.query,
            None if norm is None else norm.key,
            target.key_scale if scaled else None,
            target.value_scale if scaled else None,
            qkv.stride(0),
            cos_sin.stride(0),
            keys.stride(0),
            values.stride(0),
            keys.shape[0],
            0.0 if norm is None else norm.eps,
            HEADS=shape.heads,
            HEADS_WIDTH=heads_width,
            KV_HEADS=shape.kv_heads,
            KV_WIDTH=triton.next_power_of_2(shape.kv_heads),
            DIM=shape.head_dim,
            DIM_WIDTH=dim_width,
            HALF=shape.rotary_dim // 2,
            HALF_WIDTH=triton.next_power_of_2(shape.rotary_dim // 2),
            REST_WIDTH=0 if rest == 0 else triton.next_power_of_2(rest),
            FLOAT8=float8,
            LARGEST=largest,
            num_warps=warps,
        )
    return queries


def _check(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    shape: HeadShape,
    target: KVTarget,
    norm: QueryKeyNorm | None,
) -> None:
    if qkv.dim() != 2 or qkv.shape[1] != shape.packed or qkv.stride(1) != 1:
        raise ValueError(
            f"qkv must be [tokens, {shape.packed}] with contiguous rows, got {list(qkv.shape)} "
            f"with strides {qkv.stride()}."
        )
    if qkv.dtype not in DTYPES:
        raise ValueError(f"qkv must be bfloat16, float16 or float32, got {qkv.dtype}.")
    if shape.rotary_dim % 2 or not 2 <= shape.rotary_dim <= shape.head_dim:
        raise ValueError(
            f"rotary_dim must be even and in [2, {shape.head_dim}], got {shape.rotary_dim}."
        )
    wide = cos_sin.dim() == 2 and cos_sin.shape[1] == shape.rotary_dim and cos_sin.stride(1) == 1
    if not wide or cos_sin.dtype != torch.float32:
        raise ValueError(
            f"cos_sin must be float32 [positions, {shape.rotary_dim}], got {cos_sin.dtype} "
            f"{list(cos_sin.shape)}."
        )
    for name, tensor in (("positions", positions), ("slots", target.slots)):
        whole = tensor.dtype in (torch.int64, torch.int32) and tensor.is_contiguous()
        if tuple(tensor.shape) != (qkv.shape[0],) or not whole:
            raise ValueError(
                f"{name} must be int64 or int32 [{qkv.shape[0]}], contiguous, got {tensor.dtype} "
                f"{list(tensor.shape)}."
            )
    slot = (shape.kv_heads, shape.head_dim)
    for name, pool in (("keys", target.keys), ("values", target.values)):
        packed = pool.dim() == 3 and pool.stride()[1:] == (shape.head_dim, 1)
        if not packed or tuple(pool.shape[1:]) != slot or pool.dtype not in DTYPES + FLOAT8:
            raise ValueError(
                f"{name} must be a floating [slots, {slot[0]}, {slot[1]}] pool with contiguous "
                f"slots, got {pool.dtype} {list(pool.shape)} with strides {pool.stride()}."
            )
    if target.keys.dtype != target.values.dtype or len(target.keys) != len(target.values):
        raise ValueError(
            f"keys and values must be alike, got {target.keys.dtype} {list(target.keys.shape)} and "
            f"{target.values.dtype} {list(target.values.shape)}."
        )
    for name, scale in (("key_scale", target.key_scale), ("value_scale", target.value_scale)):
        if scale is not None and (scale.numel() != 1 or scale.dtype != torch.float32):
            raise ValueError(f"{name} must be one float32, got {scale.dtype} {list(scale.shape)}.")
    for weight in () if norm is None else (norm.query, norm.key):
        if tuple(weight.shape) != (shape.head_dim,) or not weight.is_contiguous():
            raise ValueError(
                f"a norm's weight must be [{shape.head_dim}], got {list(weight.shape)}."
            )
