"""What a decoding parameter may be. Imports neither torch nor sglang."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from llada_sglang.errors import DecodeParamError


class Parameter(Protocol):
    """A named value of a request: its default, and what else it may be."""

    @property
    def default(self) -> Any: ...

    def refusal(self, value: object) -> str | None:
        """The allowed values in words if `value` is none of them, else None."""


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in [low, high], or (low, high] where `open_low`.

    default None stands for a value that follows from others.
    """

    default: float | None
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False

    def refusal(self, value: object) -> str | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and math.isfinite(value):  # type: ignore[arg-type]
            above = value > self.low if self.open_low else value >= self.low  # type: ignore[operator]
            if above and value <= self.high:  # type: ignore[operator]
                return None
        left = "(" if self.open_low else "["
        right = f"{self.high:g}]" if math.isfinite(self.high) else "inf)"
        return f"a number in {left}{self.low:g}, {right}"


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of at least `low`, and at most `high` where there is one. also: words besides."""

    default: int
    low: int = 0
    high: int | None = None
    also: tuple[str, ...] = ()

    def refusal(self, value: object) -> str | None:
        if value in self.also and isinstance(value, str):
            return None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and self.low <= value <= (math.inf if self.high is None else self.high):  # type: ignore[operator]
            return None
        words = "".join(f' or "{word}"' for word in self.also)
        if self.high is None:
            return f"an integer of at least {self.low}{words}"
        return f"an integer in [{self.low}, {self.high}]{words}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    default: bool

    def refusal(self, value: object) -> str | None:
        return None if isinstance(value, bool) else "true or false"


@dataclass(frozen=True, slots=True)
class Name:
    """One of some words."""

    default: str
    names: tuple[str, ...]

    def refusal(self, value: object) -> str | None:
        return None if value in self.names else f"one of {', '.join(self.names)}"


def check(name: str, parameter: Parameter, value: object) -> None:
    """Raise DecodeParamError naming key, value, range and default where `value` is not allowed."""
    if (allowed := parameter.refusal(value)) is not None:
        raise DecodeParamError(
            f"{name} must be {allowed}, got {value!r}; the default is {parameter.default!r}."
        )
