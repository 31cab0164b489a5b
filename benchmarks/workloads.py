"""What is asked of the servers: always other prompts, so that no answer comes from the cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.client import Task
from llada_sglang.nano import chat, tasks

FREE_IDS = 150_000
"""Ids below this one are ordinary tokens at LLaDA2's vocabulary."""

SHORT_PROMPT = 64


class RandomTokens:
    """Prompts of uniform random ids, answers of a fixed length."""

    def __init__(self, model: Path) -> None:
        del model

    def prompt(self, seed: int, length: int) -> tuple[int, ...]:
        """`length` token ids, the same for the same seed."""
        rng = random.Random(f"{seed}/{length}")
        return tuple(rng.randrange(FREE_IDS) for _ in range(length))

    def task(self, seed: int, length: int, tokens: int) -> Task:
        """One request for `tokens` output tokens."""
        return Task(self.prompt(seed, length), tokens)

    def short(self, seed: int, concurrency: int) -> list[Task]:
        """The requests of one measurement at this concurrency."""
        tokens = 64 if concurrency <= 8 else 32
        return [self.task(seed * 1000 + i, SHORT_PROMPT, tokens) for i in range(concurrency)]

    def words(self) -> str:
        return (
            f"Prompts of {SHORT_PROMPT} random tokens; EOS ignored; 64 output tokens each up to 8 "
            "concurrent requests, 32 at 32; all start at once."
        )


class ChatTasks:
    """The held-out questions that nano was trained for, in its chat form."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def prompt(self, seed: int, length: int) -> tuple[int, ...]:
        """The last `length` tokens of a long conversation, which ends with a question."""
        ids: list[int] = []
        part = 0
        while len(ids) < length:
            ids = self._conversation(seed * 100 + part) + ids
            part += 1
        return tuple(ids[-length:])

    def short(self, seed: int, concurrency: int) -> list[Task]:
        """The requests of one measurement at this concurrency: a mixture of all families."""
        count = max(8, 2 * concurrency)
        rng = random.Random(seed)
        return [
            Task(tuple(self._encode(rng)), max_new_tokens=128, ignore_eos=False)
            for _ in range(count)
        ]

    def words(self) -> str:
        return (
            "Held-out questions of all task families in chat form, answered to their EOS; twice as "
            "many requests as run at once, at least 8. Long prompts are conversations."
        )

    def _encode(self, rng: random.Random) -> list[int]:
        example = tasks.draw(rng, rng.choice(tasks.FAMILIES), "eval")
        return self._tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids

    def _conversation(self, seed: int) -> list[int]:
        rng = random.Random(seed)
        return [token for _ in range(8) for token in self._encode(rng)]


WORKLOADS: dict[str, Callable[[Path], RandomTokens | ChatTasks]] = {
    "random": RandomTokens,
    "tasks": ChatTasks,
}
