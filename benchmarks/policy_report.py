"""The report of `benchmarks.policies`: tables, the bars, and the Pareto fronts as a picture."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import report
from benchmarks.engines import STOCK
from benchmarks.fronts import Point, draw_fronts
from benchmarks.parts import Part
from benchmarks.policy_settings import AHEAD, CONCURRENCIES, QUALITY, THRESHOLD, Section, Setting

if TYPE_CHECKING:
    from benchmarks.policies import Result

MODULE = "benchmarks.policies"
NAME = "policies"
ARGUMENTS = ("per_family", "every", "repeats", "seed", "flags")
"""Arguments of the command that the numbers depend on."""


class Measured(NamedTuple):
    """A section, what was measured of it so far, and where that is kept."""

    section: Section
    results: list[Result]
    part: Part


def write(measured: Sequence[Measured], arguments: argparse.Namespace) -> None:
    """Write benchmarks/results/policies.md and .png from what there is."""
    timed = arguments.per_family * 10 // arguments.every
    parts = [
        f"{arguments.per_family} held-out questions of each family over HTTP, 32 at a time, each "
        "setting to the same running server. Tokens per second: "
        f"{timed} of the questions, {arguments.repeats} times, the settings in turn; medians. The "
        "end token counts. Forwards are those that carried denoise rows of a request; of stock "
        "also the one that persists a block, which carries nothing else there.",
        f"![accuracy and tokens per forward]({NAME}.png)",
        "Hollow marks: another setting is as good in both and better in one. Lines: one standard "
        "error of the accuracy.",
    ]
    if bars := bar_rows(measured):
        parts.append("## Bars\n\n" + report.table(["what", "wanted", "measured", ""], bars))
    for one in measured:
        parts += _section(one, arguments.every)
    kept = [
        [
            f"`{one.section.name}`",
            f"`{' '.join(one.section.flags) or 'none'}`",
            one.part.when,
            one.part.load,
            f"{one.part.content.get('seconds', 0.0):.0f}",
        ]
        for one in measured
    ]
    header = ["section", "flags", "last part measured", "load average then", "seconds"]
    parts.append("## Runs\n\n" + report.table(header, kept))
    report.write(NAME, "Decoding policies on nano", MODULE, parts)
    fronts = {one.section.title: _points(one.results) for one in measured}
    if fronts:
        draw_fronts(NAME, fronts)


def _section(one: Measured, every: int) -> list[str]:
    section = one.section
    shown = [c for c in CONCURRENCIES if c in section.concurrencies]
    header = ["setting", "exact match", "tokens per forward", "forwards per block"]
    header += [f"tokens/s at {c}" for c in shown]
    compared = any(setting.twin for setting in section.settings)
    if compared:
        header.append("same tokens as ours")
    rows = []
    for r in one.results:
        row = [
            r.label,
            f"{r.accuracy:.4f}",
            f"{r.tokens_per_forward:.2f}",
            f"{r.forwards / max(1, r.blocks):.2f}",
            *(_speed(r, one.results, c, every) for c in shown),
        ]
        if compared:
            row.append(sameness(r, one.results))
        rows.append(row)
    where = f"{section.made + ' equivalent of ' if section.made else ''}nano/{section.nano}"
    asked = max(r.count for r in one.results)
    words = [f"{asked} questions, {where}."]
    if compared:
        words.append(
            "Stock is told the mask id and counts its forwards by a plugin of the benchmark "
            "(`benchmarks/stock_plugin.py`); in this checkpoint the factor that stock drops on a "
            "CPU is folded into the experts. The engines ran one after the other."
        )
    failed = sum(len(r.errors) for r in one.results)
    if failed:
        words.append(f"{failed} requests failed; unanswered questions count as wrong.")
    return [f"## {section.title}\n\n{' '.join(words)}", report.table(header, rows)]


def _speed(result: Result, others: Sequence[Result], concurrency: int, every: int) -> str:
    """Tokens per second; none where an answer that was timed is not what it has to be."""
    twin = next((other for other in others if other.label == result.twin), None)
    if twin is not None and result.outputs[::every] != twin.outputs[::every]:
        return report.MISSING
    return report.summary(result.speeds.get(str(concurrency), []), 0)


def sameness(result: Result, others: Sequence[Result]) -> str:
    """How many answers are those of the setting it has to equal, token for token."""
    twin = next((other for other in others if other.label == result.twin), None)
    if twin is None or not twin.outputs or not result.outputs:
        return report.MISSING
    pairs = list(zip(result.outputs, twin.outputs, strict=True))
    same = sum(a == b for a, b in pairs if a)
    return f"{same} of {len(pairs)}"


def bar_rows(measured: Sequence[Measured]) -> list[list[str]]:
    """What was asked of the policies, and what came out, as far as it was measured."""
    found = {(one.section.name, result.label): result for one in measured for result in one.results}
    threshold, ahead, quality = (Setting(d).label for d in (THRESHOLD, AHEAD, QUALITY))
    rows: list[list[str]] = []

    def row(what: str, wanted: str, measured: str, met: bool) -> None:
        rows.append([what, wanted, measured, "met" if met else "missed"])

    plain, two = (found.get(("checkpoint_lookahead", label)) for label in (threshold, ahead))
    if plain and two:
        gain = two.tokens_per_forward / plain.tokens_per_forward - 1
        what = "lookahead 2 over threshold"
        row(f"{what}: tokens per forward", "+40 %", f"{gain:+.0%}", gain >= 0.4)
        points = 100 * (two.accuracy - plain.accuracy)
        row(f"{what}: accuracy", "at most 1 point lost", f"{points:+.2f}", points >= -1)
    for name, where in (("checkpoint_lookahead", "nano"), ("wide_lookahead", "wide nano")):
        plain, two = (found.get((name, label)) for label in (threshold, ahead))
        if plain and two and plain.speeds.get("1") and two.speeds.get("1"):
            gain = statistics.median(two.speeds["1"]) / statistics.median(plain.speeds["1"]) - 1
            what = f"lookahead 2 over threshold: tokens/s at 1, {where}"
            row(what, "+25 %", f"{gain:+.0%}", gain >= 0.25)
    plain, edited = (found.get(("checkpoint_edit", label)) for label in (threshold, quality))
    if plain and edited:
        points = 100 * (edited.accuracy - plain.accuracy)
        what = "edit, quality, against threshold on its checkpoint: accuracy"
        row(what, "no point lost", f"{points:+.2f}", points >= 0)
    for one in measured:
        for result in one.results:
            if result.engine == STOCK and (same := sameness(result, one.results)) != report.MISSING:
                same_count, _, count = same.partition(" of ")
                row(f"{result.label}: tokens of ours", "all", same, same_count == count)
    return rows


def _points(results: Sequence[Result]) -> list[Point]:
    return [
        Point(r.label, r.tokens_per_forward, r.accuracy, r.count, stock=r.engine == STOCK)
        for r in results
    ]
