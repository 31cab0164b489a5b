"""Reports: what ran where, medians with their spread, one Markdown table, one plot."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("llada_sglang", "sglang", "torch", "transformers")
MISSING = "-"


def median(values: Sequence[float]) -> float:
    """The median, 0 of nothing."""
    return statistics.median(values) if values else 0.0


def summary(values: Sequence[float], digits: int = 2) -> str:
    """`median (least - greatest)`; of a single value only that."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, share in (0, 1]."""
    ranked = sorted(values)
    return ranked[max(0, -(-int(share * 1000) * len(ranked) // 1000) - 1)]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def circumstances(module: str) -> str:
    """Machine, versions, commit, time and the exact command, as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / (1 << 30)
    load = psutil.getloadavg()[0]
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return "\n".join(
        [
            f"- machine: {_processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
            f"{_accelerator()}; load average {load:.1f} when the report was written",
            f"- versions: Python {platform.python_version()}, {versions}",
            f"- commit: {commit()}",
            f"- command: `{command}`",
            f"- written: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        ]
    )


def write(name: str, title: str, module: str, parts: Sequence[str]) -> Path:
    """Write benchmarks/results/NAME.md; returns its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.md"
    sections = [f"# {title}", circumstances(module), *parts]
    path.write_text("\n\n".join(section.strip() for section in sections) + "\n")
    return path


def plots(count: int, *, width: float = 4.6, height: float = 3.6) -> tuple[Any, list[Any]]:
    """A figure with `count` axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained")
    return figure, [axes] if count == 1 else list(axes)


def save(figure: Any, name: str) -> Path:
    """Write benchmarks/results/NAME.png; returns its path."""
    import matplotlib.pyplot as plt

    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "no accelerator"


def commit() -> str:
    """The commit measured, and whether the package differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../llada_sglang")
        found = git("rev-parse", "--short", "HEAD")
    except OSError:  # no git here
        found = changed = ""
    return (found or "unknown") + (", with uncommitted changes" if changed else "")
