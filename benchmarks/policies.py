"""Accuracy and speed of every decoding policy: `python -m benchmarks.policies`.

The questions of nano's ten families go over HTTP to the checkpoint each policy is made for, every
setting to the same running server. Tokens per forward counts output tokens over the forwards that
carried denoise rows of a request; forwards per block, the same forwards over the blocks its text
reaches into.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import report
from benchmarks.client import Task, ask_all
from benchmarks.engines import OURS, REPOSITORY, in_words, serve, spec
from llada_sglang.nano import chat, tasks

NANO = REPOSITORY / "llada_sglang" / "nano"
MODULE = "benchmarks.policies"
NAME = "policies"
BLOCK = 32
CONCURRENCIES = (1, 8, 32)

Decoding = Mapping[str, Any]

SETTINGS: dict[str, tuple[Decoding, ...]] = {
    "checkpoint": (
        {"policy": "threshold", "threshold": 0.95},
        {"policy": "threshold", "threshold": 0.95, "lookahead": 2},
        {"policy": "threshold", "threshold": 0.95, "lookahead": 2, "lookahead_start": 0.8},
        {"policy": "threshold", "threshold": 0.8},
        {"policy": "threshold", "threshold": 0.6},
        {"policy": "steps", "steps": 16},
        {"policy": "steps", "steps": 8},
        {"policy": "entropy", "gamma": 0.05},
        {"policy": "entropy", "gamma": 0.3},
        {"policy": "hierarchical"},
        {"policy": "credit"},
        {"policy": "factor", "factor": 0.5},
        {"policy": "factor", "factor": 1.0},
    ),
    "checkpoint_lookahead": (
        {"policy": "threshold", "threshold": 0.95},
        {"policy": "threshold", "threshold": 0.95, "lookahead": 2},
        {"policy": "threshold", "threshold": 0.95, "lookahead": "auto"},
        {"policy": "factor", "factor": 0.5},
        {"policy": "factor", "factor": 0.5, "lookahead": 2},
    ),
    "checkpoint_edit": (
        {"policy": "threshold", "threshold": 0.95},
        {"policy": "edit", "preset": "quality"},
        {"policy": "edit", "preset": "speed"},
    ),
    "checkpoint_levenshtein": (
        {"policy": "threshold", "threshold": 0.95},
        {"policy": "levenshtein"},
    ),
}


@dataclass(slots=True)
class Result:
    """What one setting gave. speeds: tokens per second, by concurrency, one per repetition."""

    model: str
    decoding: Decoding
    right: int = 0
    count: int = 0
    tokens: int = 0
    forwards: int = 0
    blocks: int = 0
    errors: list[str] = field(default_factory=list)
    speeds: dict[int, list[float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        rest = [f"{k} {v}" for k, v in self.decoding.items() if k != "policy"]
        return ", ".join([str(self.decoding["policy"]), *rest])

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.count)

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)


class Questions:
    """Held-out questions and their prompts as one checkpoint's tokens."""

    def __init__(self, model: Path, seed: int, per_family: int) -> None:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.examples = [
            example
            for family in tasks.FAMILIES
            for example in tasks.examples(seed, family, "eval", per_family)
        ]
        self.prompts = [
            tuple(tokenizer.encode(chat.render_prompt(e.messages, e.tools)).ids)
            for e in self.examples
        ]

    def tasks(self, decoding: Decoding, every: int = 1) -> list[Task]:
        return [
            Task(prompt, max_new_tokens=128, ignore_eos=False, decoding=decoding)
            for prompt in self.prompts[::every]
        ]


def measure(url: str, questions: Questions, result: Result) -> None:
    """Accuracy, and the forwards it took."""
    replies = asyncio.run(ask_all(url, questions.tasks(result.decoding), concurrency=32))
    for example, prompt, reply in zip(questions.examples, questions.prompts, replies, strict=True):
        result.count += 1
        if reply.error:
            result.errors.append(reply.error)
            continue
        size = len(reply.output_ids)
        result.right += reply.text == example.answer
        result.tokens += size
        result.forwards += int(reply.meta["denoise_forwards"])
        result.blocks += (len(prompt) + size - 1) // BLOCK - len(prompt) // BLOCK + 1


def time_settings(
    url: str, questions: Questions, results: Sequence[Result], repeats: int, every: int
) -> None:
    """Tokens per second, the settings in turn."""
    for concurrency in CONCURRENCIES:
        for _ in range(repeats):
            for result in results:
                asked = questions.tasks(result.decoding, every)
                began = time.monotonic()
                replies = asyncio.run(ask_all(url, asked, concurrency=concurrency))
                seconds = time.monotonic() - began
                tokens = sum(len(reply.output_ids) for reply in replies)
                result.speeds.setdefault(concurrency, []).append(tokens / seconds)


def run(arguments: argparse.Namespace, logs: Path) -> None:
    """Measure every setting, rewriting the report after each checkpoint."""
    results: list[Result] = []
    flags = tuple(arguments.flags.split())
    for name, settings in SETTINGS.items():
        model = NANO / name
        if not model.is_dir():
            raise SystemExit(f"{model} does not exist: it is a part of the package")
        questions = Questions(model, arguments.seed, arguments.per_family)
        mine = [Result(name, decoding) for decoding in settings]
        with serve(spec(OURS, model, flags), logs / f"policies-{name}.log") as server:
            for result in mine:
                measure(server.url, questions, result)
                print(
                    f"{name}: {result.label}: {result.accuracy:.3f} "
                    f"{result.tokens_per_forward:.2f}",
                    file=sys.stderr,
                    flush=True,
                )
            time_settings(server.url, questions, mine, arguments.repeats, arguments.every)
        results += mine
        _write(arguments, flags, results)


def _write(arguments: argparse.Namespace, flags: Sequence[str], results: list[Result]) -> None:
    header = ["setting", "exact match", "tokens per forward", "forwards per block"]
    header += [f"tokens/s at {c}" for c in CONCURRENCIES]
    parts = [
        f"{arguments.per_family} held-out questions of each family over HTTP, 32 at a time, to "
        f"`{in_words(OURS, flags)}`. Tokens per second: every {arguments.every}th of them, "
        f"{arguments.repeats} times, the settings in turn; medians. The end token counts.",
        f"![accuracy and tokens per forward]({NAME}.png)",
    ]
    for name in dict.fromkeys(result.model for result in results):
        rows = [
            [
                r.label,
                f"{r.accuracy:.3f}",
                f"{r.tokens_per_forward:.2f}",
                f"{r.forwards / max(1, r.blocks):.2f}",
                *(f"{statistics.median(r.speeds[c]):.0f}" for c in CONCURRENCIES),
            ]
            for r in results
            if r.model == name
        ]
        failed = sum(len(r.errors) for r in results if r.model == name)
        parts.append(f"## nano/{name}\n\n{report.table(header, rows)}")
        if failed:
            parts.append(f"{failed} requests failed and count as wrong.")
    report.write(NAME, "Decoding policies on nano", MODULE, parts)
    _draw(results)


def _draw(results: Sequence[Result]) -> None:
    """Accuracy against tokens per forward, and the settings no other one beats in both."""
    figure, axes = report.plots(len({r.model for r in results}), width=6.0, height=4.4)
    for axis, name in zip(axes, dict.fromkeys(r.model for r in results), strict=True):
        mine = [r for r in results if r.model == name]
        for r in mine:
            axis.plot(r.tokens_per_forward, r.accuracy, "o", markersize=4)
            axis.annotate(
                r.label,
                (r.tokens_per_forward, r.accuracy),
                fontsize=6,
                xytext=(3, 3),
                textcoords="offset points",
            )
        front = sorted(
            (
                r
                for r in mine
                if not any(
                    o.accuracy >= r.accuracy and o.tokens_per_forward > r.tokens_per_forward
                    for o in mine
                )
            ),
            key=lambda r: r.tokens_per_forward,
        )
        axis.plot([r.tokens_per_forward for r in front], [r.accuracy for r in front], "--", lw=0.8)
        axis.set(xlabel="tokens per forward", ylabel="exact match", title=f"nano/{name}")
        axis.grid(alpha=0.3)
    report.save(figure, NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-family", type=int, default=200, help="questions of each family")
    parser.add_argument("--every", type=int, default=20, help="of these, one in so many is timed")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each setting")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--flags", default="", help="more flags of the server, in one string")
    arguments = parser.parse_args()
    logs = REPOSITORY / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    run(arguments, logs)


if __name__ == "__main__":
    main()
