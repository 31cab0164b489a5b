"""The report: what ran, the table, and the kernels of a step."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.engines import OURS
from benchmarks.gpu import shapes, steps, table
from benchmarks.gpu.bounds import Bounds
from benchmarks.gpu.patterns import PATTERNS
from benchmarks.gpu.serving import FIRST_BLOCKS, Wave
from benchmarks.gpu.setting import ENGINES, Setting

Results = Mapping[str, Any]


def land(setting: Setting, results: Results, module: str) -> Path:
    """Write benchmarks/results/gpu-*.md; of a trial a file beside the units."""
    text = parts(setting, results)
    if setting.trial:
        path = setting.work / "report.md"
        path.write_text("\n\n".join(text) + "\n")
        return path
    title = f"{setting.device_name}: ours and stock"
    return report.write(f"gpu-{setting.name}", title, module, text)


def parts(setting: Setting, results: Results) -> list[str]:
    """The report's text."""
    sizes, limits = setting.sizes, bounds(setting, results)
    rows = [
        *table.step_rows(results, sizes, limits),
        *table.exact_rows(results),
        *table.serving_rows(results, sizes, tuple(PATTERNS.values()), limits),
    ]
    found = [
        f"LLaDA2.0-{setting.shape} with random weights, the same in both engines; acceptance "
        "forced by the same schedule (`benchmarks/gpu/patterns.py`), so answers are no text and "
        f"are not compared. {_routing(setting)} Steps: the real scheduler without sockets, one "
        f"token per step, {sizes.step_prompt} prompt tokens; seconds per forward, median "
        f"(least - greatest) of {steps.REPETITIONS} runs of {sizes.steps} steps. First blocks: "
        f"median of {FIRST_BLOCKS} requests to an idle server. Output tokens/s: one wave each, all "
        "requests at once, not streamed, EOS ignored, from the first sent to the last answered.",
        f"- {_software(setting)}",
        *(f"- {engine}: `{setting.in_words(engine)}`" for engine in ENGINES),
        report.table(table.HEADER, rows),
    ]
    if limits is not None:
        found.append(
            "Cost model (`llada-sglang roofline`), of forwards alone, at "
            f"{limits.bandwidth / 1e12:.2f} TB/s, what one large copy moves on this device, "
            f"published {limits.gpu.bandwidth / 1e12:.2f}: for a step its floor; for the rest the "
            "gain that arithmetic gives at no overhead in either engine, and in brackets the "
            "figures of both. A block of S steps is S forwards of ours and S + 1 of stock, a "
            "prompt is one forward of ours, which its first step shares, and one per 32 tokens of "
            "stock. A gain beyond is overhead that stock has and ours has not."
        )
    found += _notes(setting, results)
    dates = ", ".join(f"{name} {unit['measured']}" for name, unit in results.items())
    return [*found, f"Measured (UTC, commit): {dates}."]


def bounds(setting: Setting, results: Results) -> Bounds | None:
    """What the cost model computes with; None of a trial, and where the GPU or its bandwidth is not
    known."""
    if setting.trial or setting.gpu is None or steps.BANDWIDTH not in results:
        return None
    bandwidth = results[steps.BANDWIDTH]["bytes_per_second"]
    return Bounds(shapes.cost_shape(setting.shape), setting.gpu, bandwidth)


def _notes(setting: Setting, results: Results) -> list[str]:
    found = []
    counted = [
        f"{results[name]['tpf']:.2f} at TPF {pattern.exact_tpf:.1f}, {size} at once"
        for pattern in PATTERNS.values()
        for size in setting.sizes.concurrent
        if "tpf" in results.get(name := Wave(pattern, size).name(OURS), {})
    ]
    if counted:
        found.append(
            f"Output tokens per denoise forward as ours counts them: {'; '.join(counted)}."
        )
    if different := results.get("exact", {}).get("different"):
        found.append(f"Not the reference's: {' | '.join(different)}")
    for engine in ENGINES:
        for rows in setting.sizes.rows:
            figures = results.get(steps.unit(engine, rows), {})
            if error := figures.get("profile_error"):
                found.append(f"No profile of {engine} at {rows} rows: {error}")
            if kernels := figures.get("kernels"):
                lines = [[f"`{n[:80]}`", f"{1e6 * s:.1f}", c] for n, s, c in kernels]
                found.append(
                    f"## Kernels of a step, {engine}, {rows} rows\n\n"
                    + report.table(["kernel", "us per step", "calls"], lines)
                )
    return found


def _routing(setting: Setting) -> str:
    if setting.device == "cpu":
        return "Experts are the router's choice."
    return (
        "Experts are drawn at random by the host (`SGLANG_SIMULATE_UNIFORM_EXPERTS`), so that a "
        "step touches as many as the cost model expects; a random router would send the masks, "
        "which are one embedding, to a few."
    )


def _software(setting: Setting) -> str:
    names = ("flashinfer-python", "triton", "sglang-kernel")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if setting.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit"]
        try:
            told = subprocess.run(
                [*query, "--format=csv,noheader"], capture_output=True, text=True, check=False
            ).stdout.splitlines()
        except OSError:
            told = ["no nvidia-smi"]
        versions += [f"CUDA {torch.version.cuda}", *told[:1]]
    return f"device: {setting.device_name}; {', '.join(versions)}"
