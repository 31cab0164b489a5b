"""A recorder that runs what was recorded again: all of a graph but the device's part of it."""

from __future__ import annotations

from collections.abc import Callable

from llada_sglang.graphs.recorder import Key


class EagerRecorder:
    """Keeps functions by key, and the order in which they were recorded and replayed."""

    def __init__(self) -> None:
        self.recorded: list[Key] = []
        self.replayed: list[Key] = []
        self._runs: dict[Key, Callable[[], None]] = {}

    def record(
        self, key: Key, run: Callable[[], None], after_warmup: Callable[[], None] | None = None
    ) -> None:
        assert key not in self._runs, f"{key} recorded twice"
        run()
        if after_warmup is not None:
            after_warmup()
        self._runs[key] = run
        self.recorded.append(key)

    def replay(self, key: Key) -> None:
        self.replayed.append(key)
        self._runs[key]()
