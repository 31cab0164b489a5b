"""Write the checkpoints of the measurements: `python -m benchmarks.checkpoints random DIR`.

random: 4 layers of random weights at LLaDA2's vocabulary of 157184. It hardly ever exceeds the
threshold, so it resolves one token per step: the worst case of a block.

wide-nano: the trained nano checkpoint at that vocabulary, with the mask and EOS ids LLaDA2 was
published with, which the host hard-codes. An equivalent model: same tokens, same confidences.

Both have `routed_scaling_factor` 1, since the host drops that factor on a CPU (wide-nano has it
folded into its experts), and float32 weights, so that texts can be compared token for token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from llada_sglang.checkpoint import read_family
from llada_sglang.nano import chat, tasks
from llada_sglang.nano.tokenizer import token_id
from llada_sglang.reference.checkpoint import load_model, read_tensors
from llada_sglang.reference.model import LLaDA2, block_causal_mask

VOCABULARY = 157_184
MASK_ID, END_ID, ROLE_END_ID = 156_895, 156_892, 156_900
HEAD_SCALE = 0.3
"""Deviation of lm_head in the random checkpoint: confidences of a block then lie well apart."""

REMOTE_CODE = '''"""The host needs it with --trust-remote-code; llada_sglang never runs it."""

from transformers.configuration_utils import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    model_type = "llada2_moe"

    def __init__(self, **keys):
        for name, value in keys.items():
            try:
                setattr(self, name, value)
            except Exception:
                pass
        super().__init__(**keys)
'''

RANDOM_CONFIG: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
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
    "max_position_embeddings": 32768,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 32,
    "use_cache": True,
    "pad_token_id": END_ID,
    "eos_token_id": END_ID,
    "num_experts": 16,
    "num_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.0,
    "moe_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "router_dtype": "fp32",
    "norm_topk_prob": True,
    "torch_dtype": "float32",
}


def write_random(out: Path, *, seed: int = 0) -> None:
    """Write the random checkpoint, about 370 MB."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.05) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def mlp(prefix: str, hidden: int, width: int) -> dict[str, Tensor]:
        return {
            f"{prefix}gate_proj.weight": normal(width, hidden),
            f"{prefix}up_proj.weight": normal(width, hidden),
            f"{prefix}down_proj.weight": normal(hidden, width),
        }

    c = RANDOM_CONFIG
    hidden, head, experts = c["hidden_size"], c["head_dim"], c["num_experts"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    weights = {
        "model.word_embeddings.weight": normal(VOCABULARY, hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": normal(VOCABULARY, hidden, scale=HEAD_SCALE),
    }
    weights["lm_head.weight"][MASK_ID] = 0  # the host lets a position predict its own mask
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        weights |= {
            f"{p}input_layernorm.weight": torch.ones(hidden),
            f"{p}post_attention_layernorm.weight": torch.ones(hidden),
            f"{p}attention.query_key_value.weight": normal((heads + 2 * kv_heads) * head, hidden),
            f"{p}attention.dense.weight": normal(hidden, heads * head),
            f"{p}attention.query_layernorm.weight": torch.ones(head),
            f"{p}attention.key_layernorm.weight": torch.ones(head),
        }
        if layer < c["first_k_dense_replace"]:
            weights |= mlp(f"{p}mlp.", hidden, c["intermediate_size"])
            continue
        weights[f"{p}mlp.gate.weight"] = normal(experts, hidden)
        weights[f"{p}mlp.gate.expert_bias"] = torch.zeros(experts)
        for expert in range(experts):
            weights |= mlp(f"{p}mlp.experts.{expert}.", hidden, c["moe_intermediate_size"])
        weights |= mlp(f"{p}mlp.shared_experts.", hidden, c["moe_intermediate_size"])
    _write(out, c, weights)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i for i, byte in enumerate(alphabet)} | {chat.END_OF_TEXT: END_ID}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([chat.END_OF_TEXT])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": chat.END_OF_TEXT}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def write_wide(nano: Path, out: Path) -> None:
    """Write `nano` at the full vocabulary, about 250 MB.

    A new id must not take part in the softmax, and lm_head has no bias. So its row is the one
    direction that every final hidden state of a set of prompts is far to the negative of, found by
    least squares; how much probability the new ids get is printed and must be below 1e-4.
    """
    family = read_family(str(nano))
    moved = _moved_ids(nano)
    tensors = {name: tensor.float() for name, tensor in read_tensors(nano).items()}
    factor = float(family.config["routed_scaling_factor"])
    for name in tensors:
        if ".mlp.experts." in name and name.endswith("down_proj.weight"):
            tensors[name] = tensors[name] * factor
    model = load_model(nano)
    unused, share = _silent_row(model, nano, family.block_size, family.mask_id)
    print(f"probability of the {VOCABULARY - family.vocab_size} new ids together: {share:.1e}")
    if share > 1e-4:
        raise SystemExit("no direction of lm_head keeps the new ids out of the softmax")
    old = torch.arange(family.vocab_size)
    new = old.clone()
    for source, target in moved.items():
        new[source] = target
    for name, filler in (
        ("model.word_embeddings.weight", torch.zeros(family.config["hidden_size"])),
        ("lm_head.weight", unused),
    ):
        wide = filler.repeat(VOCABULARY, 1)
        wide[new] = tensors[name][old]
        tensors[name] = wide
    # The host lets a position predict its own mask, which would stay masked for ever.
    tensors["lm_head.weight"][MASK_ID] = unused
    ends = family.config["eos_token_id"]
    ends = [ends] if isinstance(ends, int) else ends
    config = {
        **family.config,
        "vocab_size": VOCABULARY,
        "mask_token_id": MASK_ID,
        "eos_token_id": [moved[end] for end in ends],
        "pad_token_id": END_ID,
        "routed_scaling_factor": 1.0,
        "torch_dtype": "float32",
    }
    _write(out, config, tensors)
    _write_moved_tokenizer(nano, out, moved)


def _write(out: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    remote = {"AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig"}
    (out / "config.json").write_text(json.dumps({**config, "auto_map": remote}, indent=1) + "\n")
    (out / "configuration_llada2_moe.py").write_text(REMOTE_CODE)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )


def _moved_ids(nano: Path) -> dict[int, int]:
    tokenizer = Tokenizer.from_file(str(nano / "tokenizer.json"))
    targets = {chat.END_OF_TEXT: END_ID, chat.MASK: MASK_ID, chat.ROLE_END: ROLE_END_ID}
    return {token_id(tokenizer, token): target for token, target in targets.items()}


@torch.no_grad()
def _silent_row(model: LLaDA2, nano: Path, block: int, mask_id: int) -> tuple[Tensor, float]:
    """A row of lm_head whose logit is about -60 everywhere, and the new ids' share of the softmax.

    The rows are fitted to one half of the prompts, the share is the greatest of the other half.
    """
    tokenizer = Tokenizer.from_file(str(nano / "tokenizer.json"))
    states: list[Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    drawn = [tasks.examples(7, family, "eval", 24) for family in tasks.FAMILIES]
    generator = torch.Generator().manual_seed(0)
    for example in (example for family in zip(*drawn, strict=True) for example in family):
        prompt = tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids
        answer = tokenizer.encode(example.answer + chat.ROLE_END).ids
        answer += [token_id(tokenizer, chat.END_OF_TEXT)] * (2 * block)
        length = (len(prompt) + block) // block * block + block
        ids = torch.tensor((prompt + answer)[:length])
        hidden = torch.rand(length, generator=generator) < torch.rand(1, generator=generator)
        hidden[: len(prompt)] = False
        ids[hidden] = mask_id
        positions = torch.arange(length)
        model(ids[None], positions[None], block_causal_mask(length, block)[None], fast=True)
    hook.remove()
    half = len(states) // 2
    fitted = torch.cat([s.flatten(0, -2) for s in states[:half]]).double()
    held_out = torch.cat([s.flatten(0, -2) for s in states[half:]]).float()
    ridge = 1e-3 * torch.eye(fitted.shape[1], dtype=torch.float64)
    target = torch.full((len(fitted),), -60.0, dtype=torch.float64)
    row = torch.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ target).float()
    total = model.lm_head(held_out).logsumexp(-1)
    new_ids = torch.tensor(float(VOCABULARY - model.lm_head.weight.shape[0])).log()
    share = (held_out @ row + new_ids - total).exp().max()
    return row, float(share)


def _write_moved_tokenizer(nano: Path, out: Path, moved: dict[int, int]) -> None:
    content = json.loads((nano / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["id"] = moved.get(token["id"], token["id"])
        # The library gives an added token the next free id, unless the model has it already.
        content["model"]["vocab"][token["content"]] = token["id"]
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_text((nano / name).read_text())
    ends = sorted({END_ID, ROLE_END_ID})
    generation = {"eos_token_id": ends, "pad_token_id": END_ID}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    for token, target in ((chat.MASK, MASK_ID), (chat.END_OF_TEXT, END_ID)):
        found = written.token_to_id(token)
        if found != target:
            raise SystemExit(f"{token} has id {found} in the written tokenizer, wanted {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("random", "wide-nano"))
    parser.add_argument("out", type=Path, help="directory to write")
    nano = Path(__file__).resolve().parent.parent / "llada_sglang" / "nano" / "checkpoint"
    parser.add_argument("--nano", type=Path, default=nano, help="trained checkpoint to widen")
    arguments = parser.parse_args()
    if arguments.kind == "random":
        write_random(arguments.out)
    else:
        write_wide(arguments.nano, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
