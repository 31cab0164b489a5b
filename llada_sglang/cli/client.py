"""Questions to a running server through the `openai` client, streaming."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llada_sglang.cli.answers import Answer, AnswerError, UnreachableError
from llada_sglang.nano.tasks import tool_call_text

TIMEOUT_SECONDS = 600
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Message = Mapping[str, Any]


class Client:
    """Talks to one SGLang server.

    url: `http://host:port`, with or without `/v1`. Raises AnswerError for another form of it, and
    where the `openai` package is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import httpx
            import openai
        except ImportError:
            raise AnswerError(
                'the openai client is not installed. Install it: pip install "openai>=2".'
            ) from None
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AnswerError(f"--url must look like http://127.0.0.1:30000, got {url!r}.")
        # While an answer streams, errors of the connection come as httpx raises them.
        self._errors = (openai.OpenAIError, httpx.HTTPError)
        self._client = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key="none",
            max_retries=0,  # a retry would count its waiting as the model's time
            timeout=TIMEOUT_SECONDS,
            # A proxy of the environment is meant for other machines.
            http_client=openai.DefaultHttpxClient(trust_env=parts.hostname not in _LOOPBACK),
        )

    def close(self) -> None:
        """Close the connections, upon which the server aborts what it still answers on them."""
        self._client.close()

    def model(self) -> str:
        """The name under which the server offers its model. Raises AnswerError."""
        try:
            return str(self._client.models.list().data[0].id)
        except self._errors as error:
            raise self._explained(error) from None

    def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        on_text: Callable[[str], None],
        tools: Sequence[Mapping[str, Any]] = (),
        decoding: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Stream the next turn of a conversation, handing each new piece of text to `on_text`.

        decoding: `custom_params` of the request, see `DecodeParams`. The number of forwards comes
        from the last chunk's usage, to which our plugin adds it.
        Raises AnswerError with the server's reason.
        """
        request: dict[str, Any] = {"model": "default", "messages": list(messages)}
        if tools:
            request["tools"] = list(tools)
        if decoding:
            request["extra_body"] = {"custom_params": dict(decoding)}
        text, finish, usage = "", "", dict[str, Any]()
        calls: dict[int, dict[str, str]] = {}
        started = ended = time.monotonic()
        try:
            with self._client.chat.completions.create(
                **request,
                temperature=0,
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
            ) as chunks:
                for chunk in chunks:
                    if chunk.usage is not None:
                        usage = chunk.usage.model_dump()
                    for choice in chunk.choices:
                        ended = time.monotonic()
                        finish = choice.finish_reason or finish
                        if choice.delta.content:
                            text += choice.delta.content
                            on_text(choice.delta.content)
                        for part in choice.delta.tool_calls or ():
                            _add_call(calls, part)
        except self._errors as error:
            raise self._explained(error) from None
        if not finish or finish == "abort":
            raise UnreachableError("the server broke the answer off.")
        if calls:
            written = ("\n" if text else "") + _written(calls)
            on_text(written)
            text += written
        forwards = usage.get("denoise_forwards")
        return Answer(
            text=text,
            tokens=int(usage.get("completion_tokens", 0)),
            seconds=ended - started,
            forwards=forwards if isinstance(forwards, int) and forwards > 0 else None,
            finish=finish,
        )

    def _explained(self, error: Exception) -> AnswerError:
        body = getattr(error, "body", None)
        if isinstance(body, dict) and body.get("message"):
            return AnswerError(f"the server refused the request: {body['message']}")
        status = getattr(error, "status_code", None)
        if status is not None:
            return AnswerError(f"the server refused the request: status {status}.")
        reason = error.__cause__ or error  # openai's own text is only "Connection error."
        return UnreachableError(f"no answer from {self.url}: {str(reason).rstrip('.')}.")


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
