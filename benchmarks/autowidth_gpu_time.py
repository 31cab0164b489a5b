"""Lookahead that follows the load, in the time of a GPU: `python -m benchmarks.autowidth_gpu_time`.

The real scheduler and nano's real texts, in one process and without sockets, with another clock:
every forward takes what the cost model (`llada-sglang roofline`) says that a forward of as many
rows and masked positions takes on a GPU, and the host takes no time. So it shows what widths are
worth where a forward is bound by memory at first and by arithmetic later, which a CPU is never; it
depends on no machine, and shows the choice and not the speed of anything.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from benchmarks import report
from benchmarks.autowidth import AUTO, FIXED, Cell, Sweep, draw, table, verdict
from benchmarks.engines import REPOSITORY
from benchmarks.policies import Questions
from benchmarks.policy_settings import NANO, THRESHOLD
from llada_sglang.cli.roofline import read_shape
from llada_sglang.nano.tasks import FAMILIES
from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import Setup

MODULE = "benchmarks.autowidth_gpu_time"
NAME = "autowidth-gpu-time"
CONCURRENCIES = (1, 4, 16, 64, 128, 256)
FLAGS = (
    *("--dtype", "float32", "--max-running-requests", "256"),
    *("--max-total-tokens", "131072"),
)
WAVES = 8
"""Every question is asked once, or as often as it takes to ask each client so many."""
AT_FIRST = "auto at first"
"""`auto` with what it knows from the loads before."""
SEED = 17000
"""Of the questions: others than any on which `auto` was tuned."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is asked, and how soon a later block is started. families: of nano's tasks."""

    title: str
    families: tuple[str, ...]
    start: float


SCENES = (
    Scene("Long answers, later blocks started at once", ("table", "count", "again"), 0.0),
    Scene("All tasks, later blocks started as by default", FAMILIES, 0.5),
)


class GpuTime:
    """Seconds since the beginning, moved on by every forward of some rounds."""

    def __init__(self, setup: Setup) -> None:
        self.seconds = 0.0
        self._cost = cache(lambda rows, masked: setup.step(rows, masked).seconds)

    def forward(self, rows: int, masked: int) -> None:
        """A forward has run. masked: positions that went to the head."""
        self.seconds += self._cost(rows, masked)

    def drive(self, rounds: Any) -> None:
        """Let these rounds take this time and read this clock."""
        from llada_sglang.scheduler import rounds as module

        launch = rounds.runner.launch

        def launched(finals: Any, active: Any) -> Any:
            # Before it is launched: the masks are those that the forward finds.
            rows = sum(final.blocks for final in finals) + len(active)
            masked = sum(row.block.masks for row in active)
            step = launch(finals, active)
            self.forward(rows, masked)
            return step

        rounds.runner.launch = launched
        module.time = SimpleNamespace(perf_counter=lambda: self.seconds)  # type: ignore[assignment]


def ask(
    host: Any, clock: GpuTime, questions: Questions, count: int, at_once: int, **how: Any
) -> Cell:
    """Answer `count` questions, `at_once` at a time.

    The speed is that of the time between the first `at_once` answers and the last question: as
    many run all the while.
    """
    # Families mixed, as clients would ask.
    todo = random.Random(0).sample(range(count), count)
    running: dict[str, int] = {}
    cell, tokens, began, ended = Cell(), 0, 0.0, 0.0
    while todo or running:
        while todo and len(running) < at_once:
            index = todo.pop() % len(questions.prompts)
            prompt = list(questions.prompts[index])
            running[host.submit(prompt, max_new_tokens=128, custom_params=how)] = index
            ended = clock.seconds
        host.tick_unchecked()
        for rid in [rid for rid in running if host.answers[rid].finish is not None]:
            index, ids = running.pop(rid), host.answers.pop(rid).ids
            cell.count += 1
            cell.right += host.tokenizer.decode(ids, skip_special_tokens=True) == (
                questions.examples[index].answer
            )
            if cell.count <= at_once:
                began = clock.seconds
            elif todo:
                tokens += len(ids)
    cell.speeds.append(tokens / (ended - began) if ended > began else 0.0)
    return cell


def sweep(host: Any, clock: GpuTime, scene: Scene, arguments: argparse.Namespace) -> Sweep:
    """Every width at every concurrency, `auto` as it comes there and a second time."""
    per_family = arguments.questions // len(scene.families)
    questions = Questions(NANO / arguments.nano, arguments.seed, per_family, scene.families)
    common = {**THRESHOLD, "lookahead_start": scene.start}
    everything = len(questions.prompts)
    ask(host, clock, questions, everything, 64, **common)  # the same in the cache for all widths
    ask(host, clock, questions, everything, 4, **common, lookahead=AUTO)
    cells: Sweep = {}
    for concurrency in arguments.concurrency:
        # The same questions everywhere: what they bring must not depend on the load.
        count = -(-max(1, WAVES * concurrency) // everything) * everything
        asked = partial(ask, host, clock, questions, count, concurrency, **common)
        first = asked(lookahead=AUTO)
        cells[concurrency] = {width: asked(lookahead=int(width)) for width in FIXED}
        cells[concurrency] |= {AT_FIRST: first, AUTO: asked(lookahead=AUTO)}
        shown = ", ".join(f"{w} {cell.median:.0f}" for w, cell in cells[concurrency].items())
        print(f"{scene.title}, at {concurrency}: {shown} tokens/s", file=sys.stderr, flush=True)
    return cells


def write(sweeps: dict[str, Sweep], setup: Setup, arguments: argparse.Namespace) -> None:
    """Write benchmarks/results/autowidth-gpu-time.md and .png."""
    rows = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    costs = [f"{1e3 * setup.step(r, 16 * r).seconds:.2f}" for r in rows]
    parts = [
        "**Computed, not measured.** The real scheduler answers nano's questions (threshold 0.95, "
        f"{arguments.nano}), and every forward is taken to last as long as the cost model says of "
        f"{arguments.model} on one {arguments.gpu}: a floor by bytes and operations, with nothing "
        "for the host. What is real is which rows a forward has, which tokens come of it, and "
        "what `auto` makes of both; with one clock for all of it there is no noise. Every "
        f"concurrency gets the same {arguments.questions} questions, several times where it takes "
        f"that to ask each client {WAVES}; the speed is that of the time in which as many run. "
        f"`{AT_FIRST}` is how it answers them when it comes from the load before, `auto` how it "
        "answers them a second time. Before all of it, it has answered them 4 at a time, as one "
        "that has been at work for a while.",
        f"![tokens per second over those without lookahead]({NAME}.png)",
        "## What a forward takes",
        report.table(["rows, half of their positions masked", *map(str, rows)], [["ms", *costs]]),
    ]
    for title, cells in sweeps.items():
        parts += [f"## {title}", table(cells), verdict(cells)]
    report.write(NAME, "Lookahead that follows the load, in a GPU's time", MODULE, parts)
    draw(sweeps, NAME)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="h200", choices=list(gpus.GPUS))
    parser.add_argument("--model", default="mini", help="mini, flash or a checkpoint directory")
    parser.add_argument("--nano", default="checkpoint_lookahead", help="whose texts")
    parser.add_argument("--questions", type=int, default=360, help="of all families together")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCIES))
    arguments = parser.parse_args(given)
    sys.path.append(str(REPOSITORY / "tests" / "engine"))
    from inprocess import InProcessEngine

    setup = Setup(read_shape(arguments.model), gpus.find(arguments.gpu))
    host = InProcessEngine(str(NANO / arguments.nano), *FLAGS)
    clock = GpuTime(setup)
    clock.drive(host.scheduler.rounds)
    write({s.title: sweep(host, clock, s, arguments) for s in SCENES}, setup, arguments)


if __name__ == "__main__":
    main()
