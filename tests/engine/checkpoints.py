"""Small checkpoints with random weights, for tests in which the text does not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 512
MASK, END = "<|mask|>", "<|endoftext|>"

LLADA2_CONFIG: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_bias": False,
    "use_rmsnorm": True,
    "rms_norm_eps": 1e-6,
    "norm_head": False,
    "norm_softmax": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 8,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "router_dtype": "fp32",
    "norm_topk_prob": True,
    "torch_dtype": "float32",
}


def write_llada2(directory: Path, **overrides: Any) -> Path:
    """Write a LLaDA2 checkpoint; `overrides` change its config.json. Returns `directory`."""
    config = {**LLADA2_CONFIG, **overrides}
    ids = _write_tokenizer(directory)
    config |= {"pad_token_id": ids[END], "eos_token_id": ids[END], "mask_token_id": ids[MASK]}
    config |= overrides
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_file(_llada2_weights(config), directory / "model.safetensors", {"format": "pt"})
    return directory


def write_qwen2(directory: Path) -> Path:
    """Write a Qwen2 checkpoint, a model this package has nothing to do with."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = _write_tokenizer(directory)
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=ids[END],
        bos_token_id=None,
        torch_dtype="float32",
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def _llada2_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def mlp(prefix: str, width: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}gate_proj.weight": random(width, hidden),
            f"{prefix}up_proj.weight": random(width, hidden),
            f"{prefix}down_proj.weight": random(hidden, width),
        }

    weights = {
        "model.word_embeddings.weight": random(config["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": random(config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}input_layernorm.weight": torch.ones(hidden),
            f"{prefix}post_attention_layernorm.weight": torch.ones(hidden),
            f"{prefix}attention.query_key_value.weight": random(
                (heads + 2 * kv_heads) * head, hidden
            ),
            f"{prefix}attention.dense.weight": random(hidden, heads * head),
            f"{prefix}attention.query_layernorm.weight": torch.ones(head),
            f"{prefix}attention.key_layernorm.weight": torch.ones(head),
        }
        if layer < config["first_k_dense_replace"]:
            weights |= mlp(f"{prefix}mlp.", config["intermediate_size"])
            continue
        experts = config["num_experts"]
        weights[f"{prefix}mlp.gate.weight"] = random(experts, hidden)
        weights[f"{prefix}mlp.gate.expert_bias"] = random(experts)
        for expert in range(experts):
            weights |= mlp(f"{prefix}mlp.experts.{expert}.", config["moe_intermediate_size"])
        weights |= mlp(f"{prefix}mlp.shared_experts.", config["moe_intermediate_size"])
    return weights


def _write_tokenizer(directory: Path) -> dict[str, int]:
    """Write a byte-level tokenizer of single bytes; return the ids of its special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([MASK, END])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "mask_token": MASK,
        "chat_template": "{% for m in messages %}<role>{{ m['role'] }}</role>{{ m['content'] }}"
        "{% endfor %}<role>ASSISTANT</role>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return {token: tokenizer.token_to_id(token) for token in (MASK, END)}
