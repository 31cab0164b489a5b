"""One engine's steps inside its process: `python -m benchmarks.gpu.steps ENGINE --rows N ...`.

The real scheduler without sockets, driven turn by turn as the tests drive it. All requests decode,
one token per step, so a step has as many rows as requests run, and one more where a block ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import OURS, REPOSITORY
from benchmarks.gpu import guard, trace
from benchmarks.gpu.patterns import BLOCK, PATTERNS
from benchmarks.gpu.setting import Setting, Sizes, inherited_environment
from benchmarks.gpu.store import Store
from benchmarks.workloads import RandomTokens

MODULE = "benchmarks.gpu.steps"
REPETITIONS = 3
KERNELS = 12
WORKER_SECONDS = 480
BANDWIDTH = "bandwidth"


def unit(engine: str, rows: int) -> str:
    return f"steps-{engine}-{rows}"


def units(engine: str, setting: Setting) -> dict[str, tuple[int, ...]]:
    """What an engine's worker keeps, with the rows to ask it for; ours also tells the bandwidth."""
    rows = {unit(engine, count): (count,) for count in setting.sizes.rows}
    return {BANDWIDTH: (), **rows} if engine == OURS and setting.device == "cuda" else rows


def run_worker(engine: str, setting: Setting, rows: Sequence[int]) -> None:
    """Measure steps in a process whose environment makes it `engine`; it keeps its units itself."""
    command = [sys.executable, "-m", MODULE, engine, "--rows", *map(str, rows)]
    guard.run(
        [*command, *setting.command_line()],
        log=setting.work / f"worker-{engine}.log",
        cwd=REPOSITORY,
        environment=inherited_environment(setting.spec(engine).environment),
        seconds=WORKER_SECONDS,
    )


class Counter:
    """Counts the calls of a method of the engine: one per forward given to the device."""

    def __init__(self, owner: Any, attribute: str) -> None:
        self.calls = 0
        function: Callable[..., Any] = getattr(owner, attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        setattr(owner, attribute, counted)


def measure(engine: str, setting: Setting, store: Store, every: Sequence[int]) -> None:
    """Keep seconds per step, the device's idle share and its longest kernels, by rows."""
    from inprocess import InProcessEngine  # type: ignore[import-not-found]

    cuda = setting.device == "cuda"
    if engine == OURS and cuda:
        # Before the engine takes the memory.
        store.save(BANDWIDTH, {"bytes_per_second": copy_bandwidth()})
    if not every:
        return
    setting.force(PATTERNS[1])
    host = InProcessEngine(str(setting.model), *setting.spec(engine).flags)
    worker = host.scheduler.tp_worker
    if not bool((worker.model_runner.model.model.norm.weight == 1).all()):
        raise RuntimeError("the weights are the host's own: the benchmark's plugin is not loaded")
    if cuda:
        require_host_routing(worker.model_runner.model)
    # Stock runs a whole block per turn, ours a step or more.
    counter = (
        Counter(host.scheduler.rounds.runner, "launch")
        if engine == OURS
        else Counter(worker.model_runner, "forward")
    )
    for rows in every:
        with _running(host, engine, setting.sizes, rows):
            steps = setting.sizes.steps
            seconds = [_timed(host, counter, setting, steps) for _ in range(REPETITIONS)]
            found: dict[str, Any] = {"seconds": seconds}
            store.save(unit(engine, rows), found)
            if cuda:
                try:
                    profiled = _profiled(host, counter, setting, rows, engine)
                except Exception as error:  # the times are still worth having
                    profiled = {"profile_error": f"{type(error).__name__}: {error}"[:300]}
                store.save(unit(engine, rows), found | profiled)


def require_host_routing(model: Any) -> None:
    """Raise RuntimeError where experts are chosen past the host's drawing of uniform ones."""
    from sglang.srt.layers.moe.topk import TopKOutputFormat, routing_simulation_enabled

    if not routing_simulation_enabled():
        raise RuntimeError("the host draws no experts: its variable is not set")
    for number, layer in enumerate(model.model.layers):
        if (topk := getattr(layer.mlp, "topk", None)) is None:
            continue  # a dense layer
        format_ = topk.topk_config.output_format
        if layer.mlp.use_block_routing or format_ is not TopKOutputFormat.STANDARD:
            raise RuntimeError(
                f"layer {number} would not run uniform experts: it routes by {format_}. "
                f"--flags '--moe-runner-backend triton' makes that standard."
            )


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes per second the device's memory moves, read and written by one large copy."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rates = []
    for _ in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        rates.append(2 * size / (begin.elapsed_time(end) / 1e3))
    del source, target
    torch.cuda.empty_cache()
    return statistics.median(rates)


def _timed(host: Any, counter: Counter, setting: Setting, steps: int) -> float:
    _synchronize(setting)
    counter.calls = 0
    started = time.perf_counter()
    _turn(host, counter, steps)
    _synchronize(setting)
    return (time.perf_counter() - started) / counter.calls


def _turn(host: Any, counter: Counter, steps: int) -> None:
    while counter.calls < steps:
        if not host.tick_unchecked():
            raise RuntimeError(f"the requests ended {steps - counter.calls} steps too early")


def _profiled(
    host: Any, counter: Counter, setting: Setting, rows: int, engine: str
) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    _synchronize(setting)
    counter.calls = 0
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        _turn(host, counter, setting.sizes.profiled)
        _synchronize(setting)
    recorded.export_chrome_trace(str(setting.work / f"trace-{engine}-{rows}.json.gz"))
    activity, kernels = trace.of_profile(recorded)
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    return {
        "idle_share": activity.idle_share,
        "waiting_share": activity.waiting_share,
        "kernels": [(name, s / counter.calls, n) for name, s, n in kernels[:KERNELS]],
    }


@contextmanager
def _running(host: Any, engine: str, sizes: Sizes, count: int) -> Iterator[None]:
    """`count` requests past their prompts and a first block; aborted at the end."""
    prompts = RandomTokens(Path())
    # A turn may hold a whole block's steps, so each measurement may run on for as many.
    blocks = 4 + sum(2 + steps // BLOCK for steps in (*[sizes.steps] * REPETITIONS, sizes.profiled))
    sampling: dict[str, Any] = {"max_new_tokens": blocks * BLOCK, "ignore_eos": True}
    if engine == OURS:
        sampling["custom_params"] = PATTERNS[1].parameters()
    rids, requests = [], []
    for i in range(count):
        prompt = list(prompts.prompt(1000 * count + i, sizes.step_prompt))
        rids.append(host.submit(prompt, **sampling))
        requests.append(host.scheduler.waiting_queue[-1])
    while not all(len(request.output_ids) for request in requests):
        assert host.tick_unchecked(), "requests wait and nothing runs"
    yield
    for rid in rids:
        host.abort(rid)
    while host.tick_unchecked():
        pass


def _synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine")
    parser.add_argument("--rows", type=int, nargs="*", required=True)
    for name in Setting.arguments():
        parser.add_argument(f"--{name.replace('_', '-')}", required=True)
    arguments = parser.parse_args()
    setting = Setting.of(arguments)
    measure(arguments.engine, setting, Store(setting.work), arguments.rows)


if __name__ == "__main__":
    main()
