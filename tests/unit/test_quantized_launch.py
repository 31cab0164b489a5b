"""Quantised weights at launch: what is refused, and whether they fit a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llada_sglang.checkpoint import CheckpointFamily
from llada_sglang.errors import LaunchConfigError
from llada_sglang.quantization import stored_names
from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.shape import BUILT_IN, Shape
from llada_sglang.serving.rules import check_launch
from llada_sglang.weights import weight_shapes

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
ALGORITHMS = frozenset({"BlockDiffusion"})


def family(**config: Any) -> CheckpointFamily:
    return CheckpointFamily(
        path="/nowhere",
        mask_id=156895,
        eos_ids=(156892,),
        block_size=32,
        vocab_size=157184,
        config=config,
    )


def arguments(**given: Any) -> SimpleNamespace:
    from sglang.srt.arg_groups.arg_utils import record_fields
    from sglang.srt.server_args import ServerArgs

    stock = {f.name: f.default for f in record_fields(ServerArgs)}
    return SimpleNamespace(**{**stock, "device": "cuda", **given})


@pytest.mark.parametrize("method", [None, "fp8", "awq_marlin", "gptq_marlin", "compressed-tensors"])
def test_a_gpu_takes_the_methods_that_have_kernels_for_experts(method: str | None) -> None:
    check_launch(arguments(quantization=method), family(quantization_config=FP8), ALGORITHMS)


@pytest.mark.parametrize("method", ["awq", "gptq", "gguf", "bitsandbytes"])
def test_methods_that_leave_the_experts_unloaded_are_refused(method: str) -> None:
    with pytest.raises(LaunchConfigError, match=f"got '{method}': .* awq_marlin or gptq_marlin"):
        check_launch(arguments(quantization=method), family(), ALGORITHMS)


@pytest.mark.parametrize(
    ("given", "config"), [({"quantization": "fp8"}, {}), ({}, {"quantization_config": FP8})]
)
def test_a_cpu_refuses_quantised_weights_by_method(
    given: dict[str, Any], config: dict[str, Any]
) -> None:
    with pytest.raises(LaunchConfigError, match=r"--device cpu .* quantised as 'fp8'"):
        check_launch(arguments(device="cpu", **given), family(**config), ALGORITHMS)
    check_launch(arguments(device="cpu"), family(), ALGORITHMS)


@pytest.mark.parametrize(
    ("given", "ranks", "message"),
    [
        (AWQ, {"tp_size": 8}, "--tp-size 8 leaves a rank 128 of each expert's 1024 neurons"),
        (AWQ, {"tp_size": 4}, None),
        (AWQ, {"tp_size": 8, "ep_size": 8}, None),
        ({**AWQ, "group_size": 64}, {"tp_size": 8}, None),
        ({**GPTQ, "group_size": -1}, {"tp_size": 2}, None),
        (GPTQ, {"tp_size": 2}, "--tp-size must be 1 for experts quantised as 'gptq', got 2"),
        (GPTQ, {"tp_size": 2, "ep_size": 2}, None),
        (GPTQ, {}, None),
        (FP8, {"tp_size": 8}, None),
    ],
)
def test_shares_of_experts_with_scales_in_a_wrong_order_are_refused(
    given: dict[str, Any], ranks: dict[str, int], message: str | None
) -> None:
    flash = family(**BUILT_IN["flash"], quantization_config=given)
    if message is None:
        check_launch(arguments(**ranks), flash, ALGORITHMS)
        return
    with pytest.raises(LaunchConfigError, match=message):
        check_launch(arguments(**ranks), flash, ALGORITHMS)


def test_flash_in_fp8_fits_one_gpu_of_141_gb_with_graphs_and_a_pool_for_32_requests() -> None:
    """4K in and 1.5K out each; what the memory is left for beside weights and KV is 10 %."""
    flash, h200 = Shape.of(BUILT_IN["flash"]), gpus.find("h200")
    fp8 = Setup(flash, h200, kv_len=4096 + 1536, dtype="fp8").memory(rows=32)
    assert fp8.weight_bytes / 1e9 == pytest.approx(104.3, abs=0.05)
    assert fp8.rows_kv_bytes == 32 * (4096 + 1536 + 32) * 64 * 1024
    assert fp8.fits
    assert fp8.pool_tokens >= 32 * (4096 + 1536 + 32)
    # Graphs of 128 rows: hidden states and the logits of 1024 positions in bf16, twice.
    left = h200.memory - fp8.weight_bytes - fp8.rows_kv_bytes
    assert left > 2 * (128 * 32 * flash.hidden * 2 + 1024 * flash.vocab * 2) + 10e9
    assert not Setup(flash, h200, kv_len=0).memory(rows=1).fits


def test_the_weights_of_fp8_flash_are_the_tensors_its_checkpoint_has() -> None:
    plain = weight_shapes(BUILT_IN["flash"])
    stored = stored_names({"quantization_config": FP8}, plain)
    counted = 0
    for name, shape in plain.items():
        if len(shape) != 2:
            continue
        rows, columns = shape
        if f"{name}_scale_inv" in stored.required:
            counted += rows * columns + 4 * -(-rows // 128) * -(-columns // 128)
        else:
            counted += rows * columns * (4 if ".mlp.gate." in name else 2)
    expected = Setup(Shape.of(BUILT_IN["flash"]), gpus.find("h200"), dtype="fp8").memory(1)
    assert counted == pytest.approx(expected.weight_bytes, rel=1e-6)
