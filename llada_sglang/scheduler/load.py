"""How far to look ahead at the present load: from what forwards cost and what blocks bring."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

WIDEST = 4
"""Most blocks in flight that `auto` chooses."""

MEMORY = 0.99
"""What a forward weighs in the cost after the next one of its size."""

PRIOR = 0.01
"""How much forwards have to differ for their cost to be told apart, as a share of their size,
squared; below, half of the time counts as the same for all."""

OCTAVES = 12
"""Sizes of forwards that have a cost of their own: 1 row, 2 or 3, 4 to 7 and so on."""

NEAR = 0.2
"""What a forward of the next size weighs in the cost of a size."""

OUTLIER = 4.0
"""A forward that takes so many times what is expected waited for something else."""

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
"""A neighbour of the best width that was not used for so many times the length of a trial is tried
again: its figures may be old, or were bad luck."""

SPENT = 0.005
"""The share of time that such trials may cost: the worse a neighbour looks, the rarer they are."""


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

    def add(self, other: Work) -> float:
        """Take in more; the older it is, the less it weighs.

        Returns by what factor tokens per step have changed.
        """
        before = self.tokens / max(self.steps, 1e-9)
        old = min(1.0, max(0.0, RECENT - other.steps) / max(self.steps, 1e-9))
        self.steps = old * self.steps + other.steps
        self.rows = old * self.rows + other.rows
        self.positions = old * self.positions + other.positions
        self.tokens = old * self.tokens + other.tokens
        return self.tokens / self.steps / before if before > 0.0 and self.tokens > 0.0 else 1.0

    def fade(self) -> None:
        """Let it weigh half as much beside what is to come."""
        self.steps, self.rows = self.steps / 2, self.rows / 2
        self.positions, self.tokens = self.positions / 2, self.tokens / 2

    def scaled(self, factor: float) -> Work:
        """As many steps, with `factor` times as much done in each."""
        return Work(self.steps, *(factor * value for value in astuple(self)[1:]))


class Cost:
    """What a forward takes: base + rows * row + positions * position seconds, by its size.

    Rows cost the body of the model, masked positions the head; the base is what does not depend on
    them. A forward is bound by the weights it reads at first and by arithmetic later, so every size
    has its own three, fitted to the forwards about as large and to recent ones most.
    """

    def __init__(self) -> None:
        self._squares = np.zeros((OCTAVES, 3, 3))
        self._products = np.zeros((OCTAVES, 3))
        sizes = np.arange(OCTAVES)
        self._near = NEAR ** abs(sizes[:, None] - sizes)
        self._parts: np.ndarray | None = None

    def observe(self, rows: int, positions: int, seconds: float) -> None:
        """Take in a forward."""
        if self._squares[:, 0, 0].sum() > 8.0:
            seconds = min(seconds, OUTLIER * self.seconds(rows, positions))
        one, at = np.array([1.0, rows, positions]), _octave(rows)
        self._squares[at] = MEMORY * self._squares[at] + np.outer(one, one)
        self._products[at] = MEMORY * self._products[at] + seconds * one
        self._parts = None

    def seconds(self, rows: float, positions: float) -> float:
        """What a forward is expected to take; before there was any, in any unit."""
        if self._parts is None:
            self._parts = self._fit()
        base, row, position = self._parts[_octave(rows)]
        return float(base + row * rows + position * positions)

    def _fit(self) -> np.ndarray:
        """(base, row, position) of every size, in seconds, none below 0."""
        if not self._squares.any():
            return np.tile([0.5, 0.25, 0.25 / 32], (OCTAVES, 1))
        squares = np.tensordot(self._near, self._squares, 1)
        products = self._near @ self._products
        weight = squares[:, 0, :1].copy()
        mean = squares[:, 0] / weight
        sizes = np.maximum(mean, 1e-9)
        usual = products[:, :1] / weight
        # In units of the mean forward, drawn towards half base and half size.
        squares = squares / (weight[:, :, None] * sizes[:, :, None] * sizes[:, None, :])
        expected = usual * np.where(mean > 0, [0.5, 0.25, 0.25], 0.0)
        products = products / weight / sizes + PRIOR * expected
        found = np.linalg.solve(squares + PRIOR * np.eye(3), products[:, :, None])[:, :, 0]
        found = found.clip(min=0.0)
        found *= usual / np.maximum(found.sum(axis=1, keepdims=True), 1e-12)
        return found / sizes


def _octave(rows: float) -> int:
    return min(max(round(rows), 1).bit_length(), OCTAVES) - 1


class Load:
    """Chooses the width of lookahead: how many blocks of a request may be in flight.

    Requests that each hand out y tokens per step with r rows and p positions take, n of them at
    once, cost(n * r, n * p) / (n * y) seconds per token. Cost and load say nothing of y, r and p,
    and these say nothing of the load: they are measured for every width by using it, long enough
    that each request hands out a block or more, and what a width was found to bring at one load
    serves at all others. Other texts bring more or less at every width: what changes at the one in
    use is taken to change at the others too. A wider one is tried where, bringing as much per row,
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
        self._unused = [0.0] * WIDEST  # steps of requests since a width was used

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
        self._unused = [steps + auto.steps for steps in self._unused]
        self._unused[width - 1] = 0.0
        before, self._since = self._since, self._since + auto.tokens / auto.steps
        if before >= self._block:
            self._learn(width, auto)
            self._fresh += auto.steps
        if self._trial and self._fresh >= ENOUGH and self._since >= SPELL * self._block:
            self._trial = False

    def lookahead(self, requests: int) -> int:
        """The width for the next forward, with so many denoising requests."""
        here = self._width
        if self._trial:
            return here
        seconds = [self.seconds_per_token(w, requests) for w in range(1, WIDEST + 1)]
        least = seconds.index(min(seconds)) + 1
        for width in (least - 1, least + 1):
            if self._known(width) and self._due(width, requests, seconds):
                return self._try(width)
        best, worth = here, (1.0 - WORTH) * seconds[here - 1]
        for width, hoped in enumerate(seconds, 1):
            if width != here and hoped < worth:
                best, worth = width, hoped
            if not self._known(width):
                break  # those behind it are tried after it
        return best if self._known(best) else self._try(best)

    def seconds_per_token(self, width: int, requests: int) -> float:
        """What a token takes, as far as known or to be hoped, with so many denoising requests."""
        work = self.work(width)
        each = max(requests, 1) / work.steps
        time = self.cost.seconds(each * work.rows, each * work.positions)
        return time / max(each * work.tokens, 1e-9)

    def work(self, width: int) -> Work:
        """What a width was found to do; where it is not known, more than the one below it."""
        if self._known(width):
            return self._work[width - 1]
        if width == 1:
            return Work(1.0, 1.0, float(self._block), 1.0)
        gained = [sum(HOPE**k for k in range(w)) for w in (width - 1, width)]
        return self.work(width - 1).scaled(gained[1] / gained[0])

    def _known(self, width: int) -> bool:
        return 1 <= width <= WIDEST and self._work[width - 1].steps >= ENOUGH / 2

    def _due(self, width: int, requests: int, seconds: list[float]) -> bool:
        """Whether a width that is known was not used for long enough to be tried again."""
        work = self._work[width - 1]
        trial = max(ENOUGH, SPELL * self._block * requests * work.steps / max(work.tokens, 1e-9))
        loss = seconds[width - 1] / min(seconds) - 1.0
        return self._unused[width - 1] >= max(PROBE, loss / SPENT) * trial

    def _learn(self, width: int, auto: Work) -> None:
        """Take in what was done at a width, and what it says of the others."""
        mine = self._work[width - 1]
        sure = mine.steps / RECENT  # of what was known: a width that is new says nothing of texts
        changed = mine.add(auto) ** sure
        for other in self._work:
            if other is not mine:
                other.tokens *= changed

    def _try(self, width: int) -> int:
        """Begin a trial of a width."""
        self._work[width - 1].fade()
        self._trial, self._fresh = True, 0.0
        self._width, self._since = width, 0.0
        return width
