"""What Marlin's kernels compute, in torch: weights of 4 or 8 bits in the layout they are stored in.

Weights are taken back out of tiles, scales and zero points out of the order that the host's Python
gives them, and multiplied in float32. What the modules' own C++ would refuse is asserted here, as
that code is never compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TILE_K, TILE_N = 16, 64
WORDS = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3, 4, 6, 5, 7)}
"""By bits: which of a thread's eight elements is the i-th that it stores."""
AWQ_PLACES = {4: (0, 4, 1, 5, 2, 6, 3, 7), 8: (0, 2, 1, 3)}
"""By bits: in which place of its word AWQ stores the i-th column."""


def _fields(words: Tensor, bits: int) -> Tensor:
    """int64 [..., words, 32 / bits], the lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    return (words.long()[..., None] >> shifts) & (2**bits - 1)


@functools.cache
def _tile_order(bits: int) -> Tensor:
    """Where in a tile [16, 64] of a weight the elements are that Marlin stores in a row."""
    order = []
    for thread in range(32):
        for warp in range(4):
            for element in WORDS[bits]:
                row = 2 * (thread % 4) + (0, 1, 8, 9)[element % 4]
                column = 16 * warp + thread // 4 + 8 * (element // 4)
                order.append(row * TILE_N + column)
    return torch.tensor(order)


def to_marlin(levels: Tensor, bits: int) -> Tensor:
    """levels: int64 [k, n]. Returns int32 [k / 16, n * 16 * bits / 32]."""
    k, n = levels.shape
    tiles = levels.view(k // TILE_K, TILE_K, n // TILE_N, TILE_N).transpose(1, 2).flatten(2)
    fields = tiles[..., _tile_order(bits)].view(k // TILE_K, -1, 32 // bits)
    words = (fields << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def from_marlin(words: Tensor, bits: int) -> Tensor:
    """The inverse of `to_marlin`."""
    rows = words.shape[0]
    fields = _fields(words, bits).view(rows, -1, TILE_K * TILE_N)
    tiles = torch.empty_like(fields)
    tiles[..., _tile_order(bits)] = fields
    return tiles.view(rows, -1, TILE_K, TILE_N).transpose(1, 2).reshape(rows * TILE_K, -1)


def _check_tiles(k: int, n: int) -> None:
    assert (k % TILE_K, n % TILE_N) == (0, 0), f"{(k, n)} is not made of tiles"


def repack_gptq(words: Tensor, order: Tensor, out: Tensor, k: int, n: int, bits: int) -> None:
    _check_tiles(k, n)
    assert words.shape == (k * bits // 32, n)
    levels = _fields(words, bits).transpose(1, 2).reshape(k, n)
    out.copy_(to_marlin(levels[order.long()] if len(order) else levels, bits))


def repack_awq(out: Tensor, words: Tensor, k: int, n: int, bits: int) -> None:
    _check_tiles(k, n)
    assert words.shape == (k, n * bits // 32)
    out.copy_(to_marlin(_fields(words, bits)[..., list(AWQ_PLACES[bits])].reshape(k, n), bits))


def _scales(scales: Tensor) -> Tensor:
    """float32 [groups, n] of scales in the order of the host's `marlin_permute_scales`."""
    if len(scales) > 1:
        return scales.float().view(-1, 8, 8).transpose(1, 2).reshape(scales.shape)
    order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    return scales.float().view(-1, 32)[:, torch.tensor(order).argsort()].view(scales.shape)


def _zeros(words: Tensor, bits: int) -> Tensor:
    """float32 [groups, n] of zero points in the order of the host's `marlin_zero_points`."""
    places = torch.tensor((0, 2, 4, 6, 1, 3, 5, 7) if bits == 4 else (0, 2, 1, 3)).argsort()
    levels = _fields(words, bits)[..., places]
    return levels.reshape(-1, 8, 8).transpose(1, 2).reshape(len(words), -1).float()


def _weight(words: Tensor, scales: Tensor, zeros: Tensor, group_of: Tensor, kind: int) -> Tensor:
    """float32 [k, n]. group_of: int64 [k], the row of `scales` for each row."""
    from sgl_kernel.scalar_type import scalar_types

    with_zeros = {scalar_types.uint4.id: 4, scalar_types.uint8.id: 8}
    around_half = {scalar_types.uint4b8.id: 4, scalar_types.uint8b128.id: 8}
    bits = (with_zeros if zeros.numel() else around_half)[kind]
    levels = from_marlin(words, bits).float()
    zero = _zeros(zeros, bits)[group_of] if zeros.numel() else float(2 ** (bits - 1))
    return (levels - zero) * _scales(scales)[group_of]


def _group_of(k: int, groups: int, g_idx: Tensor) -> Tensor:
    assert k % groups == 0
    return g_idx.long() if g_idx.numel() else torch.arange(k) // (k // groups)


def marlin_gemm(
    a: Tensor,
    words: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    zeros: Tensor,
    g_idx: Tensor,
    order: Tensor,
    out: Tensor,
    out_tmp: Tensor,
    a_tmp: Tensor,
    workspace: Tensor,
    kind: int,
    is_k_full: bool,
    *reduction: bool,
) -> None:
    """out = a @ weight. order: of the columns of `a`, where the weight's rows are sorted."""
    k, n = a.shape[1], out.shape[1]
    assert (a.stride(1), a.stride(0) % 8) == (1, 0)
    assert (words.dtype, words.shape[0]) == (torch.int32, k // TILE_K)
    assert scales.dtype == out.dtype == a.dtype
    assert scales.shape[1] == n
    assert (k % 64 == 0 and n % 128 == 0) or (k % 128 == 0 and n % 64 == 0)
    assert len(workspace) >= torch.cuda.get_device_properties(0).multi_processor_count
    assert is_k_full
    assert len(g_idx) == len(order)
    assert len(g_idx) in (0, k)
    assert not len(global_scale)
    weight = _weight(words, scales, zeros, _group_of(k, len(scales), g_idx), kind)
    out.copy_((a[:, order.long()] if len(order) else a).float() @ weight)


def marlin_moe_gemm(
    a: Tensor,
    out: Tensor,
    words: Tensor,
    bias: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    zeros: Tensor,
    g_idx: Tensor,
    order: Tensor,
    workspace: Tensor,
    slots_by_expert: Tensor,
    owners: Tensor,
    used: Tensor,
    routed: Tensor,
    a_tmp: Tensor,
    out_tmp: Tensor,
    tile: int,
    top_k: int,
    weigh: bool,
    is_ep: bool,
    kind: int,
    m: int,
    n: int,
    k: int,
    has_order: bool,
    has_bias: bool,
    is_k_full: bool,
    has_zeros: bool,
    groups: int,
    group: int,
    *reduction: bool,
) -> None:
    """The product of each token with the weights of its experts."""
    assert (is_ep, has_bias, is_k_full, len(global_scale)) == (False, False, True, 0)
    assert tile in (8, 16, 32, 48, 64)
    assert (k % 64, n % 128) == (0, 0)
    assert (a.shape, out.shape) == ((m, k), (m * top_k, n))
    assert (words.shape[1], *scales.shape[1:]) == (k // TILE_K, groups, n)
    assert a.dtype == out.dtype == scales.dtype
    assert all(part.is_contiguous() for part in (words, scales, zeros, out, g_idx, order))
    assert has_zeros == bool(zeros.numel())
    assert used.shape == (2,)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    assert len(workspace) >= min(n // 64 * (len(slots_by_expert) // tile), 4 * processors)
    for block in range(int(used[0]) // tile):
        slots = slots_by_expert[block * tile : (block + 1) * tile].long()
        slots = slots[slots < m * top_k]
        expert = int(owners[block])
        own = [part[expert] if part.numel() else part for part in (zeros, g_idx, order)]
        group_of = _group_of(k, groups, own[1])
        tokens = a[slots // top_k].float()
        if has_order:
            tokens = tokens[:, own[2].long()]
        product = tokens @ _weight(words[expert], scales[expert], own[0], group_of, kind)
        if weigh:
            product = product * routed.flatten()[slots, None]
        out[slots] = product.to(out.dtype)


COMPILED: dict[str, Callable[..., Any]] = {
    "gptq_marlin_repack": repack_gptq,
    "awq_marlin_repack": repack_awq,
    "gptq_marlin_gemm": marlin_gemm,
    "moe_wna16_marlin_gemm": marlin_moe_gemm,
}
"""As the registry of kernels.py, which it becomes a part of."""
