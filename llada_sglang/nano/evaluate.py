"""How nano is measured: exact match and tokens per forward over the ten families.

`evaluate` takes any function from questions to answers, so that the same questions are put to the
reference decoder (`nano.batched`) and to a running server. As a command it runs the former:
`python -m llada_sglang.nano.evaluate --model DIR`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llada_sglang.nano import tasks


@dataclass(frozen=True, slots=True)
class Answer:
    """Text of an answer without its end token, how many tokens it took, and denoise forwards."""

    text: str
    tokens: int
    forwards: int


@dataclass(frozen=True, slots=True)
class Score:
    """Exact matches of one family, and what its answers cost."""

    family: str
    right: int
    count: int
    tokens: int
    forwards: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)


AnswerFn = Callable[[Sequence[tasks.Example]], Sequence[Answer]]


def evaluate(
    answer: AnswerFn,
    *,
    seed: int,
    per_family: int,
    families: Sequence[str] = tasks.FAMILIES,
    on_wrong: Callable[[tasks.Example, Answer], None] | None = None,
) -> list[Score]:
    """Scores of each family on held-out prompts, then of all of them under the name `all`."""
    asked = [e for f in families for e in tasks.examples(seed, f, "eval", per_family)]
    answers = answer(asked)
    if len(answers) != len(asked):
        raise ValueError(f"{len(asked)} questions, but {len(answers)} answers")
    scores = []
    for family in (*families, "all"):
        pairs = [(e, a) for e, a in zip(asked, answers, strict=True) if family in (e.family, "all")]
        right = sum(e.answer == a.text for e, a in pairs)
        tokens, forwards = sum(a.tokens for _, a in pairs), sum(a.forwards for _, a in pairs)
        scores.append(Score(family, right, len(pairs), tokens, forwards))
    if on_wrong is not None:
        for example, given in zip(asked, answers, strict=True):
            if example.answer != given.text:
                on_wrong(example, given)
    return scores


def curve(
    answer_at: Callable[[float], AnswerFn],
    thresholds: Sequence[float],
    *,
    seed: int,
    per_family: int,
) -> dict[float, list[Score]]:
    """`evaluate` at every threshold, on the same questions; `answer_at` makes the answerer."""
    return {t: evaluate(answer_at(t), seed=seed, per_family=per_family) for t in thresholds}


def curve_table(scores: dict[float, list[Score]]) -> str:
    """Threshold, exact match and tokens per forward over all families, as a Markdown table."""
    lines = ["| threshold | exact match | tokens per forward |", "|---|---|---|"]
    for threshold, rows in sorted(scores.items()):
        whole = rows[-1]
        lines.append(f"| {threshold:.2f} | {whole.accuracy:.3f} | {whole.tokens_per_forward:.2f} |")
    return "\n".join(lines)


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| family | exact match | tokens per forward |", "|---|---|---|"]
    lines += [f"| {s.family} | {s.accuracy:.3f} | {s.tokens_per_forward:.2f} |" for s in scores]
    return "\n".join(lines)


def main() -> None:
    from tokenizers import Tokenizer

    from llada_sglang.nano.batched import BatchedDecoder
    from llada_sglang.nano.editors import BatchedEditor
    from llada_sglang.nano.export import BLOCK_SIZE
    from llada_sglang.reference.checkpoint import load_model

    parser = argparse.ArgumentParser(description="Measure nano with the reference decoder.")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--per-family", type=int, default=200, help="questions per family")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument(
        "--policy",
        choices=("threshold", "editing"),
        default="threshold",
        help="editing is levenshtein where the tokenizer has its tokens, else edit",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        help="one makes a table per family; the default is the policy's own",
    )
    parser.add_argument("--edit-threshold", type=float, help="of editing; default the policy's own")
    parser.add_argument("--show-wrong", action="store_true", help="print every wrong answer")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))

    def answer_at(threshold: float | None) -> AnswerFn:
        if arguments.policy == "editing":
            return BatchedEditor(
                model,
                tokenizer,
                block_size=BLOCK_SIZE,
                threshold=threshold,
                edit_threshold=arguments.edit_threshold,
                progress=True,
            )
        return BatchedDecoder(
            model,
            tokenizer,
            block_size=BLOCK_SIZE,
            threshold=0.95 if threshold is None else threshold,
            progress=True,
        )

    def show(example: tasks.Example, given: Answer) -> None:
        question = example.messages[-1]["content"]
        print(f"{example.family}: {question!r}\n  right {example.answer!r}\n  given {given.text!r}")

    questions = {"seed": arguments.seed, "per_family": arguments.per_family}
    if arguments.thresholds is None or len(arguments.thresholds) == 1:
        (threshold,) = arguments.thresholds or (None,)
        wrong = show if arguments.show_wrong else None
        print(table(evaluate(answer_at(threshold), **questions, on_wrong=wrong)))
    else:
        print(curve_table(curve(answer_at, arguments.thresholds, **questions)))


if __name__ == "__main__":
    main()
