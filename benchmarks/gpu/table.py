"""The table of a report: each figure, what arithmetic alone gives, its bar, and whether it is met.

A bar stands only where the figure is of the workload it was set for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.engines import OURS, STOCK
from benchmarks.gpu import shapes, steps
from benchmarks.gpu.bounds import Bounds
from benchmarks.gpu.patterns import BLOCK, Pattern
from benchmarks.gpu.serving import Wave
from benchmarks.gpu.setting import ENGINES, FULL, Sizes
from llada_sglang.roofline.gpus import GPUS

HEADER = ("figure", OURS, STOCK, "gain", "cost model", "bar", "met")
ONE_ROW_SECONDS = 6e-3
"""Bar of a step of one row of mini in bf16 on an H200, whose floor is 4.8 ms."""
ONE_ROW_OVER_FLOOR = 1.25
OVER_FLOOR = 1.3
WAITING_SHARE = 0.05
FIRST_BLOCK = 20.0
SPEEDUP = {1: 1.5, 32: 3.0, 128: 3.0}

Row = tuple[str, ...]
Results = Mapping[str, Any]


def step_rows(results: Results, sizes: Sizes, bounds: Bounds | None) -> list[Row]:
    """Step time, and how long the device waits in it, by rows."""
    found: list[Row] = []
    for rows in sizes.rows:
        pair = [results.get(steps.unit(engine, rows), {}) for engine in ENGINES]
        seconds = [one.get("seconds", []) for one in pair]
        if not any(seconds):
            continue
        model = bar = met = report.MISSING
        if bounds is not None:
            floor = bounds.step(rows, sizes.step_prompt)
            limit = _step_limit(rows, floor, bounds)
            model, bar = f"floor {1e3 * floor:.2f}", f"at most {1e3 * limit:.2f}"
            if seconds[0]:
                met = _met(report.median(seconds[0]) <= limit)
        told = [report.summary([1e3 * s for s in values]) for values in seconds]
        found.append((f"step, {_rows(rows)}, ms", *told, _gain(*seconds), model, bar, met))
    for rows in sizes.rows:
        pair = [results.get(steps.unit(engine, rows), {}) for engine in ENGINES]
        shares = [one.get("waiting_share") for one in pair]
        if all(share is None for share in shares):
            continue
        label = f"device waits for the host, {_rows(rows)}, share of a step (all idle time)"
        bar, met = f"at most {100 * WAITING_SHARE:.0f} %", report.MISSING
        if shares[0] is not None:
            met = _met(shares[0] <= WAITING_SHARE)
        found.append((label, *map(_shares, pair), report.MISSING, report.MISSING, bar, met))
    return found


def serving_rows(
    results: Results, sizes: Sizes, patterns: Sequence[Pattern], bounds: Bounds | None
) -> list[Row]:
    """Time to the first block, and output tokens/s, of every pattern that was measured."""
    found: list[Row] = []
    prompt, output = sizes.prompt, sizes.output
    for pattern in patterns:
        name = f"TPF {pattern.exact_tpf:.1f}"
        firsts = _pair(results, Wave(pattern, 0), "first_block")
        if any(firsts):
            found.append(
                (
                    f"{name}: s to the first block, prompt {prompt}",
                    *(report.summary(values or [], 3) for values in firsts),
                    _gain(*(values or [] for values in firsts)),
                    _least(bounds, 1, prompt, BLOCK, pattern, speed=False),
                    *_times(firsts, FIRST_BLOCK if prompt == FULL.prompt else None),
                )
            )
        for size in sizes.concurrent:
            speeds = _pair(results, Wave(pattern, size), "tokens_per_second")
            if not any(speeds):
                continue
            required = (prompt, output) == (FULL.prompt, FULL.output)
            # As durations, so that more is better here as well.
            inverse = [[1 / speed] if speed else [] for speed in speeds]
            found.append(
                (
                    f"{name}: output tokens/s, {size} at once, {prompt} in, {output} out",
                    *(report.MISSING if s is None else f"{s:.1f}" for s in speeds),
                    _gain(*inverse),
                    _least(bounds, size, prompt, output, pattern, speed=True),
                    *_times(inverse, SPEEDUP.get(size) if required else None),
                )
            )
    return found


def exact_rows(results: Results) -> list[Row]:
    """Whether float32 on the device says what the reference says."""
    if (found := results.get("exact")) is None:
        return []
    label = f"float32 answers of nano equal to the reference's ({found['path']})"
    shown = f"{found['equal']} of {found['answers']}"
    whole = found["equal"] == found["answers"]
    none = report.MISSING
    return [(label, shown, none, none, none, "all", _met(whole))]


def _step_limit(rows: int, floor: float, bounds: Bounds) -> float:
    if rows > 1:
        return OVER_FLOOR * floor
    absolute = bounds.gpu == GPUS["h200"] and bounds.shape == shapes.cost_shape("mini")
    return ONE_ROW_SECONDS if absolute else ONE_ROW_OVER_FLOOR * floor


def _pair(results: Results, wave: Wave, key: str) -> list[Any]:
    return [results.get(wave.name(engine), {}).get(key) for engine in ENGINES]


def _least(
    bounds: Bounds | None, size: int, prompt: int, output: int, pattern: Pattern, *, speed: bool
) -> str:
    if bounds is None:
        return report.MISSING
    ours, stock = (bounds.wave(engine, size, prompt, output, pattern) for engine in (OURS, STOCK))
    told = [f"{size * output / s:.0f}" if speed else f"{s:.3f}" for s in (ours, stock)]
    return f"{stock / ours:.1f}x ({' / '.join(told)})"


def _ratio(ours: Sequence[float], stock: Sequence[float]) -> float | None:
    return report.median(stock) / report.median(ours) if ours and stock else None


def _gain(ours: Sequence[float], stock: Sequence[float]) -> str:
    ratio = _ratio(ours, stock)
    return report.MISSING if ratio is None else f"{ratio:.2f}x"


def _times(durations: Sequence[Sequence[float] | None], bar: float | None) -> tuple[str, str]:
    if bar is None:
        return report.MISSING, report.MISSING
    ratio = _ratio(*(values or [] for values in durations))
    return f"at least {bar:g}x", report.MISSING if ratio is None else _met(ratio >= bar)


def _shares(figures: Mapping[str, Any]) -> str:
    if (waiting := figures.get("waiting_share")) is None:
        return report.MISSING
    return f"{100 * waiting:.1f} % ({100 * figures['idle_share']:.1f} %)"


def _rows(rows: int) -> str:
    return f"{rows} row{'s' if rows != 1 else ''}"


def _met(met: bool) -> str:
    return "yes" if met else "no"
