"""A lookahead that follows the load finds the width a simulated model is fastest at."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

import pytest
import torch
from modelled_rounds import ModelledRounds

from llada_sglang.decoding.policy import Checkpoint
from llada_sglang.scheduler.load import WIDEST, Cost, Load, Work

BLOCK = 32


@dataclass(frozen=True)
class Model:
    """Seconds of a forward, and what a step of a request does at each width, 1 to 4."""

    base: float
    row: float
    position: float
    tokens: Sequence[float]
    rows: Sequence[float]
    positions: Sequence[float]

    def seconds(self, rows: float, positions: float) -> float:
        return self.base + self.row * rows + self.position * positions

    def per_token(self, width: int, requests: int) -> float:
        at = width - 1
        work = self.row * self.rows[at] + self.position * self.positions[at]
        return (self.base / requests + work) / self.tokens[at]

    def best(self, requests: int) -> int:
        return min(range(1, WIDEST + 1), key=lambda width: self.per_token(width, requests))


def drive(
    load: Load,
    model: Model,
    requests: int,
    steps: int,
    *,
    seed: int = 0,
    fixed: int = 0,
    disturb: Callable[[int], float] = lambda step: 1.0,
) -> tuple[list[int], float]:
    """Run `steps` forwards; returns the widths, and the seconds per token they took in all.

    fixed: a width to run at instead of the chosen one. disturb: factor of what a forward is said
    to take.
    """
    rng = random.Random(seed)
    widths, tokens, seconds = [], 0.0, 0.0
    resolved = [rng.uniform(0, BLOCK) for _ in range(requests)]
    for step in range(steps):
        width = fixed or load.lookahead(requests)
        at = width - 1
        # Blocks are handed out whole: mostly nothing, at times a lot.
        resolved = [r % BLOCK + rng.uniform(0.2, 1.8) * model.tokens[at] for r in resolved]
        work = Work(
            requests,
            sum(rng.uniform(0.7, 1.3) for _ in range(requests)) * model.rows[at],
            sum(rng.uniform(0.4, 1.6) for _ in range(requests)) * model.positions[at],
            sum(r // BLOCK * BLOCK for r in resolved),
        )
        prompt = rng.choice((0, 0, 0, 12))
        took = model.seconds(work.rows + prompt, work.positions)
        load.observe(
            took * disturb(step),
            rows=round(work.rows) + prompt,
            positions=round(work.positions),
            width=width,
            auto=work,
        )
        widths.append(width)
        tokens += work.tokens
        seconds += took
    return widths, seconds / tokens


# Two blocks in flight bring half as much again and cost twice the rows: worth it where the base is
# shared by few. What a third and a fourth one add is lost behind the text.
BROAD = Model(
    base=20e-3,
    row=1e-3,
    position=5e-5,
    tokens=(8, 12, 12.2, 12.2),
    rows=(1.3, 2.4, 3.2, 4.0),
    positions=(20, 45, 70, 95),
)
# The deeper, the better, as long as it is alone.
DEEP = Model(
    base=30e-3,
    row=1e-3,
    position=0.0,
    tokens=(6, 10, 13, 15),
    rows=(1.2, 2.6, 4.0, 5.4),
    positions=(20, 40, 60, 80),
)


@pytest.mark.parametrize("model", [BROAD, DEEP])
@pytest.mark.parametrize("requests", [1, 2, 8, 64])
def test_it_settles_at_the_fastest_width(model: Model, requests: int) -> None:
    load = Load(BLOCK)
    drive(load, model, 1, 2000)
    widths, _ = drive(load, model, requests, 1500, seed=1)
    best = model.per_token(model.best(requests), requests)
    # Trials included; and widths that are nearly as good may be mistaken for one another.
    lost = fmean(model.per_token(width, requests) / best - 1 for width in widths[500:])
    assert lost <= 0.08


def test_the_models_of_these_tests_change_their_best_width_with_the_load() -> None:
    assert [BROAD.best(n) for n in (1, 64)] == [2, 1]
    assert [DEEP.best(n) for n in (1, 64)] == [4, 1]


def test_it_beats_every_fixed_width_over_a_sweep() -> None:
    loads = (1, 2, 4, 8, 16, 32, 64)
    for model in (BROAD, DEEP):
        load = Load(BLOCK)
        drive(load, model, 1, 1500)
        auto = [drive(load, model, n, 800, seed=n)[1] for n in loads]
        for width in range(1, WIDEST + 1):
            fixed = [drive(Load(BLOCK), model, n, 800, seed=n, fixed=width)[1] for n in loads]
            gains = [f / a for f, a in zip(fixed, auto, strict=True)]
            assert geometric_mean(gains) > 1.01, (model, width, gains)


def test_what_was_learned_alone_serves_in_a_batch_at_once() -> None:
    load = Load(BLOCK)
    drive(load, BROAD, 1, 3000)
    assert load.lookahead(1) > 1
    widths, _ = drive(load, BROAD, 64, 60)
    assert widths[-1] == 1


def test_blocks_that_hand_out_no_more_text_are_not_worth_their_rows() -> None:
    """Later blocks may resolve any number of positions: behind the end of a text they are lost."""
    flat = Model(20e-3, 1e-3, 5e-5, (10, 10, 10, 10), (1, 2, 3, 4), (20, 50, 80, 110))
    load = Load(BLOCK)
    drive(load, flat, 1, 1500)
    widths, _ = drive(load, flat, 1, 1500, seed=3)
    assert widths.count(1) >= 0.85 * len(widths)


def test_a_model_that_changes_is_measured_again() -> None:
    load = Load(BLOCK)
    poor = Model(20e-3, 1e-3, 0.0, (8, 8, 8, 8), (1, 2, 3, 4), (20, 40, 60, 80))
    good = Model(20e-3, 1e-3, 0.0, (8, 14, 14, 14), (1, 2, 3, 4), (20, 40, 60, 80))
    widths, _ = drive(load, poor, 1, 3000)
    assert widths[-500:].count(1) >= 400
    widths, _ = drive(load, good, 1, 10000, seed=2)
    assert widths[-500:].count(2) >= 350


def test_forwards_that_waited_for_something_else_do_not_change_the_choice() -> None:
    load = Load(BLOCK)
    drive(load, DEEP, 1, 2000)
    widths, _ = drive(load, DEEP, 64, 1500, disturb=lambda step: 50.0 if step % 97 == 0 else 1.0)
    assert widths[500:].count(1) >= 0.85 * 1000


def test_cost_is_told_apart_by_rows_and_positions() -> None:
    cost, rng = Cost(), random.Random(0)
    for _ in range(400):
        rows, positions = rng.randint(1, 40), rng.randint(0, 600)
        cost.observe(rows, positions, 5e-3 + 2e-4 * rows + 3e-5 * positions)
    for rows, positions in ((4, 100), (16, 300), (32, 100)):
        expected = 5e-3 + 2e-4 * rows + 3e-5 * positions
        assert cost.seconds(rows, positions) == pytest.approx(expected, rel=0.1)


def test_forwards_of_every_size_have_a_cost_of_their_own() -> None:
    """Bound by memory up to 64 rows, by arithmetic above: no one line fits both."""
    cost, rng = Cost(), random.Random(0)
    for _ in range(1000):
        rows = rng.choice((rng.randint(1, 64), rng.randint(64, 512)))
        cost.observe(rows, 0, 1e-4 * max(rows, 64))
    for rows in (4, 16, 256, 512):
        assert cost.seconds(rows, 0) == pytest.approx(1e-4 * max(rows, 64), rel=0.15), rows


def test_a_forward_that_waited_for_something_else_is_no_cost_of_its_size() -> None:
    """Not even the first one as large: a kernel may have been compiled for it."""
    cost = Cost()
    for rows in range(1, 33):
        cost.observe(rows, 0, 5e-3 + 1e-4 * rows)
    cost.observe(100, 0, 60.0)
    assert cost.seconds(100, 0) < 0.1
    for _ in range(20):
        cost.observe(100, 0, 15e-3)
    assert cost.seconds(100, 0) == pytest.approx(15e-3, rel=0.5)


@pytest.mark.parametrize("positions", [0, 640])
def test_of_equal_forwards_half_of_the_time_is_the_base(positions: int) -> None:
    cost = Cost()
    assert cost.seconds(0, 0) > 0
    assert cost.seconds(20, positions) > 0
    for _ in range(50):
        cost.observe(20, positions, 1e-2)
    base = cost.seconds(0, 0)
    assert cost.seconds(20, positions) == pytest.approx(1e-2)
    assert 0.4e-2 <= base <= 0.7e-2
    assert cost.seconds(10, positions) <= 1e-2


def test_work_weighs_the_recent_more() -> None:
    work = Work()
    for _ in range(5000):
        work.add(Work(1, 1, 20, 8))
    for _ in range(5000):
        work.add(Work(1, 2, 40, 16))
    assert work.tokens / work.steps == pytest.approx(16, rel=0.1)
    assert work.steps <= 2049


@pytest.mark.parametrize("seed", range(4))
def test_other_texts_change_what_all_widths_bring(seed: int) -> None:
    """What is seen at the width in use holds for one that was not used since, too: tokens halve at
    both, so that there is nothing to be gained at the other."""
    load = Load(BLOCK)
    drive(load, BROAD, 1, 4000, seed=seed)
    halved = replace(BROAD, tokens=[tokens / 2 for tokens in BROAD.tokens])
    widths, _ = drive(load, halved, 1, 3000, seed=seed + 1)
    assert widths.count(1) <= 10


def test_what_looks_poor_is_seldom_tried() -> None:
    load = Load(BLOCK)
    drive(load, BROAD, 1, 3000)
    widths, _ = drive(load, BROAD, 1, 20000, seed=1)
    best = BROAD.per_token(2, 1)
    assert fmean(BROAD.per_token(width, 1) / best - 1 for width in widths) <= 0.012


@pytest.mark.parametrize("overlap", [False, True])
def test_rounds_report_what_forwards_did_for_requests_that_follow_the_load(overlap: bool) -> None:
    """Every token handed out is counted once, under the width that was in force."""
    checkpoint, block = Checkpoint(block=4, mask_id=3), 4

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(ids), 8)
        logits[:, 5] = 9.0
        return logits

    rounds = ModelledRounds(logits_of, checkpoint, vocab=8, overlap=overlap)
    seen: list[tuple[int, int, int, Work]] = []
    observe = rounds.rounds.load.observe

    def listen(seconds: float, *, rows: int, positions: int, width: int, auto: Work) -> None:
        assert seconds > 0
        seen.append((rows, positions, width, auto))
        observe(seconds, rows=rows, positions=positions, width=width, auto=auto)

    rounds.rounds.load.observe = listen  # type: ignore[method-assign]
    custom = {"policy": "threshold", "lookahead": "auto"}
    following = [rounds.submit([1] * 6, tokens=14, eos=[7], custom=custom) for _ in range(2)]
    fixed = rounds.submit([1], tokens=8, eos=[7], custom={"policy": "threshold"})
    rounds.run()
    text = sum(len(request.output_ids) for request in following)
    assert sum(auto.tokens for *_, auto in seen) == text == 28
    assert len(fixed.output_ids) == 8
    for rows, positions, width, auto in seen:
        assert 1 <= width <= WIDEST
        assert auto.steps <= 2
        assert auto.rows <= rows
        assert auto.positions <= positions <= rows * block
    assert any(auto.positions < positions for _, positions, _, auto in seen)
