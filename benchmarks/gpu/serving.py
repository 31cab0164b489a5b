"""Both engines over HTTP: time to the first block, and output tokens per second, by pattern."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client import Reply, Task, ask_all
from benchmarks.engines import OURS, STOCK, Server, serve
from benchmarks.gpu import plugin
from benchmarks.gpu.patterns import BLOCK, PATTERNS, Pattern
from benchmarks.gpu.setting import READY_SECONDS, Setting
from benchmarks.gpu.store import Store
from benchmarks.workloads import RandomTokens

FIRST_BLOCKS = 3
WAVE_SECONDS = 300
QUICKEST = PATTERNS[8]


@dataclass(frozen=True, slots=True)
class Wave:
    """One unit: `size` requests at once, or with size 0 single ones up to their first block."""

    pattern: Pattern
    size: int

    def name(self, engine: str) -> str:
        return f"serving-{engine}-{self.pattern.tpf}-{self.size or 'first'}"


def waves(setting: Setting, patterns: Sequence[Pattern]) -> list[Wave]:
    """All that one engine is asked, in this order."""
    return [Wave(pattern, size) for pattern in patterns for size in (0, *setting.sizes.concurrent)]


def measure(
    engine: str,
    setting: Setting,
    store: Store,
    missing: Sequence[Wave],
    check: Callable[[], None],
) -> None:
    """Run waves on one server and keep each. check: called before each, raises to stop."""
    setting.force(QUICKEST)
    log = setting.work / f"serving-{engine}.log"
    with serve(setting.spec(engine), log, ready_seconds=READY_SECONDS) as server:
        if plugin.APPLIED not in server.log():
            raise RuntimeError(f"{plugin.NAME} is not loaded in {engine}: see {log}")
        prompt = setting.sizes.prompt
        for size in sorted({wave.size or 1 for wave in missing}):
            _ask(server, _tasks(engine, QUICKEST, 1, size, prompt, 2 * BLOCK))
        for wave in missing:
            check()
            setting.force(wave.pattern)
            result = _run(server, engine, setting, wave)
            if engine == STOCK:
                require_forced(server.log(), wave.pattern)
            store.save(wave.name(engine), result)


def figures(replies: Sequence[Reply]) -> dict[str, float]:
    """Output tokens/s over the whole wave, and tokens per forward where the engine reports them."""
    tokens = sum(len(reply.output_ids) for reply in replies)
    seconds = max(r.ended for r in replies) - min(r.started for r in replies)
    found = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    forwards = [reply.meta.get("denoise_forwards") for reply in replies]
    if all(forwards):
        found["tpf"] = tokens / sum(forwards)  # type: ignore[arg-type]
    return found


def _run(server: Server, engine: str, setting: Setting, wave: Wave) -> dict[str, Any]:
    sizes, pattern, seed = setting.sizes, wave.pattern, 10 * wave.pattern.tpf
    if wave.size:
        tasks = _tasks(engine, pattern, seed + 5, wave.size, sizes.prompt, sizes.output)
        return figures(_ask(server, tasks))
    firsts = []
    for repetition in range(FIRST_BLOCKS):
        tasks = _tasks(engine, pattern, seed + repetition, 1, sizes.prompt, BLOCK)
        firsts.append(_ask(server, tasks, stream=True)[0].first)
    return {"first_block": firsts}


def require_forced(log: str, pattern: Pattern) -> None:
    """Raise RuntimeError where the last schedule that stock's log names is another one."""
    told = [line for line in log.splitlines() if plugin.ANNOUNCED in line]
    if not told or plugin.announcement(pattern.steps) not in told[-1]:
        raise RuntimeError(f"stock did not take {pattern.steps} steps per block: {told[-1:]}")


def _tasks(
    engine: str, pattern: Pattern, seed: int, count: int, prompt: int, output: int
) -> list[Task]:
    prompts = RandomTokens.__new__(RandomTokens)
    decoding = pattern.parameters() if engine == OURS else {}
    return [
        Task(prompts.prompt(1000 * seed + i, prompt), output, decoding=decoding)
        for i in range(count)
    ]


def in_time(
    url: str, tasks: Sequence[Task], *, concurrency: int, stream: bool = False
) -> list[Reply]:
    """`ask_all`; raises RuntimeError after WAVE_SECONDS."""
    asked = ask_all(url, tasks, concurrency=concurrency, stream=stream)
    try:
        return asyncio.run(asyncio.wait_for(asked, WAVE_SECONDS))
    except asyncio.TimeoutError:
        raise RuntimeError(f"{len(tasks)} requests: no end within {WAVE_SECONDS} s") from None


def _ask(server: Server, tasks: Sequence[Task], *, stream: bool = False) -> list[Reply]:
    # Streamed only where a first block is timed: the host sends all ids so far with each chunk, and
    # for many requests that is what would be measured.
    replies = in_time(server.url, tasks, concurrency=len(tasks), stream=stream)
    what = f"{len(tasks)} requests for {tasks[0].max_new_tokens} tokens"
    wrong = [reply.error for reply in replies if reply.error] or [
        f"{len(reply.output_ids)} tokens instead of {task.max_new_tokens}"
        for reply, task in zip(replies, tasks, strict=True)
        if len(reply.output_ids) != task.max_new_tokens
    ]
    if wrong:
        raise RuntimeError(f"{what}: {len(wrong)} failed: {wrong[0]}")
    print(f"  {what}: {max(reply.seconds for reply in replies):.2f} s", file=sys.stderr, flush=True)
    return replies
