"""Running requests while long prompts keep arriving: how long does a block take them?"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.client import Reply, Task, ask, session

RUNNING_TOKENS = 2000
"""More than a running request can make in a window: it never ends by itself."""


@dataclass(slots=True)
class Window:
    """Block latencies in seconds. waiting: how long each request had waited for its next block
    when the window closed, a lower bound; counted where it exceeds every block it did get."""

    blocks: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    prompts_sent: int = 0
    prompts_done: int = 0

    def samples(self) -> list[float]:
        """All latencies, an unfinished wait included where it is the longest of its request."""
        longest = max(self.blocks, default=0.0)
        return self.blocks + [wait for wait in self.waiting if wait > longest]

    def censored(self) -> bool:
        """Whether some sample is only a lower bound."""
        return len(self.samples()) > len(self.blocks)


@dataclass(slots=True)
class Windows:
    """Both windows over the same running requests, and the tokens these had made at the end."""

    alone: Window
    loaded: Window
    output_ids: list[list[int]]


async def measure(
    url: str,
    running: Sequence[tuple[int, ...]],
    arriving: Sequence[tuple[int, ...]],
    *,
    seconds: float,
    period: float = 1.0,
    patience: float = 60.0,
) -> Windows:
    """Two windows over the same running requests: alone, then with a prompt every `period`.

    An arriving prompt asks for one output token, so that it is the prompt that loads the server.
    Everything is aborted at the end. Raises RuntimeError where a running request ends before its
    window does, and TimeoutError where one makes no block within `patience` seconds while it is
    alone.
    """
    async with session() as client:
        replies = [Reply(0.0) for _ in running]
        streams = [
            asyncio.create_task(
                ask(client, url, Task(ids, RUNNING_TOKENS), stream=True, reply=reply)
            )
            for ids, reply in zip(running, replies, strict=True)
        ]
        deadline = time.monotonic() + patience
        while not all(reply.arrivals for reply in replies):
            if time.monotonic() > deadline or any(stream.done() for stream in streams):
                raise TimeoutError(f"no first block: {[reply.error for reply in replies]}")
            await asyncio.sleep(0.05)

        start = time.monotonic()
        await asyncio.sleep(seconds)
        alone = _window(replies, start, time.monotonic())

        start = time.monotonic()
        prompts = []
        for index, ids in enumerate(arriving):
            await asyncio.sleep(max(0.0, start + index * period - time.monotonic()))
            prompts.append(asyncio.create_task(ask(client, url, Task(ids, 1))))
        await asyncio.sleep(max(0.0, start + seconds - time.monotonic()))
        loaded = _window(replies, start, time.monotonic())
        if any(stream.done() for stream in streams):
            raise RuntimeError(f"a running request ended in its window: {RUNNING_TOKENS} are few")
        loaded.prompts_sent = len(prompts)
        loaded.prompts_done = sum(p.done() and p.result().error is None for p in prompts)
        for pending in (*streams, *prompts):
            pending.cancel()
        await asyncio.gather(*streams, *prompts, return_exceptions=True)
        async with client.post(f"{url}/abort_request", json={"rid": "", "abort_all": True}):
            pass
    return Windows(alone, loaded, [reply.output_ids for reply in replies])


def _window(replies: Sequence[Reply], start: float, end: float) -> Window:
    window = Window(seconds=end - start)
    for reply in replies:
        times = [when for when, _ in reply.arrivals]
        for before, after in itertools.pairwise(times):
            if start <= after <= end:
                window.blocks.append(after - before)
        window.waiting.append(end - max(when for when in times if when <= end))
        counts = [0, *(count for when, count in reply.arrivals if when <= end)]
        earlier = [0, *(count for when, count in reply.arrivals if when < start)]
        window.tokens += counts[-1] - earlier[-1]
    return window
