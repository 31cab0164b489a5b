"""The checkpoints in the package are what their cards say: complete, small, and right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import llada_sglang.nano
from llada_sglang.nano import chat, evaluate, tasks
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.editors import BatchedEditor
from llada_sglang.nano.export import nano_config
from llada_sglang.nano.recipe import Variant
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.reference.decode import decode
from llada_sglang.reference.model import LLaDA2
from llada_sglang.reference.moe import MoE

PACKAGE = Path(llada_sglang.nano.__file__).parent
CHECKPOINT = PACKAGE / "checkpoint"
VARIANTS: dict[Variant, Path] = {
    "base": CHECKPOINT,
    "lookahead": PACKAGE / "checkpoint_lookahead",
    "edit": PACKAGE / "checkpoint_edit",
    "levenshtein": PACKAGE / "checkpoint_levenshtein",
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def model() -> LLaDA2:
    return load_model(CHECKPOINT)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@every_variant
def test_it_fits_in_the_repository_and_runs_no_code_of_its_own(variant: Variant) -> None:
    files = list(VARIANTS[variant].iterdir())
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    assert not [file for file in files if file.suffix == ".py"]
    config = json.loads((VARIANTS[variant] / "config.json").read_text())
    assert "auto_map" not in config
    assert "README.md" in {file.name for file in files}


@every_variant
def test_config_and_template_are_those_the_trainer_writes(variant: Variant) -> None:
    directory = VARIANTS[variant]
    written = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert json.loads((directory / "config.json").read_text()) == nano_config(written, variant)
    assert AutoTokenizer.from_pretrained(directory).chat_template == chat.CHAT_TEMPLATE


@every_variant
def test_every_part_of_the_architecture_is_at_work(variant: Variant) -> None:
    for layer in load_model(VARIANTS[variant]).model.layers[1:]:
        assert isinstance(layer.mlp, MoE)
        assert layer.mlp.gate.expert_bias.abs().max() > 0.01
        assert layer.mlp.shared_experts is not None
        assert layer.attention.query_layernorm.weight.std() > 0


@pytest.mark.parametrize("variant", ["edit", "levenshtein"])
def test_a_variant_answers_held_out_questions_by_its_own_policy(variant: Variant) -> None:
    directory = VARIANTS[variant]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    decoder = BatchedEditor(load_model(directory), tokenizer, block_size=32)
    scores = evaluate.evaluate(decoder, seed=1000, per_family=6)
    assert scores[-1].accuracy >= 0.85
    assert scores[-1].tokens_per_forward >= 2


def test_it_answers_held_out_questions(model: LLaDA2, tokenizer: Tokenizer) -> None:
    decoder = BatchedDecoder(model, tokenizer, block_size=32, threshold=0.95)
    scores = evaluate.evaluate(decoder, seed=1000, per_family=6)
    assert scores[-1].accuracy >= 0.9
    assert scores[-1].tokens_per_forward >= 3


def test_decoding_alone_gives_the_answer_of_the_batch(model: LLaDA2, tokenizer: Tokenizer) -> None:
    decoder = BatchedDecoder(model, tokenizer, block_size=32, threshold=0.95)
    questions = [e for f in tasks.FAMILIES for e in tasks.examples(2, f, "eval", 1)]
    config = nano_config(tokenizer)
    for example, given in zip(questions, decoder(questions), strict=True):
        alone = decode(
            model,
            tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids,
            block_size=32,
            mask_id=config["mask_token_id"],
            eos_ids=config["eos_token_id"],
            max_new_tokens=128,
        )
        text = tokenizer.decode(list(alone.output_ids), skip_special_tokens=True)
        assert text == given.text
        assert (len(alone.output_ids), alone.forwards) == (given.tokens, given.forwards)


@pytest.mark.parametrize("variant", ["edit", "levenshtein"])
def test_editing_alone_gives_the_answer_of_the_batch(variant: Variant) -> None:
    directory = VARIANTS[variant]
    model, config = load_model(directory), json.loads((directory / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    decoder = BatchedEditor(model, tokenizer, block_size=32)
    questions = [e for f in tasks.FAMILIES for e in tasks.examples(2, f, "eval", 1)]
    for example, given in zip(questions, decoder(questions), strict=True):
        alone = decode(
            model,
            tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids,
            block_size=32,
            mask_id=config["mask_token_id"],
            eos_ids=config["eos_token_id"],
            max_new_tokens=128,
            policy=variant,
            delete_id=config.get("delete_token_id"),
            split_id=config.get("split_token_id"),
        )
        text = tokenizer.decode(list(alone.output_ids), skip_special_tokens=True)
        assert text == given.text
        assert (len(alone.output_ids), alone.forwards) == (given.tokens, given.forwards)


def test_the_lookahead_variant_loses_nothing_by_looking_ahead() -> None:
    directory = VARIANTS["lookahead"]
    model, config = load_model(directory), json.loads((directory / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    forwards, right = dict.fromkeys((1, 2), 0), dict.fromkeys((1, 2), 0)
    for family in ("count", "table"):
        for example in tasks.examples(4, family, "eval", 4):
            for lookahead in forwards:
                given = decode(
                    model,
                    tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids,
                    block_size=32,
                    mask_id=config["mask_token_id"],
                    eos_ids=config["eos_token_id"],
                    max_new_tokens=128,
                    lookahead=lookahead,
                )
                text = tokenizer.decode(list(given.output_ids), skip_special_tokens=True)
                right[lookahead] += text == example.answer
                forwards[lookahead] += given.forwards
    assert right[2] >= right[1] - 1
    assert forwards[2] < 0.8 * forwards[1]
