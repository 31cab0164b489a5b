"""The measurements on a GPU in one command: `python -m benchmarks.gpu`.

Ours and stock take turns, one server up at a time. A section takes a few minutes; what it measured
is kept in build/gpu-benchmark, and the report is written anew from all that is there after each.
`--only` and `--minutes` fit a run into rationed time; sections that are there are not repeated
unless `--again`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks import report
from benchmarks.engines import OURS, REPOSITORY
from benchmarks.gpu import exact, serving, shapes, steps, table
from benchmarks.gpu.patterns import PATTERNS
from benchmarks.gpu.setting import ENGINES, Setting, inherited_environment, require_device

MODULE = "benchmarks.gpu"
SECTIONS = ("steps", "experts", *(f"serving-{tpf}" for tpf in PATTERNS), "exact")
Unit = tuple[str, Callable[[], dict[str, Any]]]


def units(section: str, setting: Setting, order: tuple[str, ...]) -> list[Unit]:
    """The parts of a section in the order they are run, each with the name it is kept under."""
    if section == "exact":
        return [("exact", lambda: exact.measure(setting))]
    if section == "experts":
        return [("experts", lambda: run_worker(OURS, setting, "--count-experts"))]
    if section == "steps":
        return [(f"steps-{e}", lambda e=e: run_worker(e, setting)) for e in order]
    pattern = PATTERNS[int(section.removeprefix("serving-"))]
    return [(f"{section}-{e}", lambda e=e: serving.measure(e, setting, pattern)) for e in order]


def run_worker(engine: str, setting: Setting, *more: str) -> dict[str, Any]:
    """Measure steps in a process whose environment makes it `engine`."""
    out = setting.work / f"worker-{engine}.json"
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", steps.MODULE, engine, str(out), *more]
    command += setting.command_line()
    environment = inherited_environment(setting.spec(engine).environment)
    with log.open("wb") as stream:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"the worker of {engine} ended with {done.returncode}:\n{tail}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def read(setting: Setting) -> dict[str, Any]:
    """Everything measured so far on this device and shape, by unit."""
    return {
        file.stem.removeprefix("unit-"): json.loads(file.read_text())
        for file in sorted(setting.work.glob("unit-*.json"))
    }


def parts(setting: Setting, results: dict[str, Any]) -> list[str]:
    """The report's text."""
    sizes = setting.sizes
    rows = [
        *table.step_rows(results, shapes.cost_shape(setting.shape), setting.gpu, sizes.step_prompt),
        *table.serving_rows(results, sizes.prompt, sizes.output),
        *table.exact_rows(results),
    ]
    found = [
        f"LLaDA2.0-{setting.shape} with random weights, the same in both engines; acceptance "
        "forced by the same schedule (`benchmarks/gpu/patterns.py`), so answers are no text and "
        "are not compared. Steps: the real scheduler without sockets, one token per step, "
        f"{sizes.step_prompt} prompt tokens, median (least - greatest) of {steps.REPETITIONS} "
        f"runs of {sizes.steps} steps. Serving: one server up at a time, all requests of a wave "
        "start at once, EOS ignored, output tokens only.",
        f"- {_software(setting)}",
        *(f"- {engine}: `{setting.in_words(engine)}`" for engine in ENGINES),
        report.table(table.HEADER, rows),
    ]
    if bandwidth := results.get(f"steps-{OURS}", {}).get("bandwidth"):
        published = f", published {setting.gpu.bandwidth / 1e12:.2f}" if setting.gpu else ""
        found.append(
            f"The floor is the cost model's (`llada-sglang roofline`) at {bandwidth / 1e12:.2f} "
            f"TB/s, what one large copy moves on this device{published}."
        )
    for engine in ENGINES:
        measured = results.get(f"steps-{engine}", {}).get("rows", {})
        for count, figures in measured.items():
            if kernels := figures.get("kernels"):
                lines = [[f"`{n[:80]}`", f"{1e6 * s:.1f}", c] for n, s, c in kernels]
                found.append(
                    f"## Kernels of a step, {engine}, {count} rows\n\n"
                    + report.table(["kernel", "us per step", "calls"], lines)
                )
    dates = ", ".join(f"{name} {unit['measured']}" for name, unit in results.items())
    return [*found, f"Measured (UTC, commit): {dates}."]


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
        told = subprocess.run(
            [*query, "--format=csv,noheader"], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        versions += [f"CUDA {torch.version.cuda}", *told[:1]]
    return f"device: {setting.device_name}; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"sections, by comma, of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter answers")
    parser.add_argument("--again", action="store_true", help="measure also what was measured")
    parser.add_argument("--minutes", type=float, help="start nothing more after this time")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--stock-first", action="store_true", help="turn the order of the engines")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="mini")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--flags", default="", help="more flags of both servers")
    parser.add_argument("--stock-flags", default="", help="more flags of stock alone")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    require_device(arguments.device)
    if (arguments.device == "cpu") != (arguments.shape == "tiny"):
        parser.error("--device cpu goes with --shape tiny, and neither without the other")
    # Cut off by `timeout` it still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cpu = arguments.device == "cpu"
    arguments.size = "trial" if cpu else "quick" if arguments.quick else "full"
    failed = run(Setting.of(arguments), chosen, arguments)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


def run(setting: Setting, chosen: list[str], arguments: argparse.Namespace) -> list[str]:
    """Measure what is chosen and not there yet; write the report after each. Returns failures."""
    started, failed = time.monotonic(), []
    for index, section in enumerate(chosen):
        turned = (index % 2 == 1) != arguments.stock_first
        order = tuple(e for e in (ENGINES[::-1] if turned else ENGINES) if e in arguments.engines)
        for name, measure in units(section, setting, order):
            file = setting.work / f"unit-{name}.json"
            spent = (time.monotonic() - started) / 60
            if file.is_file() and not arguments.again:
                continue
            if arguments.minutes is not None and spent > arguments.minutes:
                failed.append(f"{name}: not started, {spent:.0f} minutes are spent")
                continue
            print(f"== {name}", file=sys.stderr, flush=True)
            try:
                result = measure()
            except Exception as error:  # the other units are still worth their time
                failed.append(f"{name}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
                continue
            stamp = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} {report._commit()}"
            file.write_text(json.dumps({**result, "measured": stamp}))
            land(setting, read(setting))
    land(setting, read(setting))
    return failed


def land(setting: Setting, results: dict[str, Any]) -> None:
    """Write benchmarks/results/gpu-*.md; on a CPU print the tables and land nothing."""
    text = parts(setting, results)
    if setting.device == "cpu":
        (setting.work / "report.md").write_text("\n\n".join(text) + "\n")
        print("\n\n".join(text))
        return
    report.write(f"gpu-{setting.name}", f"{setting.device_name}: ours and stock", MODULE, text)


if __name__ == "__main__":
    main()
