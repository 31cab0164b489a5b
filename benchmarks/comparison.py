"""Measurements of both engines side by side, and the rule that texts must agree first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.client import Reply
from benchmarks.engines import OURS, STOCK
from benchmarks.report import MISSING, summary


@dataclass(slots=True)
class Cell:
    """One figure of both engines over several repetitions.

    larger_is_better: whether the ratio is ours to stock or stock to ours. values: by engine, one
    number per repetition. differences: requests whose tokens were not the same. errors: failed
    requests by engine. requests: how many each engine got.
    """

    what: str
    size: int
    larger_is_better: bool
    digits: int = 2
    values: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], STOCK: []})
    differences: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=lambda: {OURS: 0, STOCK: 0})
    requests: int = 0

    def add(
        self,
        repetition: int,
        replies: dict[str, Sequence[Reply]],
        figure: Callable[[Sequence[Reply]], float],
    ) -> None:
        """Compare the tokens of one repetition and take its figure for both engines."""
        ours, stock = replies[OURS], replies[STOCK]
        self.requests += len(ours)
        for engine, answers in replies.items():
            self.errors[engine] += sum(answer.error is not None for answer in answers)
        for index, (a, b) in enumerate(zip(ours, stock, strict=True)):
            if a.error or b.error or a.output_ids == b.output_ids:
                continue
            where = _first_difference(a.output_ids, b.output_ids)
            self.differences.append(f"run {repetition + 1} request {index + 1} from token {where}")
        for engine, answers in replies.items():
            good = [answer for answer in answers if answer.error is None]
            if good:
                self.values[engine].append(figure(good))

    def medians(self) -> tuple[float, float] | None:
        """Median of ours and of stock, None where no speed may be shown."""
        if self.differences or not all(self.values.values()):
            return None
        return statistics.median(self.values[OURS]), statistics.median(self.values[STOCK])

    def row(self) -> list[str]:
        """what | size | ours | stock | ratio | texts | errors."""
        label = [self.what, str(self.size)]
        errors = f"{self.errors[OURS]} / {self.errors[STOCK]} of {self.requests}"
        medians = self.medians()
        if medians is None:
            texts = "; ".join(self.differences[:4]) or "no answer"
            return [*label, MISSING, MISSING, MISSING, f"differ: {texts}", errors]
        ours, stock = medians
        ratio = ours / stock if self.larger_is_better else stock / ours
        shown = [summary(self.values[engine], self.digits) for engine in (OURS, STOCK)]
        return [*label, *shown, f"{ratio:.1f}x", "same", errors]


HEADER = ("figure", "size", OURS, STOCK, "ratio", "tokens", "errors, ours / stock")


def _first_difference(ours: Sequence[int], stock: Sequence[int]) -> str:
    for index, (a, b) in enumerate(zip(ours, stock, strict=False)):
        if a != b:
            return f"{index} ({a} and {b})"
    return f"{min(len(ours), len(stock))} (lengths {len(ours)} and {len(stock)})"
