"""Round-to-nearest quantisation of linear weights, in the layouts checkpoints store.

Each takes a weight [out, in] and returns the stored tensors by the last part of their names, and
the weight they stand for, float32 [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llada_sglang.quantization import read_scheme

GROUP = 128
FP8_MAX = 448.0
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Quantiser = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]

FP8_BLOCKS: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [GROUP, GROUP],
}
FP8_TENSOR: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "zero_point": True,
    "version": "gemm",
}
GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "sym": True,
    "desc_act": False,
}


def fp8_blocks(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale per block of 128 x 128; both sizes divisible by that."""
    out, width = weight.shape
    blocks = weight.float().view(out // GROUP, GROUP, width // GROUP, GROUP)
    scale = blocks.abs().amax(dim=(1, 3)) / FP8_MAX
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (stored.float() * scale[:, None, :, None]).view(out, width)
    return {"weight": stored.view(out, width), "weight_scale_inv": scale}, meant


def fp8_tensor(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale."""
    scale = weight.float().abs().amax() / FP8_MAX
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits with a zero per group of 128 inputs, eight outputs to a word in AWQ's order."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).half()
    zero = (-low / scale).round().clamp(0, 15)
    levels = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    meant = ((levels - zero[..., None]) * scale[..., None].float()).view(weight.shape)
    stored = {
        "qweight": _packed(levels.view(weight.shape).T, AWQ_ORDER),
        "qzeros": _packed(zero.T, AWQ_ORDER),
        "scales": scale.T.contiguous(),
    }
    return stored, meant


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits around 8, eight inputs to a word; zeros are stored less one."""
    out, width = weight.shape
    groups = weight.float().view(out, -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).half()
    levels = (groups / scale[..., None] + 8).round().clamp(0, 15)
    meant = ((levels - 8) * scale[..., None].float()).view(out, width)
    in_order = tuple(range(8))
    stored = {
        "qweight": _packed(levels.view(out, width), in_order).T.contiguous(),
        "qzeros": _packed(torch.full((width // GROUP, out), 7.0), in_order),
        "scales": scale.T.contiguous(),
        "g_idx": torch.arange(width, dtype=torch.int32) // GROUP,
    }
    return stored, meant


QUANTISERS: dict[str, tuple[dict[str, Any], Quantiser]] = {
    "fp8 in blocks": (FP8_BLOCKS, fp8_blocks),
    "fp8 per tensor": (FP8_TENSOR, fp8_tensor),
    "awq": (AWQ, awq),
    "gptq": (GPTQ, gptq),
}


def quantised(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], quantise: Quantiser
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A whole checkpoint and the unquantised one it stands for. config: quantization_config."""
    scheme = read_scheme(config)
    assert scheme is not None
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or tensor.dim() != 2 or not scheme.quantises(module):
            stored[name] = meant[name] = tensor
            continue
        parts, meant[name] = quantise(tensor)
        stored |= {f"{module}.{part}": value for part, value in parts.items()}
    return stored, meant


def _packed(levels: Tensor, order: tuple[int, ...]) -> Tensor:
    """int32 [rows, columns / 8]: nibble i holds column `order[i]` of each eight."""
    eights = levels.long().reshape(levels.shape[0], -1, 8)[..., list(order)]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()
