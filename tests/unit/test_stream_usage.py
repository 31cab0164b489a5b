"""The counters in the usage of an OpenAI stream."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionStreamResponse,
    CompletionStreamResponse,
    UsageInfo,
)

from llada_sglang.serving.stream_usage import add_counters, keep_counters, with_counters

COUNTERS = {
    0: {"denoise_forwards": 10, "prefill_forwards": 1, "tokens_per_forward": 4.0},
    1: {"denoise_forwards": 5, "prefill_forwards": 2, "tokens_per_forward": 4.0},
}


def event(kind: type[Any], usage: UsageInfo | None) -> str:
    """What the host sends; a text in it must not be mistaken for a field."""
    chunk = kind(id='"choices":[] "usage":{ ü', model="m", choices=[], usage=usage)
    return f"data: {chunk.model_dump_json()}\n\n"


@pytest.mark.parametrize("kind", [ChatCompletionStreamResponse, CompletionStreamResponse])
def test_the_usage_of_a_whole_answer_gets_the_sums_of_its_choices(kind: type[Any]) -> None:
    usage = UsageInfo(prompt_tokens=7, completion_tokens=60, total_tokens=67)
    before = event(kind, usage)
    after = with_counters(before, COUNTERS)
    assert after.startswith("data: ")
    assert after.endswith("\n\n")
    body = json.loads(after[6:])
    added = {"denoise_forwards": 15, "prefill_forwards": 3, "tokens_per_forward": 4.0}
    assert body.pop("usage") == usage.model_dump() | added
    expected = json.loads(before[6:])
    del expected["usage"]
    assert body == expected


def test_every_other_event_passes_unchanged() -> None:
    for text in (
        event(ChatCompletionStreamResponse, None),
        'data: {"choices":[{"text":"\\"choices\\":[]"}],"usage":{"completion_tokens":1}}\n\n',
        "data: [DONE]\n\n",
    ):
        assert with_counters(text, COUNTERS) == text
    usage = event(CompletionStreamResponse, UsageInfo(completion_tokens=1))
    assert with_counters(usage, {}) == usage, "nothing is known of a request that never ran"


def test_counters_travel_beside_the_request_and_both_generators_are_closed() -> None:
    closed: list[str] = []

    async def chunks(manager: Any, obj: Any, request: Any) -> Any:
        try:
            for tokens in (1, 2):
                for index in COUNTERS:
                    info = {key: value * tokens for key, value in COUNTERS[index].items()}
                    yield {"index": index, "meta_info": info}
        finally:
            closed.append("chunks")

    async def events(serving: Any, obj: Any, request: Any, raw: Any) -> Any:
        try:
            async for chunk in keep_counters(chunks, None, obj, raw):
                yield f"data: {chunk['index']}\n\n"
            yield event(CompletionStreamResponse, UsageInfo(completion_tokens=60))
        finally:
            closed.append("events")

    async def read(limit: int) -> list[str]:
        stream = add_counters(events, None, SimpleNamespace(stream=True), None, None)
        out: list[str] = []
        async for text in stream:
            out.append(text)
            if len(out) == limit:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return out

    whole = asyncio.run(read(99))
    assert len(whole) == 5
    usage = json.loads(whole[-1][6:])["usage"]
    assert (usage["denoise_forwards"], usage["prefill_forwards"]) == (30, 6)
    assert usage["tokens_per_forward"] == 2.0
    closed.clear()
    assert len(asyncio.run(read(1))) == 1
    assert "events" in closed


def test_answers_that_are_not_streamed_are_left_to_the_host() -> None:
    made = object()
    assert keep_counters(lambda *_: made, None, SimpleNamespace(stream=False), None) is made
