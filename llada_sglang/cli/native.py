"""A conversation over the host's own HTTP interface, with the standard library only.

The OpenAI stream does not carry `meta_info`; `/generate` does, in every chunk. `/tokenize` renders
the conversation with the checkpoint's chat template exactly as a chat completion would.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any

from llada_sglang.cli.answers import Answer, AnswerError, counted_forwards

TIMEOUT_SECONDS = 600
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Message = Mapping[str, Any]


class NativeClient:
    """Talks to one SGLang server. url: `http://host:port`; a trailing `/v1` is dropped."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AnswerError(f"--url must look like http://127.0.0.1:30000, got {url!r}.")
        # A proxy of the environment is meant for other machines.
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(*proxies)

    def model(self) -> str:
        """The name under which the server offers its model. Raises AnswerError."""
        with self._open("/v1/models") as response:
            return str(json.load(response)["data"][0]["id"])

    def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        decoding: Mapping[str, Any],
        on_text: Callable[[str], None],
    ) -> Answer:
        """Generate the next turn of a conversation, handing each new piece of text to `on_text`.

        decoding: `custom_params` of the request, see `DecodeParams`. Leaving this call by an
        exception closes the connection, upon which the server aborts the request.
        Raises AnswerError with the server's reason.
        """
        started = time.monotonic()
        with self._open("/tokenize", {"messages": list(messages)}) as response:
            input_ids = json.load(response)["tokens"]
        sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": max_tokens}
        if decoding:
            sampling["custom_params"] = dict(decoding)
        body = {"input_ids": input_ids, "sampling_params": sampling, "stream": True}
        text, meta = "", dict[str, Any]()
        with self._open("/generate", body) as response:
            for chunk in _events(response):
                if "error" in chunk:
                    raise AnswerError(f"the server stopped the answer: {_reason(chunk)}")
                # Each chunk holds the whole text so far.
                text, previous = chunk["text"], text
                meta = chunk["meta_info"]
                if new := text[len(previous) :]:
                    on_text(new)
        if not meta.get("finish_reason"):
            raise AnswerError("the server closed the connection in the middle of the answer.")
        finish = meta["finish_reason"]
        if finish["type"] == "abort":
            raise AnswerError(f"the server stopped the answer: {finish.get('message', 'aborted')}")
        return Answer(
            text=text,
            tokens=int(meta["completion_tokens"]),
            seconds=time.monotonic() - started,
            forwards=counted_forwards(meta),
            finish=str(finish["type"]),
        )

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> HTTPResponse:
        request = urllib.request.Request(self.url + path)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            response: HTTPResponse = self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise AnswerError(f"{path}: {error.code}: {_http_reason(error)}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise AnswerError(f"no answer from {self.url}: {reason}.") from None
        return response


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON payloads of a server-sent event stream."""
    try:
        for line in response:
            payload = line.decode().removeprefix("data:").strip()
            if line.startswith(b"data:") and payload != "[DONE]":
                yield json.loads(payload)
    except (OSError, HTTPException) as error:
        raise AnswerError(f"the connection to the server broke: {error}.") from None


def _http_reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode("utf-8", errors="replace")
    try:
        return _reason(json.loads(text))
    except (ValueError, TypeError):
        return text.strip() or str(error.reason)


def _reason(body: Mapping[str, Any]) -> str:
    inner = body.get("error", body)
    return str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
