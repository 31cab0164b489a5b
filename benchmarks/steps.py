"""Inside one scheduler: forwards per block, and host time per step with 32 requests running.

`python -m benchmarks.steps --model DIR`. Each engine runs in a process of its own, the real
scheduler without sockets, the way the tests drive it. Device work is what the accelerator would do:
the model's forward, lm_head with its statistics, and the policy's tensor operations. Host time is
everything else in a turn of the event loop: admission, planning, batches, bookkeeping, results.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engines import OURS, REPOSITORY, STOCK, in_words, spec
from benchmarks.workloads import RandomTokens

MODULE = "benchmarks.steps"
NAME = "steps"
BLOCK = 32
FLAGS = (
    *("--dtype", "float32", "--max-running-requests", "32", "--max-total-tokens", "16384"),
    "--disable-radix-cache",
)


class Clock:
    """Seconds spent in wrapped functions, by name; nested ones count for the outermost only.

    profile: paused inside wrapped functions, so that it shows what is left.
    """

    def __init__(self) -> None:
        self.profile: cProfile.Profile | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside = False

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Replace `owner.attribute` by a timed one."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            profile = self.profile
            if profile is not None:
                profile.disable()
            self._inside = True
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started
                self.calls[name] += 1
                self._inside = False
                if profile is not None:
                    profile.enable()

        setattr(owner, attribute, timed)

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()


def worker(engine: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one engine in this process."""
    from inprocess import InProcessEngine  # type: ignore[import-not-found]

    flags = spec(engine, arguments.model, FLAGS).flags
    host = InProcessEngine(str(arguments.model.resolve()), *flags)
    clock = _instrument(engine, host.scheduler)
    return {**_forwards(host, clock, arguments), **_host_time(host, clock, arguments)}


def _instrument(engine: str, scheduler: Any) -> Clock:
    clock = Clock()
    clock.wrap(scheduler.tp_worker.model_runner, "forward", "model forward")
    if engine == OURS:
        from llada_sglang.scheduler import runner

        clock.wrap(scheduler.rounds.runner.head, "leading", "lm_head and statistics")
        clock.wrap(runner, "update_rows", "policy")
        clock.wrap(runner, "settled_rows", "policy")
        clock.wrap(runner, "threshold_update", "policy")
    else:
        # Stock's forward includes lm_head; its softmax is in the algorithm's step.
        clock.wrap(scheduler.tp_worker.dllm_algorithm, "step", "policy")
    return clock


def _forwards(host: Any, clock: Clock, arguments: argparse.Namespace) -> dict[str, Any]:
    """Forwards from the end of a request's first block to its end, by block in between."""
    prompts = RandomTokens(arguments.model)
    rid = host.submit(
        list(prompts.prompt(1, 2 * BLOCK)),
        max_new_tokens=arguments.blocks * BLOCK,
        ignore_eos=True,
        stream=True,
    )
    answer = host.answers[rid]
    first = 0
    while answer.finish is None:
        host.tick_unchecked()
        if not first and answer.ids:
            first = clock.calls["model forward"]
    total = clock.calls["model forward"]
    return {
        "forwards": total,
        "forwards_per_block": (total - first) / (arguments.blocks - 1),
        "ids": answer.ids,
    }


def _host_time(host: Any, clock: Clock, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step while all requests run and none is in its prompt, and a profile."""
    result: dict[str, Any] = {"turns": []}
    with _running(host, arguments, 2):
        for _ in range(arguments.repetitions):
            clock.reset()
            started = time.perf_counter()
            while clock.calls["model forward"] < arguments.steps:
                host.tick_unchecked()
            total = time.perf_counter() - started
            steps = clock.calls["model forward"]
            parts = {name: seconds / steps for name, seconds in clock.seconds.items()}
            result["turns"].append({"total": total / steps, "steps": steps, **parts})
    with _running(host, arguments, 3):
        clock.reset()
        clock.profile = profile = cProfile.Profile()
        profile.enable()
        while clock.calls["model forward"] < arguments.steps:
            host.tick_unchecked()
        profile.disable()
        clock.profile = None
        result["profile"] = _profile_text(profile)
        result["profile_steps"] = clock.calls["model forward"]
    return result


@contextmanager
def _running(host: Any, arguments: argparse.Namespace, seed: int) -> Iterator[None]:
    """All requests in their first block, aborted at the end."""
    prompts = RandomTokens(arguments.model)
    count = arguments.running
    rids = [
        host.submit(
            list(prompts.prompt(1000 * seed + i, BLOCK + 7)),
            max_new_tokens=8 * BLOCK,
            ignore_eos=True,
            # Thresholds are stock's own business; ours must take as many steps.
            **({"custom_params": {"threshold": 1.0}} if arguments.worker == OURS else {}),
        )
        for i in range(count)
    ]
    for _ in range(6):
        host.tick_unchecked()
    yield
    for rid in rids:
        host.abort(rid)
    while host.tick_unchecked():
        pass


def _profile_text(profile: cProfile.Profile) -> str:
    """The functions that cost most in themselves, without paths of this machine."""
    out = io.StringIO()
    pstats.Stats(profile, stream=out).sort_stats("tottime").print_stats(28)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
    return "\n".join(
        re.sub(r"/\S*/(site-packages/|llada_sglang/)", r"\1", x) for x in lines[start:]
    )


def run_worker(engine: str, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run `worker` in a process whose environment makes it `engine`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLADA_SGLANG_")}
    environment |= dict(spec(engine, arguments.model, FLAGS).environment)
    log = out.with_suffix(".log")
    print(f"measuring {engine}; its log is {log.relative_to(REPOSITORY)}", file=sys.stderr)
    command = [sys.executable, "-m", MODULE, *sys.argv[1:], "--worker", engine, "--json", str(out)]
    with log.open("wb") as stream:
        subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream, check=True
        )
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def write(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write the report."""
    ours, stock = results[OURS], results.get(STOCK)
    same = stock is None or ours["ids"] == stock["ids"]
    rows = []
    for engine, result in results.items():
        shown = f"{result['forwards_per_block']:.2f}" if same else "tokens differ"
        rows.append([engine, arguments.blocks, result["forwards"], shown])
    names = ["model forward", "lm_head and statistics", "policy"]
    times = []
    for engine, result in results.items():
        turns = result["turns"]
        columns = [[1e3 * turn.get(name, 0.0) for turn in turns] for name in names]
        host = [1e3 * (turn["total"] - sum(turn.get(n, 0.0) for n in names)) for turn in turns]
        cells = [report.summary(column) if any(column) else "in the forward" for column in columns]
        times.append([engine, *cells, report.summary(host)])
    report.write(
        NAME,
        "Forwards per block and host time per step",
        MODULE,
        [
            f"Checkpoint: {arguments.title}. One process per engine, the real scheduler driven "
            "turn by turn.",
            *(f"- {engine}: flags of `{in_words(engine, FLAGS)}`" for engine in results),
            "## Forwards per block\n\n"
            f"One request of {2 * BLOCK} prompt tokens and {arguments.blocks} output blocks, "
            "counted at the model runner, from the end of the first block to the end of the last.",
            report.table(["engine", "blocks", "forwards in all", "forwards per block"], rows),
            f"## Host time per step, {arguments.running} running\n\n"
            f"Milliseconds per step, median (least - greatest) of {arguments.repetitions} runs of "
            f"{arguments.steps} steps. Policy is tensor work, on an accelerator no host time.",
            report.table(["engine", *names, "host"], times),
            f"## Profile, {OURS}\n\n{ours['profile_steps']} steps under cProfile, paused in "
            "the model forward, lm_head and policy; it makes Python functions look slower than "
            "they are. Seconds of all steps together.",
            f"```\n{ours['profile']}\n```",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--title", required=True, help="the checkpoint in words")
    parser.add_argument("--running", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4, help="output blocks, forwards counted")
    parser.add_argument("--steps", type=int, default=16, help="steps per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=[OURS, STOCK], choices=(OURS, STOCK))
    parser.add_argument("--worker", choices=(OURS, STOCK), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        arguments.json.write_text(json.dumps(worker(arguments.worker, arguments)))
        return
    logs = REPOSITORY / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    results = {e: run_worker(e, arguments, logs / f"steps-{e}.json") for e in arguments.engines}
    write(results, arguments)


if __name__ == "__main__":
    main()
