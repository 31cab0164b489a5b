"""What the kernels for quantised weights compute, in torch: products with experts, fp8, Marlin.

Weights are multiplied by their scales in float32. What a module's own C++ would refuse is asserted
here, as that code is never compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


def _to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantise_groups(x: Tensor, out: Tensor, scales: Tensor) -> None:
    """Each row's groups, as many as `scales` has columns, by their largest element."""
    assert scales.dtype == torch.float32, "packed scales are of other GPUs"
    assert (out.dtype, out.shape, scales.shape[0]) == (FP8, x.shape, len(x))
    groups = x.float().view(len(x), scales.shape[1], -1)
    scale = groups.abs().amax(-1).clamp(min=1e-10) / FP8_MAX
    scales.copy_(scale)
    out.copy_(_to_fp8(groups, scale[..., None]).view_as(x))


def quantise_rows(x: Tensor, out: Tensor, scales: Tensor) -> None:
    assert (out.dtype, scales.dtype, scales.shape) == (FP8, torch.float32, (len(x), 1))
    scales.copy_(x.float().abs().amax(-1, keepdim=True) / FP8_MAX)
    out.copy_(_to_fp8(x, scales.clamp(min=torch.finfo(torch.float32).tiny)))


def quantise_by_scale(x: Tensor, out: Tensor, scale: Tensor) -> None:
    assert (out.dtype, scale.dtype, scale.shape) == (FP8, torch.float32, (1,))
    out.copy_(_to_fp8(x, scale))


def quantise_tensor(x: Tensor, out: Tensor, scale: Tensor) -> None:
    """The scale is a maximum over what it was, which the host sets to zero."""
    scale.copy_(torch.maximum(scale, x.float().abs().max() / FP8_MAX))
    quantise_by_scale(x, out, scale)


def quantise_static(**given: Any) -> None:
    """By a scale of the checkpoint's. Interpreted, a program for every token is slow."""
    x, out, scale, repeated = (given[f"y_{name}ptr"] for name in ("", "q_", "s_", "s_repeat_"))
    assert scale.dtype == torch.float32
    out.copy_(_to_fp8(x, scale).view(out.dtype))
    if given["REPEAT_SCALE"]:
        repeated.fill_(scale.item())


def _by_blocks(x: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    """float32 x * scales, each scale for `rows` by `columns` elements."""
    spread = scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return x.float() * spread[..., : x.shape[-2], : x.shape[-1]]


def block_fp8_matmul(**given: Any) -> None:
    a, b, out, a_scale, b_scale = (given[name] for name in ("A", "B", "C", "As", "Bs"))
    assert a.dtype == b.dtype == FP8
    assert a_scale.dtype == b_scale.dtype == torch.float32
    rows, columns = given["group_n"], given["group_k"]
    out.copy_(_by_blocks(a, a_scale, 1, columns) @ _by_blocks(b, b_scale, rows, columns).T)


def scaled_mm(
    given: Tensor,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> None:
    """a: [m, k], a scale per row or one; b: [k, n], a scale per column or one."""
    product = (a.float() * a_scale.view(-1, 1)) @ (b.float() * b_scale.view(1, -1))
    given.copy_(product if bias is None else product + bias.float())


def torch_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    assert scale_result is None
    assert a.dtype == b.dtype == FP8
    assert a.stride(1) == b.stride(0) == 1
    assert a_scale.dtype == b_scale.dtype == torch.float32
    assert a_scale.shape in ((), (1,), (a.shape[0], 1))
    assert b_scale.shape in ((), (1,), (1, b.shape[1]))
    made = torch.empty(a.shape[0], b.shape[1], dtype=out_dtype or a.dtype)
    scaled_mm(made, a, b, a_scale, b_scale, made.dtype, bias)
    return made


def fused_moe(
    *,
    a_ptr: Tensor,
    b_ptr: Tensor,
    c_ptr: Tensor,
    a_scale_ptr: Tensor | None,
    b_scale_ptr: Tensor | None,
    topk_weights_ptr: Tensor,
    sorted_token_ids_ptr: Tensor,
    expert_ids_ptr: Tensor,
    num_tokens_post_padded_ptr: Tensor,
    num_valid_tokens: int,
    top_k: int,
    **constants: Any,
) -> None:
    """The product of each token with the weights of its experts. Interpreted it takes minutes."""
    for variant in (
        *("a_desc", "b_desc", "bias_ptr", "c_sorted", "MASK_OUTPUT", "use_int8_w8a8"),
        *("use_int8_w8a16", "FUSE_ADD_TO_OUTPUT", "FUSE_SUM_ALL_REDUCE", "FUSE_SWIGLU"),
    ):
        assert constants[variant] is None or constants[variant] is False, variant
    fp8, columns, rows = (constants[name] for name in ("use_fp8_w8a8", "group_k", "group_n"))
    assert fp8 == (a_ptr.dtype == FP8) == (b_ptr.dtype == FP8)
    assert fp8 == (a_scale_ptr is not None) == (b_scale_ptr is not None)

    def weight(expert: int) -> Tensor:
        if b_scale_ptr is None:
            return b_ptr[expert].float()
        if columns and rows:
            return _by_blocks(b_ptr[expert], b_scale_ptr[expert], rows, columns)
        scale = b_scale_ptr[expert].view(-1, 1)
        assert len(scale) == (b_ptr.shape[1] if constants["per_channel_quant"] else 1)
        return b_ptr[expert].float() * scale

    def tokens(at: Tensor) -> Tensor:
        if a_scale_ptr is None:
            return a_ptr[at].float()
        if columns and rows:
            return _by_blocks(a_ptr[at], a_scale_ptr[at], 1, columns)
        scale = a_scale_ptr.view(-1, 1)
        assert len(scale) == (len(a_ptr) if constants["per_channel_quant"] else 1)
        return a_ptr[at].float() * (scale[at] if constants["per_channel_quant"] else scale)

    out, tile = c_ptr.view(-1, c_ptr.shape[-1]), constants["BLOCK_SIZE_M"]
    for block in range(int(num_tokens_post_padded_ptr[0]) // tile):
        slots = sorted_token_ids_ptr[block * tile : (block + 1) * tile].long()
        slots = slots[slots < num_valid_tokens]
        product = tokens(slots // top_k) @ weight(int(expert_ids_ptr[block])).T
        if constants["MUL_ROUTED_WEIGHT"]:
            product = product * topk_weights_ptr.flatten()[slots, None]
        out[slots] = product.to(out.dtype)


COMPILED: dict[str, Callable[..., Any]] = {
    "per_token_group_quant": quantise_groups,
    "per_token_quant_fp8": quantise_rows,
    "per_tensor_quant_fp8<true>": quantise_by_scale,
    "per_tensor_quant_fp8<false>": quantise_tensor,
}
OPERATORS: dict[str, Callable[..., Any]] = {"sgl_kernel::fp8_scaled_mm": scaled_mm}
TRITON: dict[str, Callable[..., Any]] = {
    "fused_moe_kernel": fused_moe,
    "_w8a8_block_fp8_matmul": block_fp8_matmul,
    "_static_quant_fp8": quantise_static,
}
ONLY_ON_GPU: dict[str, Callable[..., Any]] = {"aten::_scaled_mm": torch_scaled_mm}
"""As the registries of kernels.py, which they become a part of."""
