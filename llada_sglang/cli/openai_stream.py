"""Questions to a server through the `openai` client, streaming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llada_sglang.cli.answers import Answer, AnswerError, counted_forwards
from llada_sglang.nano.tasks import tool_call_text

TIMEOUT_SECONDS = 600


class OpenAIClient:
    """Talks to one server. url: `http://host:port`. Raises AnswerError without `openai`."""

    def __init__(self, url: str) -> None:
        try:
            import openai
        except ImportError:
            raise AnswerError(
                'the openai client is not installed. Install it: pip install "openai>=2".'
            ) from None
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,  # a retry would count its waiting as the model's time
            timeout=TIMEOUT_SECONDS,
            # The server is on this machine; a proxy of the environment is not for it.
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._client.close()

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int,
        on_text: Callable[[str], None],
    ) -> Answer:
        """Stream one answer, handing each new piece of text to `on_text`.

        `forwards` is None where the last chunk's `usage` does not hold it: see `count_forwards`.
        Raises AnswerError with the server's reason.
        """
        text, usage, finish = "", dict[str, Any](), ""
        calls: dict[int, dict[str, str]] = {}
        started = time.monotonic()
        ended = started
        try:
            stream = self._client.chat.completions.create(
                **_request(messages, tools, max_tokens),
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in stream:
                if chunk.usage is not None:
                    usage = chunk.usage.model_dump()
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    if choice.delta.content:
                        text += choice.delta.content
                        on_text(choice.delta.content)
                    for part in choice.delta.tool_calls or ():
                        _add_call(calls, part)
                    ended = time.monotonic()
        except self._errors as error:
            raise AnswerError(_reason(error)) from None
        if calls:
            written = _written(calls)
            on_text(written if not text else "\n" + written)
            text = f"{text}\n{written}" if text else written
        return Answer(
            text=text,
            tokens=int(usage.get("completion_tokens", 0)),
            seconds=ended - started,
            forwards=counted_forwards(usage),
            finish=finish,
        )

    def count_forwards(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int,
        tokens: int,
    ) -> int | None:
        """Ask once more without streaming, where the host does give `meta_info`.

        Greedy decoding gives the same answer; None where it has not `tokens` tokens, so that no
        count is taken from another answer, or where the server does not count.
        """
        try:
            reply = self._client.chat.completions.create(
                **_request(messages, tools, max_tokens), extra_body={"return_meta_info": True}
            )
        except self._errors as error:
            raise AnswerError(_reason(error)) from None
        meta = (reply.choices[0].model_extra or {}).get("meta_info") or {}
        return counted_forwards(meta) if meta.get("completion_tokens") == tokens else None


def _request(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], max_tokens: int
) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": "default",
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    if tools:
        request["tools"] = list(tools)
    return request


def _add_call(calls: dict[int, dict[str, str]], part: Any) -> None:
    call = calls.setdefault(part.index, {"name": "", "arguments": ""})
    if part.function is not None:
        call["name"] += part.function.name or ""
        call["arguments"] += part.function.arguments or ""


def _written(calls: Mapping[int, Mapping[str, str]]) -> str:
    """Parsed tool calls as the model wrote them."""
    texts = []
    for _, call in sorted(calls.items()):
        try:
            arguments = json.loads(call["arguments"] or "{}")
        except ValueError:
            arguments = {"unparsed": call["arguments"]}
        texts.append(tool_call_text(call["name"], arguments))
    return "\n".join(texts)


def _reason(error: Exception) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, dict) and body.get("message"):
        return f"the server refused a request: {body['message']}"
    return f"no answer from the server: {error}"
