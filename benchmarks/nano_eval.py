"""Accuracy and speed of nano through the running server: `python -m benchmarks.nano_eval`.

Held-out questions of every family go over HTTP to a server started without any flag. Accuracy is
exact match; tokens per forward counts output tokens (the end token included) over the forwards
that carried a denoise row of the request, as the server reports them in `meta_info`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import report
from benchmarks.client import Task, ask_all
from benchmarks.engines import OURS, REPOSITORY, in_words, serve, spec
from llada_sglang.nano import chat, tasks
from llada_sglang.nano.evaluate import Answer, Score, curve_table, evaluate, table

NANO = REPOSITORY / "llada_sglang" / "nano" / "checkpoint"
MODULE = "benchmarks.nano_eval"
NAME = "nano-eval"
DEFAULT_THRESHOLD = 0.95


class OverHttp:
    """Puts questions to a running server; counts the requests that failed.

    decoding: custom_params of every request.
    """

    def __init__(
        self, url: str, model: Path, *, decoding: Mapping[str, Any], concurrency: int
    ) -> None:
        self._url = url
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._decoding = decoding
        self._concurrency = concurrency
        self.errors: list[str] = []

    def __call__(self, examples: Sequence[tasks.Example]) -> list[Answer]:
        asked = [
            Task(
                tuple(self._tokenizer.encode(chat.render_prompt(e.messages, e.tools)).ids),
                max_new_tokens=128,
                ignore_eos=False,
                decoding=self._decoding,
            )
            for e in examples
        ]
        replies = asyncio.run(ask_all(self._url, asked, concurrency=self._concurrency))
        self.errors = [reply.error for reply in replies if reply.error]
        return [
            Answer(
                reply.text,
                len(reply.output_ids),
                int(reply.meta.get("denoise_forwards", 0)),
            )
            for reply in replies
        ]


def run(arguments: argparse.Namespace, logs: Path) -> None:
    """Measure every threshold, rewriting the report after each, the default one first."""
    thresholds = sorted(set(arguments.thresholds) | {DEFAULT_THRESHOLD})
    thresholds.sort(key=lambda t: t != DEFAULT_THRESHOLD)
    flags = tuple(arguments.flags.split())
    scores: dict[float, list[Score]] = {}
    notes: dict[float, tuple[float, int]] = {}
    with serve(spec(OURS, arguments.model, flags), logs / "nano-eval.log") as server:
        for threshold in thresholds:
            answer = OverHttp(
                server.url,
                arguments.model,
                decoding={"threshold": threshold},
                concurrency=arguments.concurrency,
            )
            started = time.monotonic()
            scores[threshold] = evaluate(
                answer, seed=arguments.seed, per_family=arguments.per_family
            )
            notes[threshold] = time.monotonic() - started, len(answer.errors)
            print(f"threshold {threshold}: {scores[threshold][-1]}", file=sys.stderr, flush=True)
            for error in answer.errors[:3]:
                print(f"  error: {error}", file=sys.stderr)
            _write(arguments, flags, scores, notes)


def _write(
    arguments: argparse.Namespace,
    flags: Sequence[str],
    scores: dict[float, list[Score]],
    notes: dict[float, tuple[float, int]],
) -> None:
    from llada_sglang.nano.plot import draw_curve

    count = arguments.per_family * len(tasks.FAMILIES)
    runs = report.table(
        ["threshold", "questions", "errors", "seconds"],
        [[f"{t:.2f}", count, bad, f"{spent:.0f}"] for t, (spent, bad) in sorted(notes.items())],
    )
    report.write(
        NAME,
        "Nano through the running server",
        MODULE,
        [
            f"{arguments.per_family} held-out questions of each family over HTTP, "
            f"{arguments.concurrency} at a time, to `{in_words(OURS, flags)}` "
            "where DIR is the bundled checkpoint. Accuracy is exact match; tokens per forward is "
            "output tokens over denoise forwards of the request.",
            f"## At threshold {DEFAULT_THRESHOLD}",
            table(scores[DEFAULT_THRESHOLD]),
            "## Against the threshold\n\n![curve](nano-eval.png)",
            curve_table(scores),
            "## Runs\n\nA request that failed counts as a wrong answer.",
            runs,
        ],
    )
    if len(scores) > 1:
        rows = [(t, s[-1].accuracy, s[-1].tokens_per_forward) for t, s in scores.items()]
        draw_curve(rows, report.RESULTS / f"{NAME}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=NANO, help="checkpoint directory")
    parser.add_argument("--per-family", type=int, default=200, help="questions of each family")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--flags", default="", help="more flags of the server, in one string")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=[0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0],
        help=f"{DEFAULT_THRESHOLD} is always among them",
    )
    arguments = parser.parse_args()
    logs = REPOSITORY / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    run(arguments, logs)


if __name__ == "__main__":
    main()
