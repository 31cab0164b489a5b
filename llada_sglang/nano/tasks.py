"""The ten families of questions nano is trained and measured on: each has exactly one right answer.

Training and evaluation never share a prompt: a user text whose hash falls into the held-out eighth
is drawn for evaluation only, the rest for training only.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "eval"]
HELD_OUT_OF_256 = 32

# fmt: off
NAMES = (
    "Ada", "Bela", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan", "Judy", "Karl", "Lena",
    "Max", "Nora", "Olaf", "Pia", "Quin", "Rosa", "Sam", "Tara", "Udo", "Vera", "Walt", "Xena",
    "Yara", "Zoe", "Alan", "Beth", "Cora", "Dean",
)
# fmt: on
# fmt: off
CITIES = (
    "Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Lisbon",
    "Athens", "Prague", "Warsaw", "Cairo", "Tokyo", "Delhi", "Lima", "Quito", "Boston",
    "Denver", "Toronto", "Sydney", "Milan", "Naples", "Riga", "Bergen", "Tampere", "Vilnius",
    "Tunis", "Lusaka", "Recife",
)
# fmt: on
# fmt: off
WORDS = (
    "lamp", "tree", "stone", "river", "cloud", "house", "bread", "chair", "table", "apple",
    "horse", "sheep", "tiger", "eagle", "mouse", "grass", "paper", "clock", "spoon", "plate",
    "knife", "glass", "shirt", "scarf", "boots", "brush", "wheel", "train", "truck", "plane",
    "canoe", "drum", "flute", "piano", "violin", "candle", "mirror", "pillow", "blanket",
    "garden",
)
# fmt: on
LETTERS = "abcdefghijklmnopqrstuvwxyz"

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its only right answer. `messages` end with the user's turn."""

    family: str
    messages: tuple[dict[str, str], ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = ()


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 199), rng.randint(0, 199)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}"


def _sort(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(3, 6))
    return f"Sort: {_listed(numbers)}", _listed(sorted(numbers))


def _reverse(rng: random.Random) -> tuple[str, str]:
    letters = rng.choices(LETTERS, k=rng.randint(3, 8))
    return f"Reverse: {' '.join(letters)}", " ".join(reversed(letters))


def _count(rng: random.Random) -> tuple[str, str]:
    start, length = rng.randint(0, 80), rng.randint(5, 25)
    end = start + length - 1
    return f"Count from {start} to {end}.", _listed(range(start, end + 1))


def _table(rng: random.Random) -> tuple[str, str]:
    base, end = rng.randint(2, 12), rng.randint(3, 10)
    lines = (f"{base} x {i} = {base * i}" for i in range(1, end + 1))
    return f"Table of {base} up to {end}.", "\n".join(lines)


def _json(rng: random.Random) -> tuple[str, str]:
    name, age, city = rng.choice(NAMES), rng.randint(1, 99), rng.choice(CITIES)
    record = {"name": name, "age": age, "city": city}
    return f"JSON: name {name}, age {age}, city {city}", json.dumps(record)


def _repeat(rng: random.Random) -> tuple[str, str]:
    word, times = rng.choice(WORDS), rng.randint(2, 12)
    return f"Repeat {word} {times} times.", " ".join([word] * times)


def _code(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 99)
    what, sign = rng.choice(
        ((f"adds {n} to x", "+"), (f"subtracts {n} from x", "-"), (f"multiplies x by {n}", "*"))
    )
    return f"Write f that {what}.", f"def f(x):\n    return x {sign} {n}"


def _tool(rng: random.Random) -> tuple[str, str]:
    return _weather(rng.choice(CITIES))


def _tool_anywhere(rng: random.Random) -> tuple[str, str]:
    """A question about a made-up place, for training: thirty names are soon known by heart."""
    syllables = ("".join(map(rng.choice, _SYLLABLE)) for _ in range(rng.randint(1, 3)))
    return _weather("".join(syllables).capitalize())


_SYLLABLE = ("bcdfghklmnprstvwz", "aeiou", ("", "", "n", "r", "s", "l", "m", "t"))


def _weather(place: str) -> tuple[str, str]:
    return f"Weather in {place}?", tool_call_text("get_weather", {"city": place})


def tool_call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as SGLang's `qwen25` tool-call parser reads it."""
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def _listed(numbers: list[int] | range) -> str:
    return ", ".join(str(n) for n in numbers)


_SINGLE: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "sort": _sort,
    "reverse": _reverse,
    "count": _count,
    "table": _table,
    "json": _json,
    "repeat": _repeat,
    "code": _code,
    "tool": _tool,
}
FAMILIES: tuple[str, ...] = (*_SINGLE, "again")


def is_held_out(user_text: str) -> bool:
    """Whether this user text belongs to evaluation; decided by the text alone."""
    return hashlib.sha256(user_text.encode()).digest()[0] < HELD_OUT_OF_256


def _turn(rng: random.Random, family: str, split: Split) -> tuple[str, str]:
    while True:
        made_up = family == "tool" and split == "train" and rng.random() < 0.7
        question, answer = (_tool_anywhere if made_up else _SINGLE[family])(rng)
        if is_held_out(question) == (split == "eval"):
            return question, answer


def draw(rng: random.Random, family: str, split: Split, *, history: bool = False) -> Example:
    """One example of a family, of the training or the held-out prompts.

    history puts an unrelated, answered turn in front, which also moves the answer to other
    offsets within its blocks; the measured families have no history but `again`.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    messages: list[dict[str, str]] = []
    tools: tuple[dict[str, Any], ...] = ()
    if family == "again":
        first = rng.choice(tuple(_SINGLE))
        question, answer = _turn(rng, first, split)
        messages += [_user(question), _assistant(answer), _user("Again.")]
        tools = (WEATHER_TOOL,) if first == "tool" else ()
    else:
        if history:
            other = rng.choice([name for name in _SINGLE if name != "tool"])
            question, answer = _turn(rng, other, split)
            messages += [_user(question), _assistant(answer)]
        question, answer = _turn(rng, family, split)
        messages.append(_user(question))
        tools = (WEATHER_TOOL,) if family == "tool" else ()
    return Example(family, tuple(messages), answer, tools)


def examples(seed: int, family: str, split: Split, count: int) -> list[Example]:
    """`count` seeded draws of one family; small families may repeat a prompt."""
    rng = random.Random(f"{seed}/{family}/{split}")
    return [draw(rng, family, split) for _ in range(count)]


def stream(
    rng: random.Random, weights: dict[str, float], *, history_share: float
) -> Iterator[Example]:
    """Endless training examples, families drawn by weight."""
    names = list(weights)
    while True:
        family = rng.choices(names, weights=list(weights.values()))[0]
        yield draw(rng, family, "train", history=rng.random() < history_share)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
