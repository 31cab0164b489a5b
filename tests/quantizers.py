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
IN_ORDER = tuple(range(8))
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
FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
FP8_TOKEN: dict[str, Any] = {**FP8, "strategy": "token", "dynamic": True}
INT4: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": GROUP,
    "symmetric": True,
}


def compressed(form: str, weights: Any, inputs: Any) -> dict[str, Any]:
    """The quantization_config of a compressed-tensors checkpoint with one group."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
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


def fp8_static(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale, and one for all activations: up to 56, with three bits down to 2e-3."""
    stored, meant = fp8_tensor(weight)
    return {**stored, "input_scale": torch.tensor(0.125)}, meant


def fp8_channels(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One scale per output."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / FP8_MAX
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits with a zero per group of 128 inputs, eight outputs to a word in AWQ's order."""
    levels, zero, scale, meant = _between_extremes(weight)
    stored = {
        "qweight": _packed(levels.T, AWQ_ORDER),
        "qzeros": _packed(zero.T, AWQ_ORDER),
        "scales": scale.T.contiguous(),
    }
    return stored, meant


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits around 8, eight inputs to a word; zeros are stored less one."""
    return _gptq(weight, torch.arange(weight.shape[1]))


def gptq_ordered(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same with groups of inputs that do not lie together, alike in all layers of one width."""
    width = weight.shape[1]
    return _gptq(weight, torch.randperm(width, generator=torch.Generator().manual_seed(width)))


def packed(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits around 8, eight inputs to a word."""
    levels, scale, meant = _around_half(weight)
    stored = {
        "weight_packed": _packed(levels, IN_ORDER),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    return stored, meant


QUANTISERS: dict[str, tuple[dict[str, Any], Quantiser]] = {
    "fp8 in blocks": (FP8_BLOCKS, fp8_blocks),
    "fp8 per tensor": (FP8_TENSOR, fp8_tensor),
    "fp8 per tensor, static": ({**FP8_TENSOR, "activation_scheme": "static"}, fp8_static),
    "awq": (AWQ, awq),
    "gptq": (GPTQ, gptq),
    "gptq in order of activation": ({**GPTQ, "desc_act": True}, gptq_ordered),
    "compressed fp8 per channel": (
        compressed("float-quantized", {**FP8, "strategy": "channel"}, FP8_TOKEN),
        fp8_channels,
    ),
    "compressed int4": (compressed("pack-quantized", INT4, None), packed),
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


def _between_extremes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels [out, in], zeros and float16 scales [out, groups], and what they stand for."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).half()
    zero = (-low / scale).round().clamp(0, 15)
    levels = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    meant = (levels - zero[..., None]) * scale[..., None].float()
    return levels.view(weight.shape), zero, scale, meant.view(weight.shape)


def _around_half(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels [out, in], float16 scales [out, groups], and what they stand for."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).half()
    levels = (groups / scale[..., None] + 8).round().clamp(0, 15)
    meant = (levels - 8) * scale[..., None].float()
    return levels.view(weight.shape), scale, meant.view(weight.shape)


def _gptq(weight: Tensor, order: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """order: of the inputs where each group's lie together."""
    out, width = weight.shape
    levels, scale, meant = _around_half(weight[:, order])
    back = order.argsort()
    stored = {
        "qweight": _packed(levels[:, back], IN_ORDER).T.contiguous(),
        "qzeros": _packed(torch.full((width // GROUP, out), 7.0), IN_ORDER),
        "scales": scale.T.contiguous(),
        "g_idx": (back // GROUP).int(),
    }
    return stored, meant[:, back]


def _packed(levels: Tensor, order: tuple[int, ...]) -> Tensor:
    """int32 [rows, columns / 8]: nibble i holds column `order[i]` of each eight."""
    eights = levels.long().reshape(levels.shape[0], -1, 8)[..., list(order)]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()
