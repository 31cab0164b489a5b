"""How far to look ahead at the present load: from what forwards cost and what blocks bring."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

WIDEST = 4
"""Most blocks in flight that `auto` chooses."""

MEMORY = 0.99
"""What a forward weighs in the cost after the next one."""

PRIOR = 0.01
"""How much forwards have to differ for their cost to be told apart, as a share of their size,
squared; below, half of the time counts as the same for all."""

OUTLIER = 4.0
"""A forward that takes so many times the usual one waited for something else."""

ENOUGH = 256
"""Steps of a request over which a width is tried. Some hand out a block and most nothing: what a
width brings is then known to some 6 %, and neighbours differ by 10."""

SPELL = 3
"""Blocks that every request hands out at a new width before it is judged. The first one of them
does not count: what it holds was begun under another width."""

RECENT = 2048
"""Steps of a request over which it is averaged."""

WORTH = 0.02
"""The least share of time that a change of width has to save."""

HOPE = 0.5
"""What another block in flight is taken to bring and to need before it was tried, as a share of
what the one before it did: as much per row as the others."""

PROBE = 16
"""After so many times the length of the last trial a neighbour of the best width is tried again:
its figures may be old, or were bad luck."""


@dataclass(slots=True)
class Work:
    """What forwards did for some requests.

    steps: of a request, each forward that carried denoise rows of it being one. rows: denoise and
    commit rows. positions: masked ones, which the head was computed for. tokens: handed out.
    """

    steps: float = 0.0
    rows: float = 0.0
    positions: float = 0.0
    tokens: float = 0.0

    def add(self, other: Work) -> None:
        """Take in more; the older it is, the less it weighs."""
        old = min(1.0, max(0.0, RECENT - other.steps) / max(self.steps, 1e-9))
        self.steps = old * self.steps + other.steps
        self.rows = old * self.rows + other.rows
        self.positions = old * self.positions + other.positions
        self.tokens = old * self.tokens + other.tokens

    def fade(self) -> None:
        """Let it weigh half as much beside what is to come."""
        self.steps, self.rows = self.steps / 2, self.rows / 2
        self.positions, self.tokens = self.positions / 2, self.tokens / 2

    def scaled(self, factor: float) -> Work:
        """As many steps, with `factor` times as much done in each."""
        return Work(self.steps, *(factor * value for value in astuple(self)[1:]))


class Cost:
    """What a forward takes: base + rows * row + positions * position seconds.

    Fitted to the forwards seen, recent ones most. Rows cost the body of the model, masked
    positions the head; the base is what does not depend on them, weights to be read above all.
    """

    def __init__(self) -> None:
        self._squares = np.zeros((3, 3))
        self._products = np.zeros(3)
        self._parts: tuple[float, float, float] | None = None

    def observe(self, rows: int, positions: int, seconds: float) -> None:
        """Take in a forward."""
        weight = self._squares[0, 0]
        if weight > 8.0:
            seconds = min(seconds, OUTLIER * self._products[0] / weight)
        one = np.array([1.0, rows, positions])
        self._squares = MEMORY * self._squares + np.outer(one, one)
        self._products = MEMORY * self._products + seconds * one
        self._parts = None

    def parts(self) -> tuple[float, float, float]:
        """(base, row, position) in seconds, none below 0; before any forward, in any unit."""
        if self._parts is None:
            self._parts = self._fit()
        return self._parts

    def _fit(self) -> tuple[float, float, float]:
        weight = self._squares[0, 0]
        if weight == 0.0:
            return 0.5, 0.25, 0.25 / 32
        mean = self._squares[0] / weight
        sizes = np.maximum(mean, 1e-9)
        usual = self._products[0] / weight
        # In units of the mean forward, drawn towards half base and half size.
        squares = self._squares / weight / np.outer(sizes, sizes)
        expected = usual * np.where(mean > 0, [0.5, 0.25, 0.25], 0.0)
        products = self._products / weight / sizes + PRIOR * expected
        found = np.linalg.solve(squares + PRIOR * np.eye(3), products).clip(min=0.0)
        found *= usual / max(found.sum(), 1e-12)
        base, row, position = found / sizes
        return float(base), float(row), float(position)


class Load:
    """Chooses the width of lookahead: how many blocks of a request may be in flight.

    A request that hands out y tokens per step with r rows and p positions takes, among n that
    denoise, (base / n + r * row + p * position) / y seconds per token. Cost and load say nothing
    of y, r and p, and these say nothing of the load: they are measured for every width by using
    it, long enough that each request hands out a block or more, and what a width was found to
    bring at one load serves at all others. A wider one is tried where, bringing as much per row,
    it would save time: alone nearly always, in a full batch hardly ever. Tokens count, not
    resolved positions: blocks behind the end of a text bring nothing.
    """

    def __init__(self, block: int = 32) -> None:
        self.cost = Cost()
        self._block = block
        self._work = [Work() for _ in range(WIDEST)]
        self._width = 1
        self._since = 0.0  # tokens per request since the width changed
        self._trial = True
        self._fresh = 0.0  # steps of requests that count in this trial
        self._forwards = 0  # of the last trial and since
        self._trial_forwards = 0

    def observe(self, seconds: float, *, rows: int, positions: int, width: int, auto: Work) -> None:
        """Take in a forward.

        rows, positions: all of them, whoever they belong to. width: what requests that follow the
        load were allowed; auto: what it did for these.
        """
        self.cost.observe(rows, positions, seconds)
        if width != self._width:
            self._width, self._since = width, 0.0
        if not auto.steps:
            return
        self._forwards += 1
        before, self._since = self._since, self._since + auto.tokens / auto.steps
        if before >= self._block:
            self._work[width - 1].add(auto)
            self._fresh += auto.steps
        if self._trial and self._fresh >= ENOUGH and self._since >= SPELL * self._block:
            self._trial = False
            self._trial_forwards = self._forwards

    def lookahead(self, requests: int) -> int:
        """The width for the next forward, with so many denoising requests."""
        here = self._width
        if self._trial:
            return here
        widths = range(1, WIDEST + 1)
        if self._forwards >= PROBE * self._trial_forwards:
            best = min(widths, key=lambda width: self.seconds_per_token(width, requests))
            return self._try(self._least_known_beside(best))
        best, seconds = here, (1.0 - WORTH) * self.seconds_per_token(here, requests)
        for width in widths:
            hoped = self.seconds_per_token(width, requests)
            if width != here and hoped < seconds:
                best, seconds = width, hoped
            if not self._known(width):
                break  # those behind it are tried after it
        return best if self._known(best) else self._try(best)

    def seconds_per_token(self, width: int, requests: int) -> float:
        """What a token takes, as far as known or to be hoped, with so many denoising requests."""
        base, row, position = self.cost.parts()
        work = self.work(width)
        time = base / max(requests, 1) * work.steps + row * work.rows + position * work.positions
        return time / max(work.tokens, 1e-9)

    def work(self, width: int) -> Work:
        """What a width was found to do; where it is not known, more than the one below it."""
        if self._known(width):
            return self._work[width - 1]
        if width == 1:
            return Work(1.0, 1.0, float(self._block), 1.0)
        gained = [sum(HOPE**k for k in range(w)) for w in (width - 1, width)]
        return self.work(width - 1).scaled(gained[1] / gained[0])

    def _known(self, width: int) -> bool:
        return self._work[width - 1].steps >= ENOUGH / 2

    def _try(self, width: int) -> int:
        """Begin a trial of a width."""
        self._work[width - 1].fade()
        self._trial, self._fresh, self._forwards = True, 0.0, 0
        self._width, self._since = width, 0.0
        return width

    def _least_known_beside(self, width: int) -> int:
        beside = [w for w in (width - 1, width + 1) if 1 <= w <= WIDEST]
        return min(beside, key=lambda w: self._work[w - 1].steps)
