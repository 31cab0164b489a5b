"""HF safetensors of a LLaDA2 checkpoint, to and from the reference model's parameters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_sglang.errors import CheckpointError
from llada_sglang.reference.config import ModelShape
from llada_sglang.reference.model import LLaDA2

INDEX = "model.safetensors.index.json"


def hf_names(shape: ModelShape) -> list[str]:
    """Every tensor name a checkpoint of this shape holds, no more and no less."""
    names = ["model.word_embeddings.weight", "model.norm.weight", "lm_head.weight"]
    gated = ("gate_proj", "up_proj", "down_proj")
    for index in range(shape.num_hidden_layers):
        layer = f"model.layers.{index}"
        names += [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"]
        attention = ("query_key_value", "query_layernorm", "key_layernorm", "dense")
        names += [f"{layer}.attention.{part}.weight" for part in attention]
        if index < shape.first_k_dense_replace:
            names += [f"{layer}.mlp.{part}.weight" for part in gated]
            continue
        names += [f"{layer}.mlp.gate.weight", f"{layer}.mlp.gate.expert_bias"]
        for expert in range(shape.num_experts):
            names += [f"{layer}.mlp.experts.{expert}.{part}.weight" for part in gated]
        if shape.num_shared_experts:
            names += [f"{layer}.mlp.shared_experts.{part}.weight" for part in gated]
    return names


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory, single or sharded, on the CPU as stored."""
    index = path / INDEX
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not (path / name).is_file():
            raise CheckpointError(f"{path}: no {name}; a checkpoint needs its safetensors files")
        tensors.update(load_file(path / name))
    return tensors


def stack_experts(tensors: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """HF names -> the names of `LLaDA2.state_dict()`; checks names and dtype of nothing else."""
    expected = set(hf_names(shape))
    missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unknown:
        raise CheckpointError(
            f"checkpoint weights do not match config.json: {len(missing)} missing "
            f"({', '.join(missing[:4])}), {len(unknown)} unknown ({', '.join(unknown[:4])})"
        )
    state = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for index in range(shape.first_k_dense_replace, shape.num_hidden_layers):
        prefix = f"model.layers.{index}.mlp.experts"
        parts: dict[str, list[Tensor]] = {"gate_up": [], "down": []}
        for expert in range(shape.num_experts):
            gate, up, down = (
                tensors[f"{prefix}.{expert}.{part}.weight"]
                for part in ("gate_proj", "up_proj", "down_proj")
            )
            parts["gate_up"].append(torch.stack([gate, up]))
            parts["down"].append(down)
        for part, pieces in parts.items():
            state[f"{prefix}.{part}"] = torch.stack(pieces)
    return state


def split_experts(state: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """The inverse of `stack_experts`: a state dict under HF names, contiguous."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, part = name.rpartition(".")
        if not prefix.endswith(".experts"):
            tensors[name] = tensor.detach().contiguous()
            continue
        for expert in range(shape.num_experts):
            if part == "down":
                tensors[f"{prefix}.{expert}.down_proj.weight"] = tensor[expert].detach().clone()
            else:
                gate, up = tensor[expert].detach()
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate.clone()
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up.clone()
    return tensors


def load_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> LLaDA2:
    """The reference model of a checkpoint directory, in eval mode on the CPU.

    dtype converts every weight but the router's, which stays float32. Raises CheckpointError for a
    missing file, an unsupported config key, and missing, unknown or misshapen weights.
    """
    path = Path(path)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path}: no config.json; this is not a checkpoint directory")
    shape = ModelShape.from_config(json.loads(config_file.read_text()))
    state = stack_experts(read_tensors(path), shape)
    model = LLaDA2(shape)
    for name, own in model.state_dict().items():
        if own.shape != state[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, "
                f"config.json asks for {tuple(own.shape)}"
            )
    model.load_state_dict(state)
    router = {n: t.float() for n, t in model.state_dict().items() if ".gate." in n}
    model.to(dtype)
    for name, module in model.named_modules():
        if name.endswith(".gate"):
            module.weight.data = router[f"{name}.weight"]
            module.expert_bias = router[f"{name}.expert_bias"]
    return model.eval()
