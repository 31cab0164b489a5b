"""All measurements, one after the other: `python -m benchmarks`, about three hours on two cores.

Writes the checkpoints once, into build/checkpoints, and the reports into benchmarks/results.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.engines import REPOSITORY

RANDOM = Path("build/checkpoints/random")
WIDE_NANO = Path("build/checkpoints/wide-nano")
RANDOM_TITLE = "random weights, 4 layers, vocabulary 157184"
WIDE_TITLE = "nano at vocabulary 157184"

RUNS: tuple[tuple[str, ...], ...] = (
    ("benchmarks.nano_eval",),
    (
        *("benchmarks.throughput", "--model", str(RANDOM), "--workload", "random"),
        *("--name", "throughput-random", "--title", RANDOM_TITLE),
        *("--sections", "concurrency", "first-block", "arrivals"),
    ),
    (
        *("benchmarks.throughput", "--model", str(WIDE_NANO), "--workload", "tasks"),
        *("--name", "throughput-wide-nano", "--title", WIDE_TITLE),
        *("--sections", "concurrency", "first-block", "output-length"),
    ),
    ("benchmarks.startup", "--model", str(RANDOM), "--title", RANDOM_TITLE),
    ("benchmarks.steps", "--model", str(RANDOM), "--title", RANDOM_TITLE),
    ("benchmarks.general_path", "--model", str(RANDOM), "--title", RANDOM_TITLE),
    ("benchmarks.grammar",),
    ("benchmarks.head",),
    ("benchmarks.policies",),
    ("benchmarks.autowidth",),
    ("benchmarks.autowidth_gpu_time",),
)


def main() -> None:
    for kind, directory in (("random", RANDOM), ("wide-nano", WIDE_NANO)):
        if not (REPOSITORY / directory / "config.json").is_file():
            _run("benchmarks.checkpoints", kind, str(directory))
    failed = [run[0] for run in RUNS if _run(*run)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _run(module: str, *arguments: str) -> int:
    print(f"== {module} {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    main()
