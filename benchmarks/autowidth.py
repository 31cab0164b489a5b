"""Lookahead that follows the load against every fixed one: `python -m benchmarks.autowidth`.

Nano's questions go to one running server at growing concurrency, the fixed widths and `auto` in
turn. Two checkpoints: the nano trained for two blocks in flight, where a row costs little, and the
same at LLaDA2's vocabulary, where every masked position of a row costs a product with the head.

What was measured is kept under build/measurements, as by `benchmarks.policies`: an interrupted run
goes on at the next concurrency.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import report
from benchmarks.client import ask_all
from benchmarks.engines import OURS, in_words, serve, spec
from benchmarks.parts import Part, stoppable
from benchmarks.policies import LOGS, Questions
from benchmarks.policy_settings import FLOAT32, SECTIONS, THRESHOLD, Section

MODULE = "benchmarks.autowidth"
NAME = "autowidth"
AUTO = "auto"
FIXED = ("1", "2", "3", "4")
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
WARM_UP = 2
"""How often `auto` answers every question, 4 at a time, before anything is timed: it measures what
each width brings, which a server that has been up for a while knows."""
FLAGS = (*FLOAT32, "--max-running-requests", "64")  # the last of a flag counts
ARGUMENTS = ("per_family", "least", "most", "repeats", "seed")
CHECKPOINTS: Mapping[str, tuple[str, str]] = {
    "nano": ("checkpoint_lookahead", "Nano, trained for two blocks in flight"),
    "wide": ("wide_lookahead", "The same at a vocabulary of 157184"),
}
"""By name: the section of `benchmarks.policies` whose checkpoint it is, and its title."""


@dataclass(slots=True)
class Cell:
    """One width at one concurrency. speeds: tokens per second, one per repetition."""

    speeds: list[float] = field(default_factory=list)
    right: int = 0
    count: int = 0
    errors: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)


Sweep = dict[int, dict[str, Cell]]
"""Cells by concurrency and width."""


def settings() -> dict[str, dict[str, Any]]:
    """custom_params by width."""
    fixed: dict[str, dict[str, Any]] = {w: {**THRESHOLD, "lookahead": int(w)} for w in FIXED}
    return fixed | {AUTO: {**THRESHOLD, "lookahead": AUTO}}


def sample(count: int, concurrency: int, least: int, most: int) -> range:
    """Which of `count` questions are asked at a concurrency: evenly spread, as many as keep that
    many requests running for a while."""
    wanted = min(max(4 * concurrency, least), most, count)
    return range(0, count // wanted * wanted, count // wanted)


def measure(
    url: str, questions: Questions, concurrency: int, arguments: argparse.Namespace
) -> dict[str, Cell]:
    """All widths in turn; each repetition begins with another one."""
    chosen = sample(len(questions.prompts), concurrency, arguments.least, arguments.most)
    ways = list(settings().items())
    cells = {width: Cell() for width, _ in ways}
    for turn in range(arguments.repeats):
        first = turn * 2 % len(ways)
        for width, decoding in ways[first:] + ways[:first]:
            everything = questions.tasks(decoding)
            began = time.monotonic()
            replies = asyncio.run(
                ask_all(url, [everything[i] for i in chosen], concurrency=concurrency)
            )
            seconds = time.monotonic() - began
            cell = cells[width]
            cell.speeds.append(sum(len(reply.output_ids) for reply in replies) / seconds)
            cell.count += len(replies)
            cell.errors += sum(reply.error is not None for reply in replies)
            cell.right += sum(
                reply.error is None and reply.text == questions.examples[i].answer
                for i, reply in zip(chosen, replies, strict=True)
            )
    return cells


def part_of(name: str, arguments: argparse.Namespace, *, again: bool = False) -> Part:
    """What is kept of one checkpoint's sweep."""
    depends = {key: getattr(arguments, key) for key in ARGUMENTS}
    return Part(f"{NAME}-{name}", depends | {"settings": settings()}, again=again)


def run(name: str, arguments: argparse.Namespace) -> None:
    """Measure the concurrencies that are not yet measured, saving after each."""
    part = part_of(name, arguments, again=arguments.again)
    known = part.content.setdefault("cells", {})
    missing = [c for c in arguments.concurrency if str(c) not in known]
    if not missing:
        return
    model = section(name).checkpoint()
    questions = Questions(model, arguments.seed, arguments.per_family)
    with serve(spec(OURS, model, FLAGS), LOGS / f"{NAME}-{name}.log") as server:
        # Every prompt once, so that all widths find the same in the radix cache.
        asyncio.run(ask_all(server.url, questions.tasks(settings()["2"]), concurrency=64))
        for _ in range(WARM_UP):
            asyncio.run(ask_all(server.url, questions.tasks(settings()[AUTO]), concurrency=4))
        for concurrency in missing:
            cells = measure(server.url, questions, concurrency, arguments)
            known[str(concurrency)] = {width: asdict(cell) for width, cell in cells.items()}
            part.save()
            shown = ", ".join(f"{width} {cell.median:.0f}" for width, cell in cells.items())
            print(f"{name} at {concurrency}: {shown} tokens/s", file=sys.stderr, flush=True)


def section(name: str) -> Section:
    """The section of `benchmarks.policies` with the checkpoint of this name."""
    return next(s for s in SECTIONS if s.name == CHECKPOINTS[name][0])


def sweep_of(part: Part) -> Sweep:
    """What was measured so far, by growing concurrency."""
    cells: dict[str, dict[str, Any]] = part.content.get("cells", {})
    return {
        int(c): {width: Cell(**cells[c][width]) for width in cells[c]}
        for c in sorted(cells, key=int)
    }


def means_over_one(sweep: Sweep) -> dict[str, float]:
    """The geometric mean over concurrencies of a width's median over width 1's, by width."""
    widths = next(iter(sweep.values()))
    return {
        width: statistics.geometric_mean(
            cells[width].median / cells[FIXED[0]].median for cells in sweep.values()
        )
        for width in widths
    }


def write(arguments: argparse.Namespace) -> None:
    """Write benchmarks/results/autowidth.md and .png from what there is."""
    parts = [
        f"Threshold 0.95, {arguments.repeats} repetitions in turn, medians (least - greatest) of "
        f"tokens/s over HTTP to `{in_words(OURS, FLAGS)}`. Every concurrency gets the same "
        f"{arguments.least} to {arguments.most} held-out questions of all families at each width. "
        f"Exact match is over all of them. Before that `auto` answered {10 * arguments.per_family} "
        f"questions {WARM_UP} times, 4 at a time.",
        f"![tokens per second over those without lookahead]({NAME}.png)",
    ]
    sweeps: dict[str, Sweep] = {}
    for name, (_, title) in CHECKPOINTS.items():
        part = part_of(name, arguments)
        if not (sweep := sweep_of(part)):
            continue
        sweeps[title] = sweep
        parts.append(
            f"## {title}\n\nLast measured {part.when}, load average {part.load} then.\n\n"
            + table(sweep)
        )
        parts.append(verdict(sweep))
    if not sweeps:
        raise SystemExit(f"nothing was measured with these arguments: leave out --draw of {MODULE}")
    report.write(NAME, "Lookahead that follows the load", MODULE, parts)
    draw(sweeps, NAME)


def table(sweep: Sweep) -> str:
    """Concurrency by width, then means and accuracy."""
    widths = list(next(iter(sweep.values())))
    header = ["concurrent", *(f"lookahead {w}" for w in widths), "auto / best fixed"]
    rows = []
    for concurrency, cells in sweep.items():
        best = max(cells[w].median for w in FIXED)
        shown = [report.summary(cells[w].speeds, 0) for w in widths]
        rows.append([concurrency, *shown, f"{cells[AUTO].median / best:.2f}"])
    means = means_over_one(sweep)
    best = max(means[w] for w in FIXED)
    shown = [f"{means[w]:.3f}" for w in widths]
    rows.append(["geometric mean over lookahead 1", *shown, f"{means[AUTO] / best:.2f}"])
    totals = {w: sum(cells[w].median for cells in sweep.values()) for w in widths}
    best = max(totals[w] for w in FIXED)
    rows.append(["sum", *(f"{totals[w]:.0f}" for w in widths), f"{totals[AUTO] / best:.2f}"])
    right = [
        f"{sum(c[w].right for c in sweep.values()) / sum(c[w].count for c in sweep.values()):.4f}"
        for w in widths
    ]
    rows.append(["exact match", *right, ""])
    return report.table(header, rows)


def verdict(sweep: Sweep) -> str:
    """In words, whether `auto` beats every fixed width over the sweep, and what failed."""
    means = means_over_one(sweep)
    ratios = {w: means[AUTO] / means[w] for w in FIXED}
    words = ", ".join(f"{ratio - 1:+.1%} over lookahead {w}" for w, ratio in ratios.items())
    beaten = all(ratio > 1 for ratio in ratios.values())
    text = f"`auto`, geometric mean over the sweep: {words}: "
    text += "it beats every fixed width." if beaten else "a fixed width is as fast or faster."
    if errors := sum(cell.errors for cells in sweep.values() for cell in cells.values()):
        text += f" {errors} requests failed."
    return text


def draw(sweeps: Mapping[str, Sweep], name: str) -> None:
    """Write NAME.png: every width over width 1, one plot per sweep."""
    figure, axes = report.plots(len(sweeps), width=5.4)
    for axis, (title, sweep) in zip(axes, sweeps.items(), strict=True):
        concurrencies = list(sweep)
        for width in next(iter(sweep.values())):
            over = [cells[width].median / cells[FIXED[0]].median for cells in sweep.values()]
            style = {"color": "black", "lw": 2, "marker": "o"} if width == AUTO else {"marker": "."}
            axis.plot(concurrencies, over, label=f"lookahead {width}", **style)
        axis.set_xscale("log", base=2)
        axis.set_xticks(concurrencies, [str(c) for c in concurrencies])
        axis.minorticks_off()
        axis.set(xlabel="concurrent requests", ylabel="tokens/s over lookahead 1")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    report.save(figure, name)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-family", type=int, default=20, help="questions of each family")
    parser.add_argument("--least", type=int, default=60, help="questions at low concurrency")
    parser.add_argument("--most", type=int, default=192, help="questions at high concurrency")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCIES))
    parser.add_argument("--only", nargs="+", choices=list(CHECKPOINTS), default=list(CHECKPOINTS))
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--draw", action="store_true", help="measure nothing, write the report")
    arguments = parser.parse_args(given)
    stoppable()
    LOGS.mkdir(parents=True, exist_ok=True)
    if not arguments.draw:
        for name in arguments.only:
            run(name, arguments)
    write(arguments)


if __name__ == "__main__":
    main()
