"""Names and shapes of a LLaDA2 checkpoint's tensors, and the safetensors headers that hold them.

Reads headers only: no torch, no tensor data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llada_sglang.errors import CheckpointError
from llada_sglang.quantization import Names, quantization_config, stored_names

Shape = tuple[int, ...]

# What LLaDA2MoeConfig assumes for a key the config does not have (LLaDA2.0-mini).
SHAPE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_bias": False,
    "tie_word_embeddings": False,
    "num_experts": 256,
    "num_shared_experts": 1,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": None,
    "first_k_dense_replace": 1,
    "moe_router_enable_expert_bias": True,
}
_EXPERT_PROJECTIONS = {"w13": ("gate_proj", "up_proj"), "w2": ("down_proj",)}
_COMPUTED = "g_idx_sort_indices"
_DISPENSABLE = ("g_idx", "weight_shape")  # an order of columns that is only read where it matters
_NAMES_SHOWN = 6
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def weight_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every tensor an unquantised LLaDA2 checkpoint of this config must have, with its shape.

    config: the keys of config.json; a missing key counts as LLaDA2.0-mini's value.
    """
    c = {key: config.get(key, default) for key, default in SHAPE_DEFAULTS.items()}
    hidden, inner = c["hidden_size"], c["moe_intermediate_size"]
    head_dim = c["head_dim"] or hidden // c["num_attention_heads"]
    q_rows = c["num_attention_heads"] * head_dim
    qkv_rows = q_rows + 2 * c["num_key_value_heads"] * head_dim
    shared_inner = c["moe_shared_expert_intermediate_size"] or inner

    shapes: dict[str, Shape] = {
        "model.word_embeddings.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], hidden)

    def mlp(prefix: str, width: int) -> None:
        for name, rows, columns in (
            ("gate_proj", width, hidden),
            ("up_proj", width, hidden),
            ("down_proj", hidden, width),
        ):
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)

    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.attention.query_key_value.weight"] = (qkv_rows, hidden)
        shapes[f"{prefix}.attention.dense.weight"] = (hidden, q_rows)
        if c["use_bias"] or c["use_qkv_bias"]:
            shapes[f"{prefix}.attention.query_key_value.bias"] = (qkv_rows,)
        if c["use_bias"]:
            shapes[f"{prefix}.attention.dense.bias"] = (hidden,)
        if c["use_qk_norm"]:
            shapes[f"{prefix}.attention.query_layernorm.weight"] = (head_dim,)
            shapes[f"{prefix}.attention.key_layernorm.weight"] = (head_dim,)
        if layer < c["first_k_dense_replace"]:
            mlp(f"{prefix}.mlp", c["intermediate_size"])
            continue
        shapes[f"{prefix}.mlp.gate.weight"] = (c["num_experts"], hidden)
        if c["moe_router_enable_expert_bias"]:
            shapes[f"{prefix}.mlp.gate.expert_bias"] = (c["num_experts"],)
        for expert in range(c["num_experts"]):
            mlp(f"{prefix}.mlp.experts.{expert}", inner)
        if c["num_shared_experts"]:
            mlp(f"{prefix}.mlp.shared_experts", shared_inner * c["num_shared_experts"])
    return shapes


def check_weight_names(
    names: Iterable[str],
    config: Mapping[str, Any],
    *,
    quantized: bool = False,
    complete: bool = True,
) -> None:
    """Raise CheckpointError naming tensors the model does not know, or needs and did not get.

    names: the checkpoint's, without prefixes and with one name per expert. Where config says how
    it was quantised, its method decides on the names (`quantization.stored_names`). quantized:
    that the weights are in any case, by a file of their own or while they are loaded; then only
    plain `.weight` tensors are judged if config says nothing. complete: whether `names` should be
    all of them.
    """
    tied = bool(config.get("tie_word_embeddings"))
    given = {name for name in names if not _ignorable(name, tied=tied)}
    stored = stored_names(config, weight_shapes(config))
    unknown = stored.unknown(given)
    missing = stored.missing(given) if complete else set()
    if quantized and quantization_config(config) is None:
        unknown, missing = {name for name in unknown if name.endswith(".weight")}, set()
    _refuse(missing, unknown, "config.json")


def loadable_names(parameters: Mapping[str, Any], num_experts: int) -> Names:
    """The checkpoint tensors from which the host fills a model's parameters.

    parameters: `dict(model.named_parameters())` of the host's LLaDA2MoeModelLM before its first
    load; only names, and the attributes by which the host marks a parameter, are looked at.
    Source: sglang.srt.models.llada2.LLaDA2MoeModelLM.load_weights.
    """
    required: set[str] = set()
    optional: set[str] = set()
    for name, parameter in parameters.items():
        parent, _, leaf = name.rpartition(".")
        stacked, _, part = leaf.partition("_")
        if parent.endswith(".mlp.experts") and stacked in _EXPERT_PROJECTIONS:
            sources = {
                f"{parent}.{expert}.{projection}.{part}"
                for expert in range(num_experts)
                for projection in _EXPERT_PROJECTIONS[stacked]
            }
            # Without a loader of its own it is computed: scales of weights quantised on the fly.
            loaded = hasattr(parameter, "weight_loader")
        else:
            fused = parent.removesuffix(".gate_up_proj")
            split = ("gate_proj", "up_proj") if fused != parent else None
            sources = {f"{fused}.{s}.{leaf}" for s in split} if split else {name}
            loaded = True
        if not loaded or leaf.endswith(_COMPUTED):
            continue
        spare = getattr(parameter, "_skip_weight_check", False) or leaf.endswith(_DISPENSABLE)
        (optional if spare else required).update(sources)
    return Names(frozenset(required), frozenset(optional - required))


def check_loaded_names(
    names: Iterable[str], loadable: Names, *, tied: bool = False, complete: bool = True
) -> None:
    """Raise CheckpointError naming tensors that found no parameter, or parameters left unfilled.

    names: what was given to the host's loader, as in `check_weight_names`; the host skips in
    silence what it has no parameter for. loadable: `loadable_names` of the model. complete:
    whether `names` should be all of them. A `.bias` beside a `.qweight` is passed over: GPTQ
    writes one for every layer.
    """
    given = {name for name in names if not _ignorable(name, tied=tied)}
    unknown = {
        name
        for name in loadable.unknown(given)
        if not (name.endswith(".bias") and name.removesuffix("bias") + "qweight" in given)
    }
    missing = loadable.missing(given) if complete else set()
    _refuse(missing, unknown, "the layers SGLang built for this quantisation and config.json")


def _refuse(missing: set[str], unknown: set[str], what: str) -> None:
    if unknown or missing:
        parts = [
            f"{len(group)} {kind} ({_some(group)})"
            for kind, group in (("missing", missing), ("unknown", unknown))
            if group
        ]
        raise CheckpointError(
            f"the tensors do not fit {what}: {'; '.join(parts)}. "
            "The file is of another model, incomplete, or config.json was edited; "
            "download or export the checkpoint again."
        )


def check_weight_shapes(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming the first tensor whose shape is not what config.json says."""
    expected = weight_shapes(config)
    for name, shape in sorted(shapes.items()):
        if name in expected and shape != expected[name]:
            raise CheckpointError(
                f"{name} has shape {list(shape)}, config.json asks for {list(expected[name])}."
            )


def read_header(path: Path) -> dict[str, Shape]:
    """Tensor names and shapes of a .safetensors file, after checking that none of it is missing.

    Raises CheckpointError for a file that is truncated, overlong or no safetensors at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: {size} bytes, "
                f"header of {length} bytes announced. Download it again."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} has no readable safetensors header: {error}.") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        kind = "truncated" if size < expected else "too long"
        raise CheckpointError(
            f"{path} is {kind}: {size} bytes, its header describes {expected}. Download it again."
        )
    return shapes


def normalized(shapes: Mapping[str, Shape], num_experts: int) -> dict[str, Shape]:
    """Rename tensors as the loader does: no wrapper prefix, fused experts one by one.

    Source: sglang.srt.models.llada2._prepare_llada2_language_weights.
    """
    out: dict[str, Shape] = {}
    for given, shape in shapes.items():
        name = given
        if name.startswith("model.language_model."):
            name = "model." + name.removeprefix("model.language_model.")
        elif name.startswith("model.lm_head."):
            name = "lm_head." + name.removeprefix("model.lm_head.")
        parent, _, projection = name.rpartition(".")
        if parent.endswith(".mlp.experts") and len(shape) == 3 and shape[0] == num_experts:
            for expert in range(num_experts):
                out[f"{parent}.{expert}.{projection}.weight"] = shape[1:]
        else:
            out[name] = shape
    return out


def parameter_count(shapes: Mapping[str, Shape]) -> int:
    """Number of parameters in all tensors together."""
    return sum(math.prod(shape) for shape in shapes.values())


def _ignorable(name: str, *, tied: bool) -> bool:
    # The host skips these too: a reward head, rotary buffers, a head equal to the embedding.
    return "v_head" in name or "inv_freq" in name or (tied and name.startswith("lm_head."))


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:_NAMES_SHOWN])
    return shown if len(ordered) <= _NAMES_SHOWN else f"{shown}, ..."
