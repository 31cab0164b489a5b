"""Requests over HTTP, with the time at which each piece of text arrived."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """One greedy request over token ids. decoding: its custom_params."""

    input_ids: tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool = True
    decoding: Mapping[str, Any] = field(default_factory=dict)

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The body of POST /generate."""
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": self.max_new_tokens,
            "ignore_eos": self.ignore_eos,
        }
        if self.decoding:
            sampling["custom_params"] = dict(self.decoding)
        return {"input_ids": list(self.input_ids), "sampling_params": sampling, "stream": stream}


@dataclass(slots=True)
class Reply:
    """What came of a request. Times are of time.monotonic().

    arrivals: (time, output tokens so far) of every chunk that brought tokens. error: what went
    wrong, None for a complete answer.
    """

    started: float
    ended: float = 0.0
    output_ids: list[int] = field(default_factory=list)
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first tokens."""
        return self.arrivals[0][0] - self.started

    @property
    def seconds(self) -> float:
        return self.ended - self.started


def session() -> aiohttp.ClientSession:
    """A client session without a limit on connections or time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=LINE_BYTES,
    )


async def ask(
    client: aiohttp.ClientSession,
    url: str,
    task: Task,
    *,
    stream: bool = False,
    reply: Reply | None = None,
) -> Reply:
    """Send one request and wait for its end. Pass `reply` to watch it fill."""
    if reply is None:
        reply = Reply(0.0)
    reply.started = time.monotonic()
    try:
        async with client.post(f"{url}/generate", json=task.body(stream=stream)) as answer:
            if answer.status != 200:
                reply.error = f"status {answer.status}: {(await answer.text())[:200]}"
            elif stream:
                await _read_stream(answer, reply)
            else:
                _take(reply, await answer.json())
    except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    reply.ended = time.monotonic()
    if reply.error is None and not reply.output_ids and task.max_new_tokens:
        reply.error = "no output token"
    return reply


async def ask_all(
    url: str, tasks: Sequence[Task], *, concurrency: int, stream: bool = False
) -> list[Reply]:
    """Send all requests, `concurrency` of them at a time; replies in the order of the tasks."""
    gate = asyncio.Semaphore(concurrency)
    async with session() as client:

        async def one(task: Task) -> Reply:
            async with gate:
                return await ask(client, url, task, stream=stream)

        return list(await asyncio.gather(*(one(task) for task in tasks)))


async def _read_stream(answer: aiohttp.ClientResponse, reply: Reply) -> None:
    async for line in answer.content:
        text = line.decode().strip()
        if not text.startswith("data:"):
            continue
        payload = text.removeprefix("data:").strip()
        if payload == "[DONE]":
            return
        chunk = json.loads(payload)
        if "error" in chunk:
            reply.error = str(chunk["error"])[:200]
            return
        _take(reply, chunk)


def _take(reply: Reply, chunk: dict[str, Any]) -> None:
    ids = chunk.get("output_ids") or []
    if len(ids) > len(reply.output_ids):
        reply.arrivals.append((time.monotonic(), len(ids)))
    reply.output_ids, reply.text, reply.meta = ids, chunk.get("text", ""), chunk["meta_info"]
    finish = reply.meta.get("finish_reason") or {}
    if finish.get("type") == "abort":
        reply.error = str(finish.get("message", "aborted"))
