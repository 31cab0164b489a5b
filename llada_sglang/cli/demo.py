"""`llada-sglang demo`: a real server, real questions, its speed, and nothing left running."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llada_sglang import __version__
from llada_sglang.cli import terminal
from llada_sglang.cli.answers import Answer, UnreachableError, figures, total
from llada_sglang.cli.client import Client
from llada_sglang.cli.launch import prepare
from llada_sglang.cli.server import DYING_SECONDS, serve
from llada_sglang.compat.check import installed_version
from llada_sglang.nano import tasks

MAX_TOKENS = 256
SEED = 2024
AGAIN = "Again."

_LABEL_WIDTH = 9
_INDENT = " " * _LABEL_WIDTH


@dataclass(frozen=True, slots=True)
class Question:
    """A user turn. right: the only right answer, None where it is whatever came before.

    again: whether it continues the conversation of the question before it.
    """

    family: str
    text: str
    right: str | None
    tools: tuple[Mapping[str, Any], ...] = ()
    again: bool = False


@dataclass(slots=True)
class Report:
    """What the demo has seen. right: None where the answers are not judged."""

    right: int | None
    answers: list[Answer] = field(default_factory=list)

    def summary(self) -> str:
        """The last line of the demo."""
        count = f"{len(self.answers)} answers"
        if self.right is not None:
            count += f", {self.right} right"
        return f"{count}: {figures(total(self.answers))}"


def questions() -> list[Question]:
    """One question per family, of those that nano's training never saw; `again` is second to last.

    Every call gives the same ones.
    """
    asked = []
    for family in tasks.FAMILIES:
        if family == "again":
            continue
        example = tasks.examples(SEED, family, "eval", 1)[0]
        text = example.messages[-1]["content"]
        asked.append(Question(family, text, example.answer, example.tools))
    asked.insert(-1, Question("again", AGAIN, None, again=True))
    return asked


def run(*, model: str | None, port: int | None) -> int:
    """Serve `model` (None: nano), ask, report, stop. Returns the exit status, 0."""
    family = prepare(model)
    print(f"llada-sglang {__version__} on SGLang {installed_version()}")
    print(f"model   {family.path}", flush=True)
    started = time.monotonic()
    with serve(family.path, port=port) as server:
        seconds = time.monotonic() - started
        print(f"server  {server.url}, ready after {seconds:.1f} s", flush=True)
        # Closing aborts what still runs, so that the server need not finish it before it stops.
        with contextlib.closing(Client(server.url)) as client:
            try:
                report = _ask_all(client, judged=model is None)
            except UnreachableError:
                with terminal.Progress("waiting for the server to end"):
                    server.require_alive(within=DYING_SECONDS)  # its log tells more
                raise
        print(f"\n{report.summary()}", flush=True)
    print("server  stopped")
    return 0


def _ask_all(client: Client, *, judged: bool) -> Report:
    """Put every question. judged: whether the model was made to give exactly these answers."""
    report = Report(right=0 if judged else None)
    messages: list[dict[str, str]] = []
    for question in questions():
        if not question.again:
            messages = []
        messages.append({"role": "user", "content": question.text})
        label = question.family.ljust(_LABEL_WIDTH)
        print(f"\n{terminal.bold(label, sys.stdout)}{question.text}", flush=True)
        answer = _stream(client, messages, question.tools)
        line = figures(answer)
        if report.right is not None:
            expected = question.right if question.right is not None else report.answers[-1].text
            good = answer.text == expected
            report.right += good
            line += "  right" if good else f"  wrong, should be {expected!r}"
        print(terminal.dim(_INDENT + line, sys.stdout), flush=True)
        messages.append({"role": "assistant", "content": answer.text})
        report.answers.append(answer)
    return report


def _stream(
    client: Client,
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]],
) -> Answer:
    writer = terminal.IndentedWriter(sys.stdout, _INDENT)
    with terminal.Progress("waiting for the first block") as progress:

        def show(text: str) -> None:
            progress.stop()
            writer.write(text)

        try:
            return client.ask(messages, tools=tools, max_tokens=MAX_TOKENS, on_text=show)
        finally:
            progress.stop()
            writer.end()
