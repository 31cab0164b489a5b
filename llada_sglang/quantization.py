"""Which tensors a quantised LLaDA2 checkpoint has, by the method its config.json names.

SGLang decides layer by layer whether weights are quantised, and skips in silence a tensor that
the layer it built does not have. So its rules are repeated here, method by method, over names
alone: a layer that the host would build otherwise than it was stored is found before anything is
started. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llada_sglang.errors import CheckpointError

_LINEAR = ("query_key_value", "dense", "gate_proj", "up_proj", "down_proj")
_MARLIN_GROUPS = (-1, 32, 64, 128)

# As SGLang's quantisation methods are asked: by the layer's name in the model. A fused layer goes
# by its own name, all experts of a layer by one.
Kept = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What one method stores in place of a linear layer's `weight`.

    required: last parts of names; optional: as well, where the file has them. kept: whether a
    layer stays as it was. head: whether lm_head is quantised, too. spare_bias: whether the host
    passes over a bias that the model does not have.
    """

    method: str
    required: tuple[str, ...]
    kept: Kept
    optional: tuple[str, ...] = ()
    head: bool = False
    spare_bias: bool = False

    def quantises(self, module: str) -> bool:
        """Whether `module`, named as in the checkpoint, is stored quantised."""
        if module == "lm_head":
            return self.head and not self.kept(module)
        return module.rpartition(".")[2] in _LINEAR and not self.kept(layer_of(module))


@dataclass(frozen=True, slots=True)
class Names:
    """Tensor names of a checkpoint. open_modules: modules whose tensors may have any names."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    open_modules: frozenset[str] = frozenset()

    def unknown(self, given: Iterable[str]) -> set[str]:
        """Those of `given` that belong to no parameter."""
        left = set(given) - self.required - self.optional
        return {name for name in left if name.rpartition(".")[0] not in self.open_modules}

    def missing(self, given: Iterable[str]) -> set[str]:
        """What is required and not in `given`; of an open module, one tensor."""
        found = set(given)
        held = {name.rpartition(".")[0] for name in found}
        return {*(self.required - found), *(f"{m}.*" for m in self.open_modules - held)}


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says about quantisation, None where it says nothing."""
    for key in ("quantization_config", "compression_config"):
        if (given := config.get(key)) is not None:
            if not isinstance(given, Mapping):
                raise CheckpointError(f"{key} in config.json must be an object, got {given!r}.")
            return given
    return None


def stored_names(config: Mapping[str, Any], plain: Iterable[str]) -> Names:
    """The tensors of a checkpoint with this config.json.

    plain: its tensors if nothing were quantised (`weights.weight_shapes`). Of a method that is not
    known here only the modules are. Raises CheckpointError for what SGLang has no kernel for.
    """
    given = quantization_config(config)
    if given is None:
        return Names(frozenset(plain))
    scheme = read_scheme(given)
    required: set[str] = set()
    optional: set[str] = set()
    unnamed: set[str] = set()
    for name in plain:
        module, _, leaf = name.rpartition(".")
        if scheme is None:
            linear = module == "lm_head" or module.rpartition(".")[2] in _LINEAR
            (unnamed if linear else required).add(module if linear else name)
        elif leaf == "weight" and scheme.quantises(module):
            required |= {f"{module}.{part}" for part in scheme.required}
            optional |= {f"{module}.{part}" for part in scheme.optional}
            if scheme.spare_bias:
                optional.add(f"{module}.bias")
        else:
            required.add(name)
    return Names(frozenset(required), frozenset(optional - required), frozenset(unnamed))


def read_scheme(given: Mapping[str, Any]) -> Scheme | None:
    """The scheme of a quantization_config; None for a method that is not known here.

    Raises CheckpointError naming a setting for which SGLang 0.5.23 has no kernel for experts.
    """
    method = str(given.get("quant_method", "")).lower()
    if method == "fp8":
        return _fp8(given)
    if method == "awq":
        return _awq(given)
    if method == "gptq":
        return _gptq(given)
    return _compressed_tensors(given) if method == "compressed-tensors" else None


def layer_of(module: str) -> str:
    """The host's layer that a module of the checkpoint becomes a part of."""
    parent, _, projection = module.rpartition(".")
    if re.fullmatch(r".*\.mlp\.experts\.\d+", parent):
        return parent.rpartition(".")[0]
    return f"{parent}.gate_up_proj" if projection in ("gate_proj", "up_proj") else module


def _fp8(given: Mapping[str, Any]) -> Scheme:
    """Source: sglang.srt.layers.quantization.fp8, quantization.utils.is_layer_skipped."""
    block = given.get("weight_block_size")
    static = _one_of(given, "activation_scheme", ("dynamic", "static")) == "static"
    if block is not None and (static or len(block) != 2):
        raise CheckpointError(
            f"weight_block_size {block!r} in quantization_config must be two numbers, with "
            f"activation_scheme 'dynamic', got {given['activation_scheme']!r}."
        )
    listed = given.get("ignored_layers") or given.get("modules_to_not_convert") or ()
    bare = {str(path).removeprefix("model.").rstrip(".") for path in listed}
    paths = bare | {f"model.{path}" for path in bare}

    def kept(layer: str) -> bool:
        if all(any(_on_path(p, part) for p in paths) for part in _parts(layer)):
            return True
        # One expert that is listed keeps all of its layer.
        return "experts" in layer and any("experts" in p and layer in p for p in paths)

    scale = "weight_scale" if block is None else "weight_scale_inv"
    return Scheme("fp8", ("weight", scale, *(("input_scale",) if static else ())), kept)


def _awq(given: Mapping[str, Any]) -> Scheme:
    """Source: sglang.srt.layers.quantization.awq.AWQMarlinConfig."""
    _one_of(given, "bits", (4,))
    _one_of(given, "group_size", _MARLIN_GROUPS[1:])  # -1 gives experts a negative size
    _one_of(given, "zero_point", (True,))
    listed = [str(part) for part in given.get("modules_to_not_convert") or ()]

    def kept(layer: str) -> bool:
        return any(part in layer for part in listed)

    return Scheme("awq", ("qweight", "qzeros", "scales"), kept, head=bool(given.get("lm_head")))


def _gptq(given: Mapping[str, Any]) -> Scheme:
    """Source: sglang.srt.layers.quantization.gptq.GPTQMarlinConfig, get_dynamic_override."""
    _one_of(given, "bits", (4, 8))
    _one_of(given, "group_size", _MARLIN_GROUPS)
    _one_of(given, "sym", (True,))
    ordered = _one_of(given, "desc_act", (True, False)) and given["group_size"] != -1
    rules = [str(rule) for rule in given.get("dynamic") or ()]

    def kept(layer: str) -> bool:
        if layer.endswith(".experts"):
            return False  # the host asks its rules about linear layers only
        for rule in rules:
            if re.match(rule.removeprefix("-:").removeprefix("+:"), layer):
                return rule.startswith("-:")
        return False

    required = ("qweight", "qzeros", "scales")
    return Scheme(
        "gptq",
        (*required, "g_idx") if ordered else required,
        kept,
        optional=() if ordered else ("g_idx",),
        head=bool(given.get("lm_head")),
        spare_bias=True,
    )


def _compressed_tensors(given: Mapping[str, Any]) -> Scheme | None:
    """Source: sglang.srt.layers.quantization.compressed_tensors. None but for one group."""
    groups = list((given.get("config_groups") or {}).values())
    if len(groups) != 1 or list(groups[0].get("targets") or ()) != ["Linear"]:
        return None
    group = groups[0]
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    form = group.get("format") or given.get("format")
    ignored = [str(target) for target in given.get("ignore") or ()]

    def ignores(name: str) -> bool:
        return any(
            re.match(target[3:], name) is not None
            if target.startswith("re:")
            else name == target or name.endswith(f".{target}")
            for target in ignored
        )

    def kept(layer: str) -> bool:
        if layer in ignored:
            return True
        if layer.endswith(".experts"):  # the host asks for the first and takes it for all
            return all(ignores(f"{layer}.0.{part}") for part in _LINEAR[2:])
        return all(ignores(part) for part in _parts(layer))

    if form in ("float-quantized", "naive-quantized") and weights.get("type") == "float":
        static = inputs is not None and not inputs.get("dynamic")
        stored = ("weight", "weight_scale", *(("input_scale",) if static else ()))
        return Scheme("compressed-tensors", stored, kept)
    if form == "pack-quantized" and weights.get("type") == "int" and not inputs:
        if not weights.get("symmetric", True):
            raise CheckpointError(
                "symmetric in quantization_config must be true for experts of compressed-tensors "
                "integers, got false: SGLang cannot load their zero points. Quantise the "
                "checkpoint again without them."
            )
        order = ("weight_g_idx",) if weights.get("actorder") == "group" else ()
        packed = ("weight_packed", "weight_scale", *order)
        return Scheme("compressed-tensors", packed, kept, optional=("weight_shape",))
    return None


def _on_path(path: str, layer: str) -> bool:
    """Whether `path` is a run of whole parts of the dotted name `layer`."""
    return f".{path}." in f".{layer}."


def _parts(layer: str) -> tuple[str, ...]:
    """The checkpoint's modules of a linear layer."""
    parent, _, projection = layer.rpartition(".")
    if projection == "gate_up_proj":
        return f"{parent}.gate_proj", f"{parent}.up_proj"
    return (layer,)


def _one_of(given: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> Any:
    value = given.get(key)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise CheckpointError(
            f"{key} in quantization_config must be {' or '.join(map(repr, allowed))} for "
            f"{given.get('quant_method')} experts in SGLang, got {value!r}. "
            "Quantise the checkpoint again with one of these."
        )
    return value
