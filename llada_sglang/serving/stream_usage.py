"""The decoding counters in the usage of an OpenAI stream's last chunk.

The host's usage object has no room for them and its streams keep the parts of `meta_info` they
know, so the counters are kept beside the request while its chunks pass, and are added to the one
chunk that carries the usage of the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from llada_sglang.serving.meta_info import COUNTERS

_KEPT = "llada_counters"
_PREFIX = "data: "


def keep_counters(
    original: Callable[..., Any], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[dict[str, Any]]:
    """AROUND `TokenizerManager.generate_request`: remember the counters of a stream's choices."""
    chunks = original(manager, obj, request)
    return _kept(chunks, obj) if getattr(obj, "stream", False) else chunks


async def _kept(chunks: Any, obj: Any) -> AsyncIterator[dict[str, Any]]:
    counters: dict[int, dict[str, Any]] = {}
    setattr(obj, _KEPT, counters)
    async with aclosing(chunks):
        async for chunk in chunks:
            info = chunk["meta_info"]
            if all(key in info for key in COUNTERS):
                counters[chunk.get("index", 0)] = {key: info[key] for key in COUNTERS}
            yield chunk


async def add_counters(
    original: Callable[..., Any], serving: Any, adapted_request: Any, request: Any, raw_request: Any
) -> AsyncIterator[str]:
    """AROUND `_generate_chat_stream` and `_generate_completion_stream`: complete the usage."""
    async with aclosing(original(serving, adapted_request, request, raw_request)) as events:
        async for event in events:
            yield with_counters(event, getattr(adapted_request, _KEPT, {}))


def with_counters(event: str, counters: dict[int, dict[str, Any]]) -> str:
    """Add the counters to a server-sent event that carries the usage of a whole answer.

    event: as the host sends it. counters: of every choice, by its index. denoise_forwards and
    prefill_forwards are summed over the choices, as the host sums their tokens. Any other event is
    returned as it is.
    """
    # The host's JSON has no blanks; the usage of the whole answer comes without a choice.
    if not counters or '"choices":[]' not in event or '"usage":{' not in event:
        return event
    body = json.loads(event.removeprefix(_PREFIX))
    usage = body.get("usage")
    if not isinstance(usage, dict) or body.get("choices") != []:
        return event
    denoise, prefill = (
        sum(choice[key] for choice in counters.values())
        for key in ("denoise_forwards", "prefill_forwards")
    )
    usage["denoise_forwards"], usage["prefill_forwards"] = denoise, prefill
    tokens = usage["completion_tokens"]
    usage["tokens_per_forward"] = round(tokens / denoise, 3) if denoise else 0.0
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"{_PREFIX}{text}\n\n"
