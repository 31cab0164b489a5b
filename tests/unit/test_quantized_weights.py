"""The quantised weights that the GPU tests serve stand for what they are compared with."""

from __future__ import annotations

import pytest
import torch
from quantizers import GROUP, QUANTISERS, awq, gptq, quantised
from torch import Tensor

from llada_sglang.quantization import stored_names
from llada_sglang.weights import weight_shapes

CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "num_experts": 2,
    "moe_intermediate_size": 128,
}


def weight() -> Tensor:
    return torch.randn(384, 256, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_weight_is_near_the_original(name: str) -> None:
    _, meant = QUANTISERS[name][1](weight())
    error = (meant - weight()).abs().max() / weight().abs().max()
    assert 0 < error < (0.04 if "fp8" in name else 0.09)


def test_awq_words_are_what_the_host_unpacks() -> None:
    from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition

    stored, meant = awq(weight())
    got = awq_dequantize_decomposition(stored["qweight"], stored["scales"], stored["qzeros"])
    torch.testing.assert_close(got.float().T, meant, rtol=2e-3, atol=2e-3)


def test_gptq_words_are_what_the_host_unpacks() -> None:
    from sglang.srt.layers.quantization.utils import unpack_cols

    stored, meant = gptq(weight())
    out, width = weight().shape
    levels = unpack_cols(stored["qweight"].T.contiguous(), 4, out, width)
    scale = stored["scales"].T.float().repeat_interleave(GROUP, dim=1)
    torch.testing.assert_close((levels - 8) * scale, meant)
    zeros = unpack_cols(stored["qzeros"], 4, width // GROUP, out)
    assert (zeros == 7).all()


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_checkpoint_has_the_tensors_the_check_asks_for(name: str) -> None:
    given, quantise = QUANTISERS[name]
    plain = {name: torch.randn(shape) for name, shape in weight_shapes(CONFIG).items()}
    stored, meant = quantised(plain, given, quantise)
    names = stored_names({**CONFIG, "quantization_config": given}, plain)
    assert not names.unknown(stored)
    assert not names.missing(stored)
    assert meant.keys() == plain.keys()
