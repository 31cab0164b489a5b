"""The measurements on a GPU in one command: `python -m benchmarks.gpu`.

One server is up at a time, five starts in all. Every figure is kept in build/gpu-benchmark as soon
as it is measured, and the report is written from all that is there. A run that was cut off goes on
where it was: `--only`, `--patterns` and `--minutes` fit it into rationed time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.engines import OURS, STOCK
from benchmarks.gpu import exact, guard, serving, shapes, steps, summary
from benchmarks.gpu.patterns import PATTERNS, Pattern
from benchmarks.gpu.setting import Setting, require_device
from benchmarks.gpu.store import Store

MODULE = "benchmarks.gpu"
ORDER = (f"steps-{OURS}", "exact", f"steps-{STOCK}", f"serving-{STOCK}", f"serving-{OURS}")
"""What says most comes first."""
PATTERN_ORDER = (3, 8, 1, 5)


class OutOfTimeError(Exception):
    """The minutes given are spent."""


@dataclass(frozen=True)
class Section:
    """What one process of an engine measures. units: by name, in order.

    measure: takes the names still missing and keeps each as it is done.
    """

    name: str
    units: tuple[str, ...]
    measure: Callable[[Sequence[str]], None]


def section(
    name: str,
    setting: Setting,
    store: Store,
    patterns: Sequence[Pattern],
    check: Callable[[], None],
) -> Section:
    """One of ORDER. check: called before each wave, raises to stop."""
    if name == "exact":
        return Section(name, (name,), lambda _: store.save(name, exact.measure(setting)))
    kind, engine = name.split("-", 1)
    if kind == "steps":
        rows = steps.units(engine, setting)
        return Section(
            name,
            tuple(rows),
            lambda missing: steps.run_worker(
                engine, setting, [count for unit in missing for count in rows[unit]]
            ),
        )
    waves = {wave.name(engine): wave for wave in serving.waves(setting, patterns)}
    return Section(
        name,
        tuple(waves),
        lambda missing: serving.measure(
            engine, setting, store, [waves[unit] for unit in missing], check
        ),
    )


def measure(one: Section, store: Store) -> list[str]:
    """Measure what is not there of a section; returns failures.

    Where a unit fails a new process tries those behind it, unless this one measured nothing at
    all: then it is the start that fails. Raises OutOfTimeError.
    """
    failed: list[str] = []
    missing = _missing(one, store)
    while missing:
        print(f"== {one.name}: {', '.join(missing)}", file=sys.stderr, flush=True)
        try:
            one.measure(missing)
        except OutOfTimeError:
            raise
        except Exception as error:  # the others are still worth their time
            there = store.read()
            left = [unit for unit in missing if unit not in there]
            failed.append(f"{left[0] if left else one.name}: {type(error).__name__}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)
            missing = left[1:] if len(left) < len(missing) else []
        else:
            break
    return failed


def run(
    setting: Setting,
    chosen: Sequence[str],
    patterns: Sequence[Pattern],
    *,
    minutes: float | None = None,
    again: bool = False,
) -> list[str]:
    """Measure the sections chosen, in their order, and write the report. Returns failures."""
    started, store = time.monotonic(), Store(setting.work)
    failed: list[str] = []

    def check() -> None:
        if minutes is not None and (time.monotonic() - started) / 60 > minutes:
            raise OutOfTimeError

    try:
        for name in ORDER:
            if name not in chosen:
                continue
            one = section(name, setting, store, patterns, check)
            try:
                check()
                if again:
                    for unit in one.units:
                        store.forget(unit)
                failed += measure(one, store)
            except OutOfTimeError:
                left = _missing(one, store)
                failed += [f"{unit}: not started, the time is spent" for unit in left]
            summary.land(setting, store.read(), MODULE)
    finally:  # also where it is stopped
        print(f"see {summary.land(setting, store.read(), MODULE)}", file=sys.stderr, flush=True)
    return failed


def _missing(one: Section, store: Store) -> list[str]:
    there = store.read()
    return [unit for unit in one.units if unit not in there]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"sections, by comma, of {', '.join(ORDER)}")
    parser.add_argument(
        "--patterns",
        type=int,
        nargs="+",
        choices=sorted(PATTERNS),
        default=PATTERN_ORDER,
        help="tokens per forward, in the order served",
    )
    parser.add_argument("--minutes", type=float, help="start nothing more after this time")
    parser.add_argument("--again", action="store_true", help="measure also what was measured")
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="mini")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--flags", default="", help="more flags of both servers")
    parser.add_argument("--stock-flags", default="", help="more flags of stock alone")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else ORDER
    if unknown := set(chosen) - set(ORDER):
        parser.error(f"--only takes {', '.join(ORDER)}, got {', '.join(sorted(unknown))}")
    require_device(arguments.device)
    if arguments.device == "cpu" and arguments.shape != "tiny":
        parser.error("--device cpu goes with --shape tiny")
    guard.leave_on_signals()
    setting = Setting.of(arguments)
    patterns = [PATTERNS[tpf] for tpf in arguments.patterns]
    failed = run(setting, chosen, patterns, minutes=arguments.minutes, again=arguments.again)
    if setting.trial:
        print((setting.work / "report.md").read_text())
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
