"""Time from the command to a ready server and to its first answers: `python -m benchmarks.startup`.

Ready is the first 200 of /health_generate, which SGLang gives after its own warm-up request. Cold
starts get an empty cache of torch.compile; the files of the checkpoint and of Python are in the
page cache in every run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.client import Reply, ask_all
from benchmarks.engines import OURS, REPOSITORY, STOCK, in_words, serve, spec
from benchmarks.workloads import RandomTokens

MODULE = "benchmarks.startup"
NAME = "startup"


@dataclass(slots=True)
class Starts:
    """Seconds of all starts of one kind; replies are compared between the engines."""

    ready: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


def measure(engine: str, arguments: argparse.Namespace, starts: Starts, *, cold: bool) -> None:
    """Start the engine once, ask it twice."""
    flags = ("--dtype", "float32", *arguments.flags.split())
    chosen = spec(engine, arguments.model, flags)
    prompts = RandomTokens(arguments.model)
    logs = REPOSITORY / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        if cold:
            chosen = chosen.with_environment({"TORCHINDUCTOR_CACHE_DIR": cache})
        started = time.monotonic()
        with serve(chosen, logs / f"startup-{engine}.log") as server:
            starts.ready.append(time.monotonic() - started)
            for number, seconds in enumerate((starts.first, starts.second)):
                task = prompts.task(number, 64, 32)
                reply = asyncio.run(ask_all(server.url, [task], concurrency=1))[0]
                starts.replies.append(reply)
                seconds.append(reply.seconds)
    print(f"{engine}, cold={cold}: {starts}", file=sys.stderr, flush=True)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(
        (Path(place) / name).lstat().st_size
        for place, _, names in os.walk(folder)
        for name in names
    )


def write(starts: dict[tuple[str, bool], Starts], arguments: argparse.Namespace) -> None:
    """Write the report."""
    flags = ("--dtype", "float32", *arguments.flags.split())
    answers = {
        engine: [r.output_ids for cold in (True, False) for r in starts[engine, cold].replies]
        for engine in (OURS, STOCK)
    }
    same = [a == b for a, b in zip(answers[OURS], answers[STOCK], strict=True)]
    rows = []
    for (engine, cold), times in starts.items():
        errors = sum(reply.error is not None for reply in times.replies)
        shown = [report.summary(v, 1) for v in (times.ready, times.first, times.second)]
        if not all(same):
            shown[1:] = ["tokens differ"] * 2
        kind = "cold" if cold else "warm"
        rows.append([engine, kind, len(times.ready), *shown, f"{errors} of {len(times.replies)}"])
    header = ("engine", "start", "starts", "ready, s", "first answer, s", "second answer, s")
    environment = folder_bytes(Path(sys.prefix)) / 1e9
    package = folder_bytes(REPOSITORY / "llada_sglang") / 1e6
    parts = [
        f"Checkpoint: {arguments.title}. Engines in turn; median (least - greatest). Ready is the "
        "first 200 of /health_generate after SGLang's warm-up request; answers are 32 tokens to "
        "64 random ones. Cold: with an empty torch.compile cache.",
        f"- ours: `{in_words(OURS, flags)}`\n- stock: `{in_words(STOCK, flags)}`",
        report.table((*header, "errors"), rows),
        f"Same tokens in {sum(same)} of {len(same)} answers.",
        f"Disk: the whole environment takes {environment:.1f} GB, this package {package:.0f} MB "
        f"of it, its checkpoint included. {arguments.install}",
    ]
    report.write(NAME, "Start-up", MODULE, parts)
    figure, (axis,) = report.plots(1, width=6.0)
    for index, times in enumerate(starts.values()):
        medians = [report.median(v) for v in (times.ready, times.first)]
        axis.barh(index, medians[0], color="tab:blue", label="to ready" if not index else None)
        axis.barh(
            index,
            medians[1],
            left=medians[0],
            color="tab:orange",
            label="first answer" if not index else None,
        )
    labels = [f"{engine}, {'cold' if cold else 'warm'}" for engine, cold in starts]
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel="seconds")
    axis.legend()
    report.save(figure, NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--title", required=True, help="the checkpoint in words")
    parser.add_argument("--repetitions", type=int, default=3, help="warm starts of each")
    parser.add_argument("--flags", default="--max-running-requests 32 --max-total-tokens 65536")
    parser.add_argument("--install", default="", help="a sentence on how long installing took")
    arguments = parser.parse_args()
    kinds = [(engine, cold) for cold in (True, False) for engine in (STOCK, OURS)]
    starts = {kind: Starts() for kind in kinds}
    for engine in (STOCK, OURS):
        measure(engine, arguments, starts[engine, True], cold=True)
    for repetition in range(arguments.repetitions):
        for engine in (OURS, STOCK) if repetition % 2 else (STOCK, OURS):
            measure(engine, arguments, starts[engine, False], cold=False)
    write(starts, arguments)


if __name__ == "__main__":
    main()
