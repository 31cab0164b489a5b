"""How far to look ahead at the present load: from what rows cost and what they bring."""

from __future__ import annotations

from collections.abc import Sequence

WIDEST = 4
"""Most blocks in flight that `auto` chooses."""

MEMORY = 0.98
"""What an observation weighs after the next one."""


class Load:
    """A running estimate of the cost of rows and of the tokens they resolve.

    A forward of r rows takes a + b * r seconds, fitted to the forwards seen, recent ones most. A
    row of the k-th block in flight resolves y_k positions, a row of the first one being there for
    every request. Another row per request is worth its time as long as it resolves more per
    second than the whole forward does without it: alone, where a is most of the time, nearly
    always; in a full batch never, as later blocks resolve less.
    """

    def __init__(self) -> None:
        self._moments = [0.0] * 5  # weight, rows, rows squared, seconds, rows times seconds
        self._resolved = [0.0] * WIDEST
        self._rows = [0.0] * WIDEST

    def observe(self, rows: int, seconds: float, resolved: Sequence[Sequence[int]]) -> None:
        """Take in a forward.

        rows: all of its rows. resolved: per request, the positions resolved by its denoise rows,
        front first.
        """
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._moments = [
            MEMORY * old + value for old, value in zip(self._moments, new, strict=True)
        ]
        if not resolved:
            return
        for place in range(WIDEST):
            found = [one[place] for one in resolved if len(one) > place]
            if found:
                self._resolved[place] = MEMORY * self._resolved[place] + sum(found)
                self._rows[place] = MEMORY * self._rows[place] + len(found)

    def cost(self) -> tuple[float, float]:
        """(a, b) in seconds, neither below 0. Of equal forwards, half of the time is a."""
        weight, rows, squares, seconds, product = self._moments
        if weight == 0.0:
            return 0.5, 0.5
        spread = squares - rows * rows / weight
        mean = seconds / weight
        if spread < 1e-3 * squares:
            return mean / 2, mean / 2 / max(rows / weight, 1.0)
        slope = max(0.0, (product - rows * seconds / weight) / spread)
        return max(0.0, mean - slope * rows / weight), slope

    def gain(self, place: int) -> float:
        """Positions that a row of the k-th block in flight resolves; half of the one before's
        until there are some."""
        if self._rows[place] >= 1.0:
            return self._resolved[place] / self._rows[place]
        return 1.0 if place == 0 else self.gain(place - 1) / 2

    def lookahead(self, requests: int) -> int:
        """The best number of blocks in flight for so many denoising requests."""
        base, slope = self.cost()
        time = base / max(requests, 1) + slope
        resolved = self.gain(0)
        width = 1
        while width < WIDEST and self.gain(width) * time > resolved * slope:
            resolved += self.gain(width)
            time += slope
            width += 1
        return width
