"""Where a graph is faster than an eager forward, from one measurement of both at start.

A graph costs no host time but computes its padding; an eager forward computes what there is but
waits for the host while it is small. Which wins where depends on model, device and host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from llada_sglang.graphs.plan import padded_size, turns

REPEATS = 3


class Timing(NamedTuple):
    """Median seconds of a forward, by row count. eager: of all sizes; graph: of those captured."""

    graph: Mapping[int, float]
    eager: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Crossover:
    """Which forwards run as graphs.

    least: by captured size, the fewest rows that it is used for; a size that always loses has more
        than itself. in_turns: whether forwards of more rows than the largest size are cut into
        turns of it.
    """

    least: Mapping[int, int]
    in_turns: bool

    @classmethod
    def always(cls, sizes: Sequence[int]) -> Crossover:
        """Graphs wherever they fit, eager forwards beyond: the rule of who measures nothing."""
        return cls(dict.fromkeys(sizes, 1), in_turns=False)

    def parts(self, rows: int, sizes: Sequence[int]) -> list[int] | None:
        """The row counts of the replays that compute `rows` rows; None where to run eagerly.

        sizes: the captured sizes, ascending.
        """
        size = padded_size(rows, sizes)
        if size is not None:
            return [rows] if rows >= self.least[size] else None
        return turns(rows, sizes) if self.in_turns else None


def measure(
    sizes: Sequence[int],
    row_budget: int,
    *,
    replay: Callable[[int], None],
    eager: Callable[[int], None],
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time every captured size both ways, and the largest forward of all eagerly.

    replay, eager: run a forward of so many rows. synchronize: waits until the device is done.
    """

    def seconds(run: Callable[[int], None], rows: int) -> float:
        run(rows)  # loads kernels, grows workspaces
        taken = []
        for _ in range(REPEATS):
            synchronize()
            start = clock()
            run(rows)
            synchronize()
            taken.append(clock() - start)
        return median(taken)

    return Timing(
        graph={size: seconds(replay, size) for size in sizes},
        eager={size: seconds(eager, size) for size in sorted({*sizes, row_budget})},
    )


def decide(timing: Timing) -> Crossover:
    """Use a graph where it took no longer than the eager forward it replaces.

    The eager time of row counts between two measured ones is interpolated; from a single row down
    it is that of one. A tie goes to the graph, which leaves the host free.
    """
    sizes = sorted(timing.graph)
    measured = sorted(timing.eager)
    least, before = {}, 0
    for size in sizes:
        candidates = range(before + 1, size + 1)
        eager = (rows for rows in candidates if timing.graph[size] <= _between(timing.eager, rows))
        least[size] = next(eager, size + 1)
        before = size
    largest = measured[-1]
    cut = sum(timing.graph[padded_size(part, sizes) or sizes[-1]] for part in turns(largest, sizes))
    return Crossover(least, in_turns=largest > sizes[-1] and cut <= timing.eager[largest])


def _between(seconds: Mapping[int, float], rows: int) -> float:
    measured = sorted(seconds)
    above = next(one for one in measured if one >= rows)
    below = max((one for one in measured if one <= rows), default=above)
    if above == below:
        return seconds[above]
    share = (rows - below) / (above - below)
    return seconds[below] + share * (seconds[above] - seconds[below])
