"""Checkpoint directories without weights: config.json, tokenizer, and the class stock asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.checkpoints import END_ID, RANDOM_CONFIG, REMOTE_CODE
from llada_sglang.nano import chat
from llada_sglang.roofline.shape import BUILT_IN, Shape
from llada_sglang.weights import SHAPE_DEFAULTS

MINI: dict[str, Any] = {
    **RANDOM_CONFIG,
    **SHAPE_DEFAULTS,
    "moe_shared_expert_intermediate_size": 512,
    "rotary_dim": 64,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "torch_dtype": "bfloat16",
}
FLASH: dict[str, Any] = {**MINI, **BUILT_IN["flash"], "moe_shared_expert_intermediate_size": 1024}
# The vocabulary cannot be smaller: stock's mask id is fixed. Heads are of a size that all attention
# libraries have kernels for.
TINY: dict[str, Any] = {
    **RANDOM_CONFIG,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "rotary_dim": 64,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "torch_dtype": "bfloat16",
}
SHAPES = {"mini": MINI, "flash": FLASH, "tiny": TINY}


def write(shape: str, out: Path) -> Path:
    """Write the directory of a shape for `--load-format dummy`; returns it."""
    out.mkdir(parents=True, exist_ok=True)
    remote = {"AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig"}
    config = {**SHAPES[shape], "auto_map": remote}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "configuration_llada2_moe.py").write_text(REMOTE_CODE)
    # Single bytes, and the one special token at its published place: prompts are ids.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i for i, byte in enumerate(alphabet)} | {chat.END_OF_TEXT: END_ID}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([chat.END_OF_TEXT])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": chat.END_OF_TEXT}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return out


def cost_shape(shape: str) -> Shape:
    """What the cost model computes with."""
    return Shape.of(SHAPES[shape])
