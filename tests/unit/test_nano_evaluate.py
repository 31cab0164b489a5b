from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from llada_sglang.nano import chat, evaluate, plot, tasks
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.evaluate import Answer
from llada_sglang.nano.export import initialise, nano_config
from llada_sglang.nano.tokenizer import train_tokenizer
from llada_sglang.reference.decode import decode


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(samples=2000)


@pytest.mark.parametrize(("block_size", "threshold"), [(8, 0.02), (32, 0.5)])
def test_batched_decoding_answers_as_the_reference_does_one_by_one(
    tokenizer: Tokenizer, block_size: int, threshold: float
) -> None:
    config = nano_config(tokenizer)
    model = initialise(config, seed=4).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # spreads the confidences of untrained weights
        model.lm_head.weight[config["eos_token_id"][1]] *= 2
    questions = [e for f in ("add", "tool", "again") for e in tasks.examples(8, f, "eval", 2)]
    decoder = BatchedDecoder(
        model,
        tokenizer,
        block_size=block_size,
        threshold=threshold,
        max_new_tokens=10,
        batch=4,
    )
    for example, given in zip(questions, decoder(questions), strict=True):
        prompt = tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids
        expected = decode(
            model,
            prompt,
            block_size=block_size,
            mask_id=config["mask_token_id"],
            eos_ids=config["eos_token_id"],
            max_new_tokens=10,
            threshold=threshold,
            steps=block_size,
        )
        assert given.text == tokenizer.decode(list(expected.output_ids), skip_special_tokens=True)
        assert given.tokens == len(expected.output_ids)
        assert given.forwards == expected.forwards


def test_scores_count_exact_matches_and_cost_per_family_and_overall() -> None:
    def answer(questions: Sequence[tasks.Example]) -> list[Answer]:
        return [
            Answer(e.answer if e.family != "sort" else e.answer + " ", tokens=10, forwards=2)
            for e in questions
        ]

    wrong: list[str] = []
    scores = evaluate.evaluate(
        answer,
        seed=1,
        per_family=5,
        families=("add", "sort"),
        on_wrong=lambda example, given: wrong.append(example.family),
    )
    assert [(s.family, s.right, s.count) for s in scores] == [
        ("add", 5, 5),
        ("sort", 0, 5),
        ("all", 5, 10),
    ]
    assert scores[-1].tokens_per_forward == 5.0
    assert wrong == ["sort"] * 5
    assert "| sort | 0.000 | 5.00 |" in evaluate.table(scores)
    with pytest.raises(ValueError, match="10 questions, but 0 answers"):
        evaluate.evaluate(lambda q: [], seed=1, per_family=5, families=("add", "sort"))


def test_every_threshold_is_asked_the_same_questions(tmp_path: Path) -> None:
    asked: dict[float, list[tasks.Example]] = {}

    def answer_at(threshold: float) -> evaluate.AnswerFn:
        def answer(questions: Sequence[tasks.Example]) -> list[Answer]:
            asked[threshold] = list(questions)
            return [Answer(e.answer, 4, 1) for e in questions]

        return answer

    scores = evaluate.curve(answer_at, [0.9, 0.5], seed=2, per_family=1)
    assert asked[0.9] == asked[0.5]
    assert evaluate.curve_table(scores).splitlines()[2].startswith("| 0.50 | 1.000 | 4.00 |")
    plot.draw_curve(
        [(t, s[-1].accuracy, s[-1].tokens_per_forward) for t, s in scores.items()],
        tmp_path / "curve.png",
    )
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
