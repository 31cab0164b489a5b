"""Write nano as a HF checkpoint directory: config, weights, tokenizer, generation config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from llada_sglang.nano import chat
from llada_sglang.nano.recipe import Variant
from llada_sglang.nano.tokenizer import save_tokenizer, token_id
from llada_sglang.reference.checkpoint import split_experts
from llada_sglang.reference.config import ModelShape
from llada_sglang.reference.model import LLaDA2

BLOCK_SIZE = 32
MAX_POSITIONS = 8192
EXPERT_CAPACITY = 10


def nano_config(tokenizer: Tokenizer, variant: Variant = "base") -> dict[str, Any]:
    """config.json of nano: every key LLaDA2.0's has, and its own mask, EOS ids and block size.

    `levenshtein` has LLaDA2.2's block routing and edit tokens; `edit` names its decoding policy.
    """
    extra: dict[str, Any] = {}
    if variant == "edit":
        extra = {"decoding_policy": "edit"}
    elif variant == "levenshtein":
        extra = {
            "expert_capacity": EXPERT_CAPACITY,
            "delete_token_id": token_id(tokenizer, chat.DELETE),
            "split_token_id": token_id(tokenizer, chat.SPLIT),
        }
    vocab = -(-tokenizer.get_vocab_size() // 64) * 64
    end, role_end = token_id(tokenizer, chat.END_OF_TEXT), token_id(tokenizer, chat.ROLE_END)
    return {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "llada2_moe",
        "vocab_size": vocab,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "use_bias": False,
        "use_rmsnorm": True,
        "rms_norm_eps": 1e-6,
        "norm_head": False,
        "tie_word_embeddings": False,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "output_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 0.5,
        "rotary_dim": 32,
        "use_cache": True,
        "pad_token_id": end,
        "eos_token_id": [end, role_end],
        "mask_token_id": token_id(tokenizer, chat.MASK),
        "block_size": BLOCK_SIZE,
        "num_experts": 16,
        "num_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 96,
        "moe_shared_expert_intermediate_size": 96,
        "first_k_dense_replace": 1,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
        "norm_topk_prob": True,
        "torch_dtype": "bfloat16",
        **extra,
    }


def initialise(config: dict[str, Any], *, seed: int) -> LLaDA2:
    """A fresh model of this config: normal weights of width hidden ** -0.5, zero expert bias."""
    shape = ModelShape.from_config(config)
    model = LLaDA2(shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                continue
            std = 0.02 if "word_embeddings" in name else 0.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, std, generator=generator)
    return model


def start_from(model: LLaDA2, source: LLaDA2) -> None:
    """Copy the weights of a model with the same or a smaller vocabulary, in place.

    Ids it does not have start as the mean of those it has. Raises ValueError where another
    dimension differs.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, given in source.state_dict().items():
            own = state[name]
            if own.shape[1:] != given.shape[1:] or len(own) < len(given):
                raise ValueError(
                    f"{name}: cannot start {tuple(own.shape)} from {tuple(given.shape)}"
                )
            own[: len(given)] = given
            if len(given) < len(own):
                own[len(given) :] = given.mean(0)


def export_checkpoint(
    model: LLaDA2, tokenizer: Tokenizer, config: dict[str, Any], out: Path
) -> None:
    """Write the directory; weights in bfloat16, the router in float32, no remote code."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = split_experts(model.state_dict(), model.shape)
    stored = {
        name: tensor.float().cpu() if ".mlp.gate." in name else tensor.to(torch.bfloat16).cpu()
        for name, tensor in tensors.items()
    }
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("eos_token_id", "pad_token_id")}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, out, max_length=config["max_position_embeddings"])
