"""Both engines over HTTP: time to the first block, and output tokens per second, by pattern."""

from __future__ import annotations

import asyncio
import statistics
import sys
from typing import Any

from benchmarks.client import Reply, Task, ask_all
from benchmarks.engines import OURS, Server, serve
from benchmarks.gpu import plugin
from benchmarks.gpu.patterns import BLOCK, Pattern
from benchmarks.gpu.setting import Setting
from benchmarks.workloads import RandomTokens

FIRST_BLOCKS = 3


def measure(engine: str, setting: Setting, pattern: Pattern) -> dict[str, Any]:
    """Seconds to the first block of each idle try, and tokens/s by concurrent requests."""
    log = setting.work / f"serving-{engine}-{pattern.tpf}.log"
    with serve(setting.spec(engine, pattern), log) as server:
        if plugin.APPLIED not in server.log():
            raise RuntimeError(f"{plugin.NAME} is not loaded in {engine}: see {log}")
        sizes, seed = setting.sizes, 10_000 * pattern.tpf
        for size in sizes.concurrent:
            _ask(server, _tasks(engine, pattern, seed + 1, size, sizes.prompt, 2 * BLOCK), "warm")
        first = [
            _ask(server, _tasks(engine, pattern, seed + 100 + i, 1, sizes.prompt, BLOCK), "first")
            for i in range(FIRST_BLOCKS)
        ]
        speeds = {}
        for size in sizes.concurrent:
            tasks = _tasks(engine, pattern, seed + 200 + size, size, sizes.prompt, sizes.output)
            speeds[str(size)] = figures(_ask(server, tasks, f"{size} at once"))
    return {"first_block": [replies[0].first for replies in first], "speeds": speeds}


def figures(replies: list[Reply]) -> dict[str, float]:
    """Output tokens/s over the whole wave, and tokens per forward where the engine reports them."""
    tokens = sum(len(reply.output_ids) for reply in replies)
    seconds = max(r.ended for r in replies) - min(r.started for r in replies)
    found = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    forwards = [reply.meta.get("denoise_forwards") for reply in replies]
    if all(forwards):
        found["tpf"] = tokens / sum(forwards)  # type: ignore[arg-type]
    found["last_first_block"] = max(reply.first for reply in replies)
    found["median_first_block"] = statistics.median(reply.first for reply in replies)
    return found


def _tasks(
    engine: str, pattern: Pattern, seed: int, count: int, prompt: int, output: int
) -> list[Task]:
    prompts = RandomTokens.__new__(RandomTokens)
    decoding = pattern.parameters() if engine == OURS else {}
    return [
        Task(prompts.prompt(1000 * seed + i, prompt), output, decoding=decoding)
        for i in range(count)
    ]


def _ask(server: Server, tasks: list[Task], what: str) -> list[Reply]:
    replies = asyncio.run(ask_all(server.url, tasks, concurrency=len(tasks), stream=True))
    wrong = [reply.error for reply in replies if reply.error] or [
        f"{len(reply.output_ids)} tokens instead of {task.max_new_tokens}"
        for reply, task in zip(replies, tasks, strict=True)
        if len(reply.output_ids) != task.max_new_tokens
    ]
    if wrong:
        raise RuntimeError(f"{what}: {len(wrong)} of {len(tasks)} requests failed: {wrong[0]}")
    print(f"  {what}: {max(reply.seconds for reply in replies):.2f} s", file=sys.stderr, flush=True)
    return replies
