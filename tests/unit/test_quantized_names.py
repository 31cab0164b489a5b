"""Quantised checkpoints: names and loading, against the host's own layers built on a CPU.

Only the query of the device's compute capability is answered for the host (a Hopper GPU): layers,
parameters and loaders are the real ones. What the weights become after loading (repacked, given to
a kernel) needs the GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host_worker
import pytest
import torch
from quantizers import compressed
from torch import Tensor

from llada_sglang.errors import CheckpointError
from llada_sglang.quantization import stored_names
from llada_sglang.weights import (
    check_loaded_names,
    check_weight_names,
    loadable_names,
    weight_shapes,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from checkpoints import LLADA2_CONFIG, write_llada2

GROUP = 128
CONFIG: dict[str, Any] = {
    **LLADA2_CONFIG,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "moe_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128,
    "num_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "embedding_dropout": 0.0,
}


@dataclass(frozen=True)
class Case:
    """A quantization_config, the host's class for it, and what a linear layer [out, in] becomes.

    fused_dim: along which the host joins gate and up. turned: whether it transposes experts.
    """

    given: dict[str, Any]
    owner: str
    tensors: Callable[[int, int], dict[str, Tensor]]
    fused_dim: int = 0
    turned: bool = False


def _ints(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def _fp8(scale: str, shape: Callable[[int, int], tuple[int, ...]], *, static: bool = False) -> Any:
    def tensors(out: int, width: int) -> dict[str, Tensor]:
        made = {
            "weight": torch.randn(out, width).to(torch.float8_e4m3fn),
            scale: torch.rand(shape(out, width)) + 0.5,
        }
        return {**made, "input_scale": torch.tensor(0.25)} if static else made

    return tensors


def _awq_tensors(out: int, width: int) -> dict[str, Tensor]:
    return {
        "qweight": _ints(width, out // 8),
        "qzeros": _ints(width // GROUP, out // 8),
        "scales": torch.rand(width // GROUP, out).half(),
    }


def _gptq_tensors(out: int, width: int) -> dict[str, Tensor]:
    return {
        "qweight": _ints(width // 8, out),
        # Read by no kernel where the weights are symmetric; small, as the host holds floats there.
        "qzeros": torch.randint(0, 1000, (width // GROUP, out // 8), dtype=torch.int32),
        "scales": torch.rand(width // GROUP, out).half(),
        "g_idx": torch.arange(width, dtype=torch.int32) // GROUP,
    }


def _packed_tensors(out: int, width: int) -> dict[str, Tensor]:
    return {
        "weight_packed": _ints(out, width // 8),
        "weight_scale": torch.rand(out, width // GROUP),
        "weight_shape": torch.tensor([out, width]),
    }


_FP8_WEIGHT = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
_FP8_TOKEN = {**_FP8_WEIGHT, "strategy": "token", "dynamic": True}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True}
FP8 = "fp8:Fp8Config"
AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}
GPTQ_CONFIG = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "sym": True,
    "desc_act": False,
}
FP8_BLOCKS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
COMPRESSED = "compressed_tensors.compressed_tensors:CompressedTensorsConfig"


def _scalar(_out: int, _width: int) -> tuple[int, ...]:
    return ()


def _blocks(out: int, width: int) -> tuple[int, ...]:
    return (-(-out // 128), -(-width // 128))


CASES = {
    "fp8 in blocks": Case(FP8_BLOCKS, FP8, _fp8("weight_scale_inv", _blocks)),
    "fp8 per tensor": Case(
        {"quant_method": "fp8", "activation_scheme": "dynamic"}, FP8, _fp8("weight_scale", _scalar)
    ),
    "fp8 static, dense layer kept": Case(
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": [
                "lm_head",
                *(f"layers.0.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
            ],
        },
        FP8,
        _fp8("weight_scale", _scalar, static=True),
    ),
    "fp8, router and attention kept": Case(
        {**FP8_BLOCKS, "modules_to_not_convert": ["mlp.gate", "attention", "lm_head"]},
        FP8,
        _fp8("weight_scale_inv", _blocks),
    ),
    "fp8, experts kept": Case(
        {**FP8_BLOCKS, "modules_to_not_convert": ["model.layers.1.mlp.experts.3.gate_proj"]},
        FP8,
        _fp8("weight_scale_inv", _blocks),
    ),
    "awq": Case(AWQ_CONFIG, "awq:AWQMarlinConfig", _awq_tensors, -1),
    "awq, router and shared expert kept": Case(
        {**AWQ_CONFIG, "modules_to_not_convert": ["mlp.gate.", "shared_experts"]},
        "awq:AWQMarlinConfig",
        _awq_tensors,
        -1,
    ),
    "gptq": Case(GPTQ_CONFIG, "gptq:GPTQMarlinConfig", _gptq_tensors, -1),
    "gptq in order of activation": Case(
        {**GPTQ_CONFIG, "desc_act": True}, "gptq:GPTQMarlinConfig", _gptq_tensors, -1
    ),
    "gptq, attention and the first layer kept": Case(
        {**GPTQ_CONFIG, "dynamic": {r"-:.*\.attention\.": {}, r"-:model\.layers\.0\.": {}}},
        "gptq:GPTQMarlinConfig",
        _gptq_tensors,
        -1,
    ),
    "compressed fp8 per channel": Case(
        compressed("float-quantized", {**_FP8_WEIGHT, "strategy": "channel"}, _FP8_TOKEN),
        COMPRESSED,
        _fp8("weight_scale", lambda out, _: (out, 1)),
    ),
    "compressed fp8 in blocks": Case(
        compressed(
            "float-quantized",
            {**_FP8_WEIGHT, "strategy": "block", "block_structure": [128, 128]},
            {**_FP8_TOKEN, "strategy": "group", "group_size": 128},
        ),
        COMPRESSED,
        _fp8("weight_scale", _blocks),
    ),
    "compressed fp8 per tensor, static": Case(
        compressed(
            "float-quantized",
            {**_FP8_WEIGHT, "strategy": "tensor"},
            {**_FP8_WEIGHT, "strategy": "tensor"},
        ),
        COMPRESSED,
        _fp8("weight_scale", _scalar, static=True),
    ),
    "compressed int4": Case(
        compressed("pack-quantized", _INT4, None), COMPRESSED, _packed_tensors, turned=True
    ),
    "compressed int4, dense layer kept": Case(
        {
            **compressed("pack-quantized", _INT4, None),
            "ignore": ["lm_head", "re:.*layers.0.mlp.*"],
        },
        COMPRESSED,
        _packed_tensors,
        turned=True,
    ),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Builds our model class with a quantization_config, in the host's real runtime."""
    directory = write_llada2(tmp_path_factory.mktemp("llada2"), **CONFIG)
    flags = {"dtype": "bfloat16", "max_total_tokens": 4096}
    with host_worker.runtime(directory, device="cpu", **flags) as (_, host_config, _port):
        yield from _building(host_config)


def _building(host_config: Any) -> Iterator[Callable[..., Any]]:
    from sglang.srt.layers.quantization import marlin_utils

    patch = pytest.MonkeyPatch()
    patch.setattr(marlin_utils, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def made(given: Mapping[str, Any] | None, owner: str = "", **online: Any) -> Any:
        import importlib
        from copy import deepcopy

        from llada_sglang.models.llada2 import LLaDA2MoeModelLM

        config = deepcopy(host_config.hf_config)
        quant_config = None
        if owner:
            module, _, name = owner.partition(":")
            kind = getattr(
                importlib.import_module(f"sglang.srt.layers.quantization.{module}"), name
            )
            fused = {"packed_modules_mapping": {"gate_up_proj": ["gate_proj", "up_proj"]}}
            quant_config = kind.from_config({**given, **fused}) if given else kind(**online)
        if given:
            config.quantization_config = dict(given)
        return LLaDA2MoeModelLM(config, quant_config=quant_config)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as the host's loader does
    yield made
    torch.set_default_dtype(before)
    patch.undo()


def checkpoint(case: Case) -> dict[str, Tensor]:
    """Random tensors under every name the check asks for."""
    torch.manual_seed(0)
    names = stored_names({**CONFIG, "quantization_config": case.given}, weight_shapes(CONFIG))
    known = names.required | names.optional
    tensors: dict[str, Tensor] = {}
    for name, shape in weight_shapes(CONFIG).items():
        module = name.removesuffix(".weight")
        made = case.tensors(*shape) if len(shape) == 2 else {"none": torch.zeros(0)}
        stored = {f"{module}.{leaf}": tensor for leaf, tensor in made.items()}
        tensors |= stored if stored.keys() <= known else {name: torch.randn(shape).bfloat16()}
    assert names.required <= tensors.keys() <= names.required | names.optional
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_the_check_asks_for_the_tensors_that_the_hosts_layers_take(
    build: Callable[..., Any], name: str
) -> None:
    case = CASES[name]
    model = build(case.given, case.owner)
    loadable = loadable_names(dict(model.named_parameters()), CONFIG["num_experts"])
    stored = stored_names({**CONFIG, "quantization_config": case.given}, weight_shapes(CONFIG))
    ordered = {n for n in stored.required if n.endswith("g_idx")}
    assert stored.required - ordered == loadable.required
    biases = {n for n in stored.optional if n.endswith(".bias")}
    assert (stored.optional - biases) | ordered <= loadable.optional


@pytest.mark.parametrize("name", CASES)
def test_every_stored_tensor_arrives_where_it_belongs(build: Callable[..., Any], name: str) -> None:
    case = CASES[name]
    model = build(case.given, case.owner)
    parameters = dict(model.named_parameters())
    loadable = loadable_names(parameters, CONFIG["num_experts"])
    tensors = checkpoint(case)
    check_loaded_names(tensors, loadable)
    model.load_weights(tensors.items())
    for name, parameter in parameters.items():
        if name.endswith(("g_idx_sort_indices", "weight_shape")):
            continue  # computed, and read by no kernel
        expected = expected_value(name, tensors, case.fused_dim)
        if expected is None:
            assert name.endswith("_weight_g_idx")  # of files ordered by activation
            continue
        got = parameter.data.double()
        if case.turned and ".mlp.experts." in name:
            got = got.mT
        torch.testing.assert_close(
            got, expected.double().expand_as(got), rtol=0.01, atol=0, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("awq", "gptq"))])
def test_scales_of_experts_have_the_dtype_of_activations(
    build: Callable[..., Any], name: str
) -> None:
    case = CASES[name]
    model = build(case.given, case.owner)
    scales = {n: p.dtype for n, p in model.named_parameters() if n.endswith("_scales")}
    assert scales
    assert set(scales.values()) == {torch.bfloat16}


def expected_value(name: str, tensors: dict[str, Tensor], fused_dim: int) -> Tensor | None:
    """The value of a parameter, put together from the checkpoint by hand."""
    parent, _, leaf = name.rpartition(".")
    if ".mlp.experts." in f"{name}.":
        shard, _, part = leaf.partition("_")
        of = [f"{parent}.{e}" for e in range(CONFIG["num_experts"])]
        if f"{of[0]}.down_proj.{part}" not in tensors:
            return None
        if shard == "w2":
            return torch.stack([tensors[f"{e}.down_proj.{part}"] for e in of])
        pairs = [[tensors[f"{e}.{p}.{part}"] for p in ("gate_proj", "up_proj")] for e in of]
        return torch.stack([_joined(pair, part, fused_dim) for pair in pairs])
    if parent.endswith("gate_up_proj"):
        base = parent.removesuffix("gate_up_proj")
        return _joined(
            [tensors[f"{base}{p}.{leaf}"] for p in ("gate_proj", "up_proj")], leaf, fused_dim
        )
    return tensors[name]


def _joined(pair: list[Tensor], part: str, dim: int) -> Tensor:
    if part in ("g_idx", "input_scale"):
        return pair[0]
    if pair[0].dim() == 0:
        return torch.stack(pair)
    return torch.cat(pair, 0 if part == "weight" else dim)


def test_a_kept_layer_that_the_file_has_quantised_is_named(build: Callable[..., Any]) -> None:
    """AWQ's list is matched by substring: `mlp.gate` is meant for the router and hits gate_up."""
    config = {**AWQ_CONFIG, "modules_to_not_convert": ["mlp.gate"]}
    tensors = checkpoint(CASES["awq"])
    named = r"2 missing \(model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight\)"
    with pytest.raises(CheckpointError, match=named):
        check_weight_names(tensors, {**CONFIG, "quantization_config": config})
    model = build(config, "awq:AWQMarlinConfig")
    loadable = loadable_names(dict(model.named_parameters()), CONFIG["num_experts"])
    with pytest.raises(
        CheckpointError, match=rf"{named}; 6 unknown \(model.layers.0.mlp.gate_proj"
    ):
        check_loaded_names(tensors, loadable)


def test_weights_quantised_while_they_are_loaded_have_plain_names(
    build: Callable[..., Any],
) -> None:
    model = build(None, FP8)
    loadable = loadable_names(dict(model.named_parameters()), CONFIG["num_experts"])
    assert loadable.required == weight_shapes(CONFIG).keys()


def test_an_unquantised_model_takes_exactly_the_plain_names(build: Callable[..., Any]) -> None:
    loadable = loadable_names(dict(build(None).named_parameters()), CONFIG["num_experts"])
    assert loadable.required == weight_shapes(CONFIG).keys()
    assert not loadable.optional


@pytest.mark.parametrize(
    ("name", "lose", "add", "message"),
    [
        (
            "fp8 in blocks",
            "dense.weight_scale_inv",
            None,
            "2 missing .*0.attention.dense.weight_sc",
        ),
        ("fp8 per tensor", None, "lm_head.weight_scale", r"1 unknown \(lm_head.weight_scale\)"),
        ("fp8 in blocks", None, "model.layers.1.mlp.experts.0.up_proj.input_scale", "1 unknown"),
        ("awq", "experts.3.down_proj.qzeros", None, "1 missing .*1.mlp.experts.3.down_proj.qzeros"),
        ("awq", None, "model.layers.0.attention.dense.bias", "1 unknown"),
        ("gptq", None, "model.layers.0.attention.attn.k_scale", "1 unknown"),
        ("gptq in order of activation", "dense.g_idx", None, "2 missing"),
        ("compressed int4", "norm.weight", None, "9 missing"),
    ],
)
def test_a_missing_or_unknown_tensor_is_named(
    name: str, lose: str | None, add: str | None, message: str
) -> None:
    config = {**CONFIG, "quantization_config": CASES[name].given}
    given = set(stored_names(config, weight_shapes(CONFIG)).required)
    check_weight_names(given, config)
    if lose:
        given = {one for one in given if not one.endswith(lose)}
    if add:
        given.add(add)
    with pytest.raises(CheckpointError, match=message):
        check_weight_names(given, config)
    if not lose:
        check_weight_names(given - {add}, config)


def test_gptq_may_write_a_bias_for_every_layer_and_an_order_nobody_reads() -> None:
    config = {**CONFIG, "quantization_config": GPTQ_CONFIG}
    stored = stored_names(config, weight_shapes(CONFIG))
    assert "model.layers.0.attention.dense.bias" in stored.optional
    check_weight_names(stored.required | stored.optional, config)


def test_of_another_method_only_the_modules_are_known() -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "quark"}}
    plain = weight_shapes(CONFIG)
    check_weight_names([*plain, "model.layers.0.attention.dense.weight_scale"], config)
    with pytest.raises(CheckpointError, match=r"1 unknown \(model.layers.0.attention.wq.weight\)"):
        check_weight_names([*plain, "model.layers.0.attention.wq.weight"], config)
    fewer = [name for name in plain if "experts.2.up_proj" not in name]
    with pytest.raises(
        CheckpointError, match=r"1 missing \(model.layers.1.mlp.experts.2.up_proj.\*"
    ):
        check_weight_names(fewer, config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quant_method": "fp8"}, "activation_scheme .* must be 'dynamic' or 'static' .* got None"),
        ({**FP8_BLOCKS, "activation_scheme": "static"}, "weight_block_size .* 'dynamic'"),
        ({**AWQ_CONFIG, "bits": 8}, "bits .* must be 4 for awq experts in SGLang, got 8"),
        ({**AWQ_CONFIG, "zero_point": False}, "zero_point .* must be True"),
        ({**AWQ_CONFIG, "group_size": -1}, "group_size .* must be 32 or 64 or 128 for awq"),
        ({**GPTQ_CONFIG, "sym": False}, "sym .* must be True for gptq"),
        (
            compressed("pack-quantized", {**_INT4, "symmetric": False}, None),
            "symmetric in quantization_config must be true .* got false",
        ),
        ({**GPTQ_CONFIG, "group_size": 256}, "group_size .* must be -1 or 32 or 64 or 128"),
    ],
)
def test_settings_without_a_kernel_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        stored_names({"quantization_config": given}, ())
