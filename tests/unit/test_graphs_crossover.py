"""A forward runs as a graph where that was measured to be no slower."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sglang.graphs.crossover import REPEATS, Crossover, Timing, decide, measure
from llada_sglang.graphs.plan import padded_size, row_sizes


class FakeDevice:
    """Work is queued at once and takes its time at the next synchronization."""

    def __init__(self, first_run: float = 0.0) -> None:
        self.now = 0.0
        self.queued = 0.0
        self.runs: Counter[tuple[str, int]] = Counter()
        self.first_run = first_run

    def run(self, kind: str, rows: int, seconds: float) -> None:
        # The first run of anything loads kernels.
        self.queued += seconds + (0.0 if self.runs[kind, rows] else self.first_run)
        self.runs[kind, rows] += 1

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0.0


def timed(device: FakeDevice, sizes: list[int], row_budget: int) -> Timing:
    return measure(
        sizes,
        row_budget,
        replay=lambda rows: device.run("graph", rows, rows * 1.0),
        eager=lambda rows: device.run("eager", rows, 10.0 + rows),
        synchronize=device.synchronize,
        clock=lambda: device.now,
    )


def test_both_ways_are_timed_on_the_device_without_their_first_run() -> None:
    device = FakeDevice(first_run=1000.0)
    timing = timed(device, [1, 4], 9)
    assert timing == Timing(graph={1: 1.0, 4: 4.0}, eager={1: 11.0, 4: 14.0, 9: 19.0})
    assert set(device.runs.values()) == {REPEATS + 1}


def test_a_single_slow_run_decides_nothing() -> None:
    device = FakeDevice()
    hiccups = iter([0.0, 0.0, 500.0, 0.0])

    def replay(rows: int) -> None:
        device.run("graph", rows, 1.0 + next(hiccups))

    timing = measure(
        [1],
        1,
        replay=replay,
        eager=lambda rows: device.run("eager", rows, 2.0),
        synchronize=device.synchronize,
        clock=lambda: device.now,
    )
    assert timing.graph[1] == 1.0


def test_a_forward_bound_by_the_host_always_runs_as_a_graph() -> None:
    sizes = row_sizes(64)
    timing = Timing(dict.fromkeys(sizes, 0.005), dict.fromkeys(sizes, 0.009))
    crossover = decide(timing)
    assert all(crossover.parts(rows, sizes) == [rows] for rows in range(1, 65))
    assert crossover.parts(65, sizes) is None


def test_a_graph_whose_padding_costs_more_than_the_host_is_not_used() -> None:
    # One second a row, and the host takes one more: up to one row of padding is free.
    sizes = [4, 8]
    timing = Timing({4: 4.0, 8: 8.0}, {4: 5.0, 8: 9.0})
    crossover = decide(timing)
    assert [crossover.parts(rows, sizes) for rows in range(5, 9)] == [None, None, [7], [8]]


def test_a_size_that_always_loses_is_never_used() -> None:
    timing = Timing({2: 1.0, 4: 9.0}, {2: 2.0, 4: 3.0})
    crossover = decide(timing)
    assert [crossover.parts(rows, [2, 4]) for rows in (1, 2, 3, 4)] == [[1], [2], None, None]


@pytest.mark.parametrize(("eager", "expected"), [(11.9, None), (12.0, [4, 4, 2])])
def test_more_rows_than_the_largest_graph_take_turns_where_those_are_no_slower(
    eager: float, expected: list[int] | None
) -> None:
    # The largest forward, 10 rows, takes 4 + 4 + 2 rows in graphs of 4, 4 and 4 rows.
    timing = Timing({1: 1.0, 4: 4.0}, {1: 2.0, 4: 5.0, 10: eager})
    assert decide(timing).parts(10, [1, 4]) == expected


def test_no_turns_where_the_largest_graph_takes_every_forward() -> None:
    crossover = decide(Timing({4: 1.0}, {4: 2.0}))
    assert not crossover.in_turns


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_whatever_is_chosen_was_measured_to_be_no_slower(
    sizes: list[int], data: st.DataObject
) -> None:
    """Against an oracle that knows the eager time of every row count, growing in equal steps."""
    sizes = sorted(sizes)
    seconds = st.integers(1, 100)
    graph = {size: float(data.draw(seconds)) for size in sizes}
    base, step = data.draw(seconds), data.draw(seconds)
    eager = {size: float(base + step * size) for size in sizes}
    crossover = decide(Timing(graph, eager))
    for rows in range(1, sizes[-1] + 1):
        size = padded_size(rows, sizes)
        assert size is not None
        known = max(rows, sizes[0])  # below the least size measured, its time is all we know
        faster = graph[size] <= base + step * known + 1e-9
        assert (crossover.parts(rows, sizes) == [rows]) == faster


def test_without_a_measurement_graphs_run_wherever_they_fit() -> None:
    crossover = Crossover.always([1, 4])
    assert [crossover.parts(rows, [1, 4]) for rows in (1, 2, 4, 5)] == [[1], [2], [4], None]
