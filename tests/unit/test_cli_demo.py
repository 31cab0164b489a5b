"""The questions of `llada-sglang demo` and what it says about the answers."""

from __future__ import annotations

import pytest

from llada_sglang.cli import demo
from llada_sglang.cli.answers import Answer, figures, total
from llada_sglang.nano import tasks


def answer(tokens: int = 12, seconds: float = 0.5, forwards: int | None = 4) -> Answer:
    return Answer("text", tokens, seconds, forwards, "stop")


def test_every_family_is_asked_once() -> None:
    assert sorted(q.family for q in demo.questions()) == sorted(tasks.FAMILIES)


def test_no_question_was_in_the_training_data() -> None:
    assert all(tasks.is_held_out(q.text) for q in demo.questions() if not q.again)


def test_again_continues_a_conversation_and_only_the_tool_question_has_tools() -> None:
    asked = demo.questions()
    (position,) = (i for i, q in enumerate(asked) if q.again)
    assert position > 0
    assert asked[position].right is None
    assert not asked[position - 1].again
    assert [q.family for q in asked if q.tools] == ["tool"]


def test_two_runs_ask_the_same() -> None:
    assert demo.questions() == demo.questions()


def test_the_figures_of_an_answer() -> None:
    assert figures(answer()) == "12 tokens  0.50 s  24.0 tokens/s  3.0 tokens/forward"
    assert figures(answer(forwards=None)) == "12 tokens  0.50 s  24.0 tokens/s"


def test_a_total_adds_costs_and_claims_no_forwards_it_does_not_know() -> None:
    whole = total([answer(), answer(tokens=4, seconds=0.3, forwards=1)])
    assert (whole.tokens, whole.forwards, whole.tokens_per_forward) == (16, 5, 3.2)
    assert whole.seconds == pytest.approx(0.8)
    assert total([answer(), answer(forwards=None)]).forwards is None


def test_the_summary_counts_right_answers_of_a_judged_model_only() -> None:
    judged = demo.Report(right=1, answers=[answer(), answer()])
    assert judged.summary().startswith("2 answers, 1 right: 24 tokens")
    assert "right" not in demo.Report(right=None, answers=[answer()]).summary()
