"""Tokens per forward under a grammar against without: `python -m benchmarks.grammar`.

Nano's questions that want JSON, with and without their schema, and two hundred schemas that have
nothing to do with the question, on the scheduler in this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engines import OURS, in_words
from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

MODULE = "benchmarks.grammar"
NAME = "grammar"
FLAGS = ("--dtype", "float32", "--max-running-requests", "32")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z]{1,20}$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "city": {"type": "string", "pattern": "^[A-Za-z]{1,20}$"},
        },
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
)


def ask(host: Any, prompts: list[list[int]], each: list[dict[str, Any]]) -> list[Any]:
    """Answers to all prompts at once, in their order."""
    rids = [
        host.submit(prompt, max_new_tokens=500, **sampling)
        for prompt, sampling in zip(prompts, each, strict=True)
    ]
    host.run(100_000)
    return [host.answers[rid] for rid in rids]


def row(name: str, answers: list[Any], good: list[bool]) -> list[str]:
    """One line of the table: what was asked, how many answers are good, tokens per forward."""
    figures = [answer.info["tokens_per_forward"] for answer in answers]
    return [
        name,
        str(len(answers)),
        f"{sum(good) / len(good):.3f}",
        f"{statistics.mean(figures):.2f}",
        f"{min(figures):.2f} - {max(figures):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    nano = Path(__file__).resolve().parent.parent / "llada_sglang" / "nano" / "checkpoint"
    parser.add_argument("--model", type=Path, default=nano)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.95, 0.7])
    arguments = parser.parse_args()
    import jsonschema
    from inprocess import InProcessEngine  # type: ignore[import-not-found]
    from json_schemas import schemas  # type: ignore[import-not-found]

    host = InProcessEngine(str(arguments.model), *FLAGS)
    drawn = list(tasks.examples(11, "json", "eval", arguments.questions))
    prompts = [list(host.tokenizer.encode(render_prompt(e.messages, tools=e.tools))) for e in drawn]

    def text(answer: Any) -> str:
        return str(host.tokenizer.decode(answer.ids, skip_special_tokens=True)).strip()

    def valid(answer: Any, schema: Any) -> bool:
        try:
            jsonschema.validate(json.loads(text(answer)), schema)
        except (ValueError, jsonschema.ValidationError):
            return False
        return True

    rows = []
    for threshold in arguments.thresholds:
        custom = {"custom_params": {"threshold": threshold}}
        for name, extra in (("no grammar", {}), ("its schema", {"json_schema": SCHEMA})):
            answers = ask(host, prompts, [{**custom, **extra}] * len(prompts))
            good = [text(a) == e.answer.strip() for a, e in zip(answers, drawn, strict=True)]
            rows.append(row(f"JSON questions, {name}, threshold {threshold}", answers, good))
    unrelated = schemas(200)
    for temperature in (0.0, 1.0):
        each = [
            {"json_schema": json.dumps(s), "temperature": temperature, "sampling_seed": i}
            for i, s in enumerate(unrelated)
        ]
        answers = ask(host, [prompts[0]] * len(unrelated), each)
        good = [valid(a, s) for a, s in zip(answers, unrelated, strict=True)]
        rows.append(row(f"unrelated schemas, temperature {temperature:g}", answers, good))
    report.write(
        NAME,
        "Tokens per forward under a grammar",
        MODULE,
        [
            f"Nano in this process; flags of `{in_words(OURS, FLAGS)}`, grammar backend xgrammar. "
            "Good: exact match for the questions, parsed and valid (jsonschema) for the schemas.",
            report.table(
                ["asked", "requests", "good", "tokens per forward, mean", "least - greatest"],
                rows,
            ),
        ],
    )


if __name__ == "__main__":
    main()
