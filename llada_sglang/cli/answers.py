"""An answer with what it cost, and the line that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llada_sglang.errors import LLaDAError


class AnswerError(LLaDAError):
    """The server refused a request, broke an answer off, or cannot be reached."""


class UnreachableError(AnswerError):
    """No connection to the server, or one that broke: it may be dying."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    text: tool calls the server has parsed stand in it as the model writes them. tokens: output
    tokens, the end token included. seconds: from sending the request to the last piece of text.
    forwards: forwards that carried a denoise row of it; None where the server does not say.
    finish: the server's reason, `stop`, `length` or `tool_calls`.
    """

    text: str
    tokens: int
    seconds: float
    forwards: int | None
    finish: str

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_forward(self) -> float | None:
        return self.tokens / self.forwards if self.forwards else None


def figures(answer: Answer) -> str:
    """Tokens, seconds, tokens per second and tokens per forward in one line."""
    parts = [
        f"{answer.tokens} tokens",
        f"{answer.seconds:.2f} s",
        f"{answer.tokens_per_second:.1f} tokens/s",
    ]
    if answer.tokens_per_forward is not None:
        parts.append(f"{answer.tokens_per_forward:.1f} tokens/forward")
    return "  ".join(parts)


def total(answers: Sequence[Answer]) -> Answer:
    """All answers as one: their texts joined, their costs added.

    Its forwards are None where those of any answer are.
    """
    counts = [answer.forwards for answer in answers]
    return Answer(
        text="\n".join(answer.text for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
        forwards=None if None in counts else sum(count or 0 for count in counts),
        finish="",
    )
