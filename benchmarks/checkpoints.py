"""Write the checkpoints of the measurements: `python -m benchmarks.checkpoints random DIR`.

random: 4 layers of random weights at LLaDA2's vocabulary of 157184. It hardly ever exceeds the
threshold, so it resolves one token per step: the worst case of a block.

wide-nano: a trained nano checkpoint (`--nano`) at that vocabulary, with the mask and EOS ids LLaDA2
was published with, which the host hard-codes. An equivalent model: same tokens, same confidences.

plain-nano: the same with nano's own vocabulary and ids; stock serves it where it is told the mask
id (`benchmarks.stock_plugin`).

All have `routed_scaling_factor` 1, since the host drops that factor on a CPU (nano's is folded into
its experts), and float32 weights, so that texts can be compared token for token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from llada_sglang.checkpoint import read_family
from llada_sglang.nano import chat, tasks
from llada_sglang.nano.tokenizer import token_id
from llada_sglang.reference.checkpoint import load_model, read_tensors

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


EXTRA = 64
"""Hidden channels the widened nano has more: one holds a constant, the others are zero."""

CONSTANT = 1e-3
"""The constant: its square is lost in the rounding of a hidden state's norm."""

SILENCE = 60.0
"""Logit of the new ids, at least so far below zero: less than 1e-20 of the softmax together."""


def write_wide(nano: Path, out: Path) -> None:
    """Write `nano` at the full vocabulary, about 330 MB.

    A new id must not take part in the softmax, and lm_head has no bias. So the hidden state gets
    a channel that holds the same small number from the embedding to the last norm, which scales
    it up, and the new ids' rows of lm_head read that channel alone. The norms' weights and epsilon
    make up for the extra channels: everything else is as in nano.
    """
    _write_equivalent(nano, out, VOCABULARY, _moved_ids(nano))


def write_plain(nano: Path, out: Path) -> None:
    """Write `nano` as stock can serve it, at its own vocabulary: about 27 MB.

    Only the mask is silenced, in the way `write_wide` silences new ids.
    """
    _write_equivalent(nano, out, read_family(str(nano)).vocab_size, {})


def _write_equivalent(nano: Path, out: Path, vocabulary: int, moved: Mapping[int, int]) -> None:
    """Write a model that says of `nano`'s ids, moved, what nano does, and never the mask's.

    vocabulary: at least nano's. moved: nano's ids that become others, free ones.
    """
    family = read_family(str(nano))
    tensors = {name: tensor.float() for name, tensor in read_tensors(nano).items()}
    factor = float(family.config["routed_scaling_factor"])
    for name in tensors:
        if ".mlp.experts." in name and name.endswith("down_proj.weight"):
            tensors[name] = tensors[name] * factor
    hidden = int(family.config["hidden_size"])
    new = torch.tensor([moved.get(old, old) for old in range(family.vocab_size)])
    tensors = {name: _widened(name, tensor, hidden) for name, tensor in tensors.items()}
    silent = torch.zeros(hidden + EXTRA)
    silent[hidden] = -SILENCE * _greatest_norm(nano) / (hidden + EXTRA) ** 0.5
    blank = torch.zeros(hidden + EXTRA)
    blank[hidden] = CONSTANT
    for name, filler in (("model.word_embeddings.weight", blank), ("lm_head.weight", silent)):
        wide = filler.repeat(vocabulary, 1)
        wide[new] = tensors[name]
        tensors[name] = wide
    mask_id = moved.get(family.mask_id, family.mask_id)
    # The host lets a position predict its own mask, which would stay masked for ever.
    tensors["lm_head.weight"][mask_id] = silent
    ends = [moved.get(end, end) for end in family.eos_ids]
    pad = family.config["pad_token_id"]
    config = {
        **family.config,
        "hidden_size": hidden + EXTRA,
        "rms_norm_eps": family.config["rms_norm_eps"] * hidden / (hidden + EXTRA),
        "vocab_size": vocabulary,
        "mask_token_id": mask_id,
        "eos_token_id": ends,
        "pad_token_id": moved.get(pad, pad),
        "routed_scaling_factor": 1.0,
        "torch_dtype": "float32",
    }
    _write(out, config, tensors)
    _write_tokenizer(nano, out, moved)
    generation = {"eos_token_id": sorted(ends), "pad_token_id": config["pad_token_id"]}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")


def _widened(name: str, tensor: Tensor, hidden: int) -> Tensor:
    """A tensor of nano with the extra channels wherever it has hidden ones."""
    if name.endswith(("o_norm.weight", "layernorm.weight", "model.norm.weight")):
        if tensor.shape != (hidden,):
            return tensor  # of queries and keys
        wide = F.pad(tensor * (hidden / (hidden + EXTRA)) ** 0.5, (0, EXTRA))
        if name == "model.norm.weight":
            wide[hidden] = 1 / CONSTANT
        return wide
    if name.endswith(("dense.weight", "down_proj.weight")):
        return F.pad(tensor, (0, 0, 0, EXTRA))
    if tensor.dim() == 2 and tensor.shape[1] == hidden:
        wide = F.pad(tensor, (0, EXTRA))
        if name == "model.word_embeddings.weight":
            wide[:, hidden] = CONSTANT
        return wide
    return tensor


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
def _greatest_norm(nano: Path) -> float:
    """The greatest norm of a final hidden state over prompts of every family."""
    model = load_model(nano)
    tokenizer = Tokenizer.from_file(str(nano / "tokenizer.json"))
    block = read_family(str(nano)).block_size
    norms: list[float] = []
    hook = model.model.norm.register_forward_pre_hook(
        lambda _, args: norms.append(float(args[0].norm(dim=-1).max()))
    )
    for family in tasks.FAMILIES:
        for example in tasks.examples(7, family, "eval", 8):
            ids = tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids
            ids = torch.tensor(ids[: len(ids) // block * block] or ids * block)
            ids = ids[: len(ids) // block * block]
            model.block_causal_logits(ids, block)
    hook.remove()
    return max(norms)


def _write_tokenizer(nano: Path, out: Path, moved: Mapping[int, int]) -> None:
    content = json.loads((nano / "tokenizer.json").read_text())
    wanted = {}
    for token in content["added_tokens"]:
        token["id"] = wanted[token["content"]] = moved.get(token["id"], token["id"])
        # The library gives an added token the next free id, unless the model has it already.
        content["model"]["vocab"][token["content"]] = token["id"]
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_text((nano / name).read_text())
    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    for token, target in wanted.items():
        found = written.token_to_id(token)
        if found != target:
            raise SystemExit(f"{token} has id {found} in the written tokenizer, wanted {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("random", "wide-nano", "plain-nano"))
    parser.add_argument("out", type=Path, help="directory to write")
    nano = Path(__file__).resolve().parent.parent / "llada_sglang" / "nano" / "checkpoint"
    parser.add_argument("--nano", type=Path, default=nano, help="trained checkpoint to start from")
    arguments = parser.parse_args()
    if arguments.kind == "random":
        write_random(arguments.out)
    elif arguments.kind == "wide-nano":
        write_wide(arguments.nano, arguments.out)
    else:
        write_plain(arguments.nano, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
