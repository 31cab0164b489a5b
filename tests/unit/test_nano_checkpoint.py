"""The checkpoint in the package is what its card says: complete, small, and right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import llada_sglang.nano
from llada_sglang.nano import chat, evaluate, tasks
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.export import nano_config
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.reference.decode import decode
from llada_sglang.reference.model import LLaDA2, MoE

CHECKPOINT = Path(llada_sglang.nano.__file__).parent / "checkpoint"


@pytest.fixture(scope="module")
def model() -> LLaDA2:
    return load_model(CHECKPOINT)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def test_it_fits_in_the_repository_and_runs_no_code_of_its_own() -> None:
    files = list(CHECKPOINT.iterdir())
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    assert not [file for file in files if file.suffix == ".py"]
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert "auto_map" not in config
    assert "README.md" in {file.name for file in files}


def test_config_and_template_are_those_the_trainer_writes(tokenizer: Tokenizer) -> None:
    assert json.loads((CHECKPOINT / "config.json").read_text()) == nano_config(tokenizer)
    assert AutoTokenizer.from_pretrained(CHECKPOINT).chat_template == chat.CHAT_TEMPLATE


def test_every_part_of_the_architecture_is_at_work(model: LLaDA2) -> None:
    for layer in model.model.layers[1:]:
        assert isinstance(layer.mlp, MoE)
        assert layer.mlp.gate.expert_bias.abs().max() > 0.01
        assert layer.mlp.shared_experts is not None
        assert layer.attention.query_layernorm.weight.std() > 0


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
