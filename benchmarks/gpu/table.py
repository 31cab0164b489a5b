"""The table of a report: each figure, its bar, and whether it is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import report
from benchmarks.engines import OURS, STOCK
from benchmarks.gpu.patterns import BLOCK, PATTERNS
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.gpus import Gpu
from llada_sglang.roofline.shape import Shape

HEADER = ("figure", OURS, STOCK, "bar", "met")
ONE_ROW_MS = 6.0
"""Bar of a step of one row of mini in bf16 on an H200; elsewhere as far above the floor."""
ONE_ROW_FLOOR_MS = 4.8
OVER_FLOOR = 1.3
IDLE_SHARE = 0.05
FIRST_BLOCK = 20.0
SPEEDUP = {"1": 1.5, "32": 3.0, "128": 3.0}

Row = tuple[str, str, str, str, str]
Results = Mapping[str, Any]


def floors(
    shape: Shape, gpu: Gpu, rows: int, kv_len: int, bandwidth: float, experts: float | None
) -> tuple[float, float | None]:
    """Least seconds of a step: as the cost model expects experts, and as they were counted.

    bandwidth: bytes/s, measured. experts: distinct ones per layer of a step, counted. Half of the
    positions are masked on average where a step resolves one.
    """
    setup = Setup(shape, replace(gpu, bandwidth=bandwidth), kv_len=kv_len)
    step = setup.step(rows, masked=rows * (BLOCK + 1) / 2)
    if experts is None:
        return step.seconds, None
    routed = next(part for part in step.parts if part.name == "routed experts")
    counted = routed.weight_bytes * experts / step.experts_touched / bandwidth
    other = step.seconds - routed.seconds
    return step.seconds, other + max(counted, routed.flops / setup.gpu.bf16)


def step_rows(results: Results, shape: Shape, gpu: Gpu | None, kv_len: int) -> list[Row]:
    """Step time and idle share by rows, against the floor."""
    ours, stock = (results.get(f"steps-{engine}", {}) for engine in (OURS, STOCK))
    experts = results.get("experts", {}).get("experts", {})
    bandwidth = ours.get("bandwidth")
    found: list[Row] = []
    for rows, figures in ours.get("rows", {}).items():
        told = [1e3 * s for s in figures["seconds"]]
        other = [1e3 * s for s in stock.get("rows", {}).get(rows, {}).get("seconds", ())]
        bar = met = report.MISSING
        if gpu is not None and bandwidth:
            touched = experts.get(rows)
            floor, counted = floors(shape, gpu, int(rows), kv_len, bandwidth, touched)
            limit = OVER_FLOOR * floor
            if rows == "1":
                limit = ONE_ROW_MS / ONE_ROW_FLOOR_MS * floor
            bar = f"at most {1e3 * limit:.2f}; floor {1e3 * floor:.2f}"
            if counted is not None:
                bar += f", {1e3 * counted:.2f} with {touched:.0f} experts a layer as counted"
            met = _met(report.median(told) <= 1e3 * limit)
        label = f"step, {rows} row{'s' if rows != '1' else ''}, ms"
        found.append((label, report.summary(told), report.summary(other), bar, met))
    for rows, figures in ours.get("rows", {}).items():
        if (share := figures.get("idle_share")) is None:
            continue
        other_share = stock.get("rows", {}).get(rows, {}).get("idle_share")
        shown = report.MISSING if other_share is None else f"{100 * other_share:.1f} %"
        bar = f"at most {100 * IDLE_SHARE:.0f} %"
        label = f"device idle, {rows} rows, share of a step"
        found.append((label, f"{100 * share:.1f} %", shown, bar, _met(share <= IDLE_SHARE)))
    return found


def serving_rows(results: Results, prompt: int, output: int) -> list[Row]:
    """Time to the first block, and output tokens/s, of every pattern that was measured."""
    found: list[Row] = []
    for tpf, pattern in PATTERNS.items():
        pair = [results.get(f"serving-{tpf}-{engine}") for engine in (OURS, STOCK)]
        if not any(pair):
            continue
        ours, stock = pair
        name = f"TPF {pattern.exact_tpf:.1f}"
        firsts = [one["first_block"] if one else [] for one in (ours, stock)]
        gain = report.median(firsts[1]) / report.median(firsts[0]) if all(firsts) else None
        found.append(
            (
                f"{name}: s to the first block, prompt {prompt}",
                *(report.summary(values, 3) for values in firsts),
                *_times(gain, FIRST_BLOCK),
            )
        )
        sizes = dict.fromkeys(size for one in pair if one for size in one["speeds"])
        for size in sizes:
            speeds = [one["speeds"][size]["tokens_per_second"] if one else None for one in pair]
            gain = speeds[0] / speeds[1] if all(speeds) else None
            found.append(
                (
                    f"{name}: output tokens/s, {size} at once, {prompt} in, {output} out",
                    *(report.MISSING if s is None else f"{s:.1f}" for s in speeds),
                    *_times(gain, SPEEDUP.get(size)),
                )
            )
    return found


def exact_rows(results: Results) -> list[Row]:
    """Whether float32 on the device says what the reference says."""
    if (found := results.get("exact")) is None:
        return []
    shown = f"{found['equal']} of {found['answers']}"
    whole = found["equal"] == found["answers"]
    return [("float32 answers of nano equal to the reference's", shown, "-", "all", _met(whole))]


def _times(gain: float | None, bar: float | None) -> tuple[str, str]:
    if gain is None:
        return (report.MISSING if bar is None else f"at least {bar:g}x stock"), report.MISSING
    if bar is None:
        return f"{gain:.1f}x stock", report.MISSING
    return f"at least {bar:g}x stock", f"{_met(gain >= bar)}, {gain:.1f}x"


def _met(met: bool) -> str:
    return "yes" if met else "no"
