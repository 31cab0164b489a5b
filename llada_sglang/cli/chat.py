"""`llada-sglang chat`: a conversation in the terminal, streaming, with its whole history."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from llada_sglang.cli import terminal
from llada_sglang.cli.answers import Answer, AnswerError, UnreachableError, figures
from llada_sglang.cli.client import Client
from llada_sglang.cli.launch import prepare
from llada_sglang.cli.server import DYING_SECONDS, Server, serve
from llada_sglang.decoding.parameters import Number, check

PROMPT = "> "


def run(*, model: str | None, url: str | None, max_tokens: int, threshold: float | None) -> int:
    """Talk to `url`, or to a server of our own on `model`, until the user leaves. Returns 0."""
    decoding: dict[str, Any] = {}
    if threshold is not None:
        check("threshold", Number(0.95, high=1.0, open_low=True), threshold)
        decoding["threshold"] = threshold
    try:
        with _client(model, url) as (client, server):
            talk(client, server, max_tokens=max_tokens, decoding=decoding)
    except KeyboardInterrupt:
        print()  # Ctrl-C is one of the ways to leave
    return 0


def talk(
    client: Client, server: Server | None, *, max_tokens: int, decoding: Mapping[str, Any]
) -> None:
    """Read turns and answer them until /quit or the end of the input.

    server: ours, whose death ends the conversation; None where the server is somebody else's.
    """
    messages: list[dict[str, str]] = []
    while (text := _read()) is not None:
        if text == "/quit":
            return
        if text == "/reset":
            messages = []
            print(terminal.dim("history forgotten", sys.stdout), flush=True)
            continue
        if text.startswith("/"):
            print("commands: /reset, /quit", flush=True)
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        try:
            answer = _answer(client, messages, max_tokens, decoding)
        except AnswerError as error:
            if server is not None and isinstance(error, UnreachableError):
                with terminal.Progress("waiting for the server to end"):
                    server.require_alive(within=DYING_SECONDS)
            # A refused turn, e.g. one beyond the context, leaves the conversation as it was.
            messages.pop()
            print(f"llada-sglang: {error}", file=sys.stderr, flush=True)
            continue
        messages.append({"role": "assistant", "content": answer.text})
        cut = "  cut at --max-tokens" if answer.finish == "length" else ""
        print(terminal.dim(figures(answer) + cut, sys.stdout), flush=True)


@contextlib.contextmanager
def _client(model: str | None, url: str | None) -> Iterator[tuple[Client, Server | None]]:
    # Closing a client aborts its answer, so that a server of ours need not finish it to stop.
    if url is not None:
        with contextlib.closing(Client(url)) as client:
            _greet(client)
            yield client, None
        return
    family = prepare(model)
    with serve(family.path) as server, contextlib.closing(Client(server.url)) as client:
        _greet(client)
        yield client, server


def _greet(client: Client) -> None:
    hint = "/reset forgets the history, /quit leaves"
    print(f"{client.model()} on {client.url}; {hint}", flush=True)


def _read() -> str | None:
    """The next turn without its margins, or None at the end of the input."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() a history and line editing
        try:
            return input(PROMPT).strip()
        except EOFError:
            print()
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(
    client: Client,
    messages: list[dict[str, str]],
    max_tokens: int,
    decoding: Mapping[str, Any],
) -> Answer:
    writer = terminal.IndentedWriter(sys.stdout)
    with terminal.Progress("waiting for the first block") as progress:

        def show(text: str) -> None:
            progress.stop()
            writer.write(text)

        try:
            return client.ask(messages, max_tokens=max_tokens, decoding=decoding, on_text=show)
        finally:
            progress.stop()
            writer.end()
