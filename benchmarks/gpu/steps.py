"""One engine's steps inside its process: `python -m benchmarks.gpu.steps ENGINE OUT --settings`.

The real scheduler without sockets, driven turn by turn as the tests drive it. All requests decode,
one token per step, so a step has as many rows as requests run, and one more where a block ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import OURS
from benchmarks.gpu import trace
from benchmarks.gpu.patterns import BLOCK, PATTERNS
from benchmarks.gpu.setting import Setting, Sizes
from benchmarks.workloads import RandomTokens

MODULE = "benchmarks.gpu.steps"
REPETITIONS = 3
PROFILED = 24
KERNELS = 12


class Counter:
    """Counts the calls of a method of the engine: one per forward given to the device."""

    def __init__(self, owner: Any, attribute: str) -> None:
        self.calls = 0
        function: Callable[..., Any] = getattr(owner, attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        setattr(owner, attribute, counted)


def measure(engine: str, setting: Setting, *, count_experts: bool = False) -> dict[str, Any]:
    """Seconds per step by rows, the device's idle share, and its longest kernels.

    count_experts: instead, how many experts a layer's step uses; needs a server without graphs.
    """
    from inprocess import InProcessEngine  # type: ignore[import-not-found]

    result: dict[str, Any] = {"rows": {}}
    if engine == OURS and setting.device == "cuda" and not count_experts:
        result["bandwidth"] = copy_bandwidth()  # before the engine takes the memory
    more = ("--disable-cuda-graph",) if count_experts else ()
    host = InProcessEngine(str(setting.model), *setting.spec(engine, PATTERNS[1], *more).flags)
    scheduler = host.scheduler
    if not bool((scheduler.tp_worker.model_runner.model.model.norm.weight == 1).all()):
        raise RuntimeError("the weights are the host's own: the benchmark's plugin is not loaded")
    counter = (
        Counter(scheduler.rounds.runner, "launch")
        if engine == OURS
        else Counter(scheduler.tp_worker.dllm_algorithm, "run")
    )
    if count_experts:
        return _experts(host, counter, engine, setting)
    for rows in setting.sizes.rows:
        with _running(host, counter, engine, setting.sizes, rows):
            steps = setting.sizes.steps
            seconds = [_timed(host, counter, setting, steps) for _ in range(REPETITIONS)]
            found: dict[str, Any] = {"seconds": seconds}
            if setting.device == "cuda":
                found |= _profiled(host, counter, setting, rows, engine)
        result["rows"][str(rows)] = found
    return result


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
        _turn(host, counter, PROFILED)
        _synchronize(setting)
    recorded.export_chrome_trace(str(setting.work / f"trace-{engine}-{rows}.json.gz"))
    activity, kernels = trace.of_profile(recorded)
    return {
        "idle_share": activity.idle_share,
        "kernels": [(name, s / counter.calls, n) for name, s, n in kernels[:KERNELS]],
    }


def _experts(host: Any, counter: Counter, engine: str, setting: Setting) -> dict[str, Any]:
    """Distinct experts per layer and step, a mean over layers and steps, by rows."""
    used: list[int] = []

    def look(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        output = named.get("topk_output") or arguments[1]
        used.append(int(torch.unique(output.topk_ids).numel()))

    layers = host.scheduler.tp_worker.model_runner.model.model.layers
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(look, with_kwargs=True)
        for layer in layers
        if hasattr(layer.mlp, "experts")
    ]
    found = {}
    for rows in setting.sizes.rows:
        with _running(host, counter, engine, setting.sizes, rows):
            used.clear()
            _timed(host, counter, setting, min(BLOCK, setting.sizes.steps))
            found[str(rows)] = statistics.fmean(used) if used else None
    for hook in hooks:
        hook.remove()
    return {"experts": found}


@contextmanager
def _running(host: Any, counter: Counter, engine: str, sizes: Sizes, count: int) -> Iterator[None]:
    """`count` requests past their prompts and a first block; aborted at the end."""
    prompts = RandomTokens(Path())
    # A turn may hold a whole block's steps, so each measurement may run on for as many.
    blocks = 4 + sum(2 + steps // BLOCK for steps in (*[sizes.steps] * REPETITIONS, PROFILED))
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
    parser.add_argument("out", type=Path)
    parser.add_argument("--count-experts", action="store_true")
    for name in Setting.arguments():
        parser.add_argument(f"--{name.replace('_', '-')}", required=True)
    arguments = parser.parse_args()
    setting = Setting.of(arguments)
    result = measure(arguments.engine, setting, count_experts=arguments.count_experts)
    arguments.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
