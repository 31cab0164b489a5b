"""Accuracy and speed of every decoding policy: `python -m benchmarks.policies`.

The questions of nano's ten families go over HTTP to the checkpoint each policy is made for, every
setting to the same running server. Tokens per forward counts output tokens over the forwards that
carried denoise rows of a request; forwards per block, the same forwards over the blocks its text
reaches into. Stock's two algorithms answer the same questions, token for token what ours answers.

What was measured is kept under build/measurements: an interrupted run goes on where it was, and
`--only SECTION ...` measures a part of it. The report is drawn from all parts there are.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import policy_report, stock_plugin
from benchmarks.client import Reply, Task, ask_all
from benchmarks.engines import OURS, REPOSITORY, STOCK, ServerSpec, serve, spec
from benchmarks.parts import Part, stoppable
from benchmarks.policy_settings import SECTIONS, Decoding, Section, Setting
from llada_sglang.nano import chat, tasks

BLOCK = 32
LOGS = REPOSITORY / "build" / "benchmark-logs"


@dataclass(slots=True)
class Result:
    """What one setting gave.

    blocks: that the texts reach into. outputs: token ids by question, kept where engines are
    compared. speeds: tokens per second by concurrency, one per repetition; keys are strings, as
    in JSON.
    """

    label: str
    engine: str = OURS
    twin: str = ""
    right: int = 0
    count: int = 0
    tokens: int = 0
    forwards: int = 0
    blocks: int = 0
    errors: list[str] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    speeds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.count)

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)


class Questions:
    """Held-out questions and their prompts as one checkpoint's tokens."""

    def __init__(
        self,
        model: Path,
        seed: int,
        per_family: int,
        families: Sequence[str] = tasks.FAMILIES,
    ) -> None:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.examples = [
            example
            for family in families
            for example in tasks.examples(seed, family, "eval", per_family)
        ]
        self.prompts = [
            tuple(tokenizer.encode(chat.render_prompt(e.messages, e.tools)).ids)
            for e in self.examples
        ]

    def tasks(self, decoding: Decoding, every: int = 1) -> list[Task]:
        """One request per question, of one question in `every`."""
        return [
            Task(prompt, max_new_tokens=128, ignore_eos=False, decoding=decoding)
            for prompt in self.prompts[::every]
        ]


def server_spec(section: Section, setting: Setting, flags: Sequence[str]) -> ServerSpec:
    """The server of a setting: the same for all of ours, one per algorithm and configuration of
    stock's."""
    flags = (*section.flags, *flags)
    model = section.checkpoint()
    if setting.engine == OURS:
        return spec(OURS, model, flags)
    folder = REPOSITORY / "build" / "stock"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / f"{setting.label.replace(' ', '-').replace(',', '')}.yaml"
    configuration.write_text(json.dumps(dict(setting.configuration)))  # JSON is YAML
    stock = spec(STOCK, model, flags)
    chosen = list(stock.flags)
    chosen[chosen.index("--dllm-algorithm") + 1] = setting.algorithm
    chosen += ["--dllm-algorithm-config", str(configuration)]
    plugin = stock_plugin.install(folder / "plugin")
    if inherited := os.environ.get("PYTHONPATH"):
        plugin["PYTHONPATH"] += os.pathsep + inherited
    return ServerSpec(
        stock.model, tuple(chosen), stock.command, stock.environment
    ).with_environment(plugin)


def take(
    result: Result,
    examples: Sequence[tasks.Example],
    asked: Sequence[Task],
    replies: Sequence[Reply],
    *,
    keep: bool,
) -> None:
    """Count a setting's answers. keep: whether their tokens are kept for a comparison."""
    for example, task, reply in zip(examples, asked, replies, strict=True):
        result.count += 1
        if keep:
            result.outputs.append(list(reply.output_ids) if reply.error is None else [])
        if reply.error:
            result.errors.append(reply.error)
            continue
        size, prompt = len(reply.output_ids), len(task.input_ids)
        result.right += reply.text == example.answer
        result.tokens += size
        result.forwards += _forwards(reply)
        result.blocks += (prompt + size - 1) // BLOCK - prompt // BLOCK + 1


def _forwards(reply: Reply) -> int:
    """Forwards that carried denoise rows of a request; stock's plugin says it once per token."""
    count = reply.meta[stock_plugin.COUNTER]
    return int(count[-1] if isinstance(count, list) else count)


def measure(
    url: str, section: Section, questions: Questions, setting: Setting, result: Result
) -> None:
    """Accuracy, and the forwards it took."""
    asked = questions.tasks(setting.decoding, section.every)
    replies = asyncio.run(ask_all(url, asked, concurrency=32))
    keep = any(other.twin for other in section.settings)
    take(result, questions.examples[:: section.every], asked, replies, keep=keep)


def time_settings(
    url: str,
    questions: Questions,
    pairs: Sequence[tuple[Setting, Result]],
    concurrencies: Sequence[int],
    *,
    repeats: int,
    every: int,
) -> None:
    """Tokens per second, the settings in turn."""
    speeds: dict[str, dict[str, list[float]]] = {result.label: {} for _, result in pairs}
    for concurrency in concurrencies:
        for _ in range(repeats):
            for setting, result in pairs:
                asked = questions.tasks(setting.decoding, every)
                began = time.monotonic()
                replies = asyncio.run(ask_all(url, asked, concurrency=concurrency))
                seconds = time.monotonic() - began
                tokens = sum(len(reply.output_ids) for reply in replies)
                speeds[result.label].setdefault(str(concurrency), []).append(tokens / seconds)
                result.errors += [reply.error for reply in replies if reply.error]
    for _, result in pairs:
        result.speeds = speeds[result.label]


def part_of(section: Section, arguments: argparse.Namespace, *, again: bool = False) -> Part:
    """What is kept of a section, for these arguments and for its settings as they are now."""
    depends = {name: getattr(arguments, name) for name in policy_report.ARGUMENTS}
    return Part(f"policies-{section.name}", depends | {"section": asdict(section)}, again=again)


def run_section(section: Section, arguments: argparse.Namespace) -> None:
    """Measure what is not yet measured of a section, saving after each setting."""
    part = part_of(section, arguments, again=arguments.again)
    known = part.content.setdefault("results", {})
    results = {s.label: Result(s.label, s.engine, s.twin) for s in section.settings}
    for label, found in known.items():
        results[label] = Result(**found)

    def save(result: Result, seconds: float) -> None:
        known[result.label] = asdict(result)
        part.content["seconds"] = part.content.get("seconds", 0.0) + seconds
        part.save()

    questions = Questions(section.checkpoint(), arguments.seed, arguments.per_family)
    flags = tuple(arguments.flags.split())
    grouped = itertools.groupby(section.settings, lambda s: server_spec(section, s, flags))
    for number, (server_of, group) in enumerate(grouped):
        pairs = [(setting, results[setting.label]) for setting in group]
        if all(result.speeds for _, result in pairs):
            continue
        began = time.monotonic()
        with serve(server_of, LOGS / f"policies-{section.name}-{number}.log") as server:
            # What a first batch compiles or allocates is no setting's cost.
            asyncio.run(ask_all(server.url, questions.tasks({})[:32], concurrency=32))
            for setting, result in pairs:
                if not result.count:
                    measure(server.url, section, questions, setting, result)
                    save(result, time.monotonic() - began)
                    began = time.monotonic()
                    _say(section.name, result)
            time_settings(
                server.url,
                questions,
                pairs,
                section.concurrencies,
                repeats=arguments.repeats,
                every=arguments.every,
            )
        for _, result in pairs:
            save(result, time.monotonic() - began)
            began = time.monotonic()


def _say(section: str, result: Result) -> None:
    print(
        f"{section}: {result.label}: {result.accuracy:.4f} right, "
        f"{result.tokens_per_forward:.2f} tokens per forward, {len(result.errors)} errors",
        file=sys.stderr,
        flush=True,
    )


def report_parts(arguments: argparse.Namespace) -> None:
    """Write the report of every section that was measured with these arguments."""
    measured: list[policy_report.Measured] = []
    for section in SECTIONS:
        part = part_of(section, arguments)
        found: dict[str, Any] = part.content.get("results", {})
        results = [Result(**found[s.label]) for s in section.settings if s.label in found]
        if results:
            measured.append(policy_report.Measured(section, results, part))
    policy_report.write(measured, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument("--per-family", type=int, default=200, help="questions of each family")
    parser.add_argument("--every", type=int, default=20, help="of these, one in so many is timed")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each setting")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--flags", default="", help="more flags of every server, in one string")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="sections")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--draw", action="store_true", help="measure nothing, write the report")
    arguments = parser.parse_args()
    stoppable()
    LOGS.mkdir(parents=True, exist_ok=True)
    if not arguments.draw:
        for section in SECTIONS:
            if section.name in arguments.only:
                run_section(section, arguments)
                report_parts(arguments)
    report_parts(arguments)


if __name__ == "__main__":
    main()
