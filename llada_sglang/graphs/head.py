"""Graphs of the head by number of positions: gather, multiply with the vocabulary, reduce.

Masked positions are some of a step's, and logits the largest tensor there is, so they get sizes of
their own, bounded by memory; the body's graphs know nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics
from llada_sglang.graphs.plan import padded_size, turns

if TYPE_CHECKING:
    from llada_sglang.graphs.recorder import Recorder

Candidates = tuple[Tensor, Tensor]


class HeadGraphs:
    """Candidate and confidence at any positions of the hidden states that a body graph left.

    hidden: [tokens, hidden], the buffer of the body's graphs. sizes: position counts to capture,
    ascending. statistics: [positions, hidden] -> those of this rank's shard of the vocabulary.
    combine: those of this rank -> (candidate int64 [positions], confidence float32 [positions]) of
    all; recorded with the rest where `combine_in_graph`, else run after each replay.
    """

    def __init__(
        self,
        hidden: Tensor,
        *,
        sizes: Sequence[int],
        statistics: Callable[[Tensor], ShardStatistics],
        combine: Callable[[ShardStatistics], Candidates],
        combine_in_graph: bool,
        recorder: Recorder,
    ) -> None:
        self.sizes = list(sizes)
        self._hidden = hidden
        self._statistics = statistics
        self._combine = combine
        self._combine_in_graph = combine_in_graph
        self._recorder = recorder
        # Whatever they held before, indices are rows of the buffer: those behind the ones in use
        # need no care, as nothing reads their results.
        self._where = torch.zeros(sizes[-1], dtype=torch.int64, device=hidden.device)
        self._results: dict[int, tuple[Tensor, ...]] = {}

    def capture(self) -> None:
        """Record all sizes, the largest first, so that the smaller ones find its memory."""
        for size in reversed(self.sizes):
            self._capture(size)

    def covers(self, hidden: Tensor) -> bool:
        """Whether hidden states lie in the buffer that the graphs read."""
        here = hidden.untyped_storage().data_ptr() == self._hidden.untyped_storage().data_ptr()
        return here and hidden.shape[1] == self._hidden.shape[1]

    def run(self, hidden: Tensor, where: Tensor) -> Candidates:
        """Candidate and confidence at the rows `where`, int64 [positions], of `hidden`.

        hidden: rows of the buffer, see `covers`. The result is valid until the next call. No host
        sync; more positions than the largest size take several replays.
        """
        first = hidden.storage_offset() // hidden.shape[1]
        found, begin = [], 0
        parts = turns(where.numel(), self.sizes)
        for part in parts:
            size = padded_size(part, self.sizes)
            assert size is not None
            torch.add(where[begin : begin + part], int(first), out=self._where[:part])
            self._recorder.replay(("head", size))
            found.append(self._finish(size, part, keep=len(parts) > 1))
            begin += part
        if len(found) == 1:
            return found[0]
        candidate, confidence = (torch.cat(field) for field in zip(*found, strict=True))
        return candidate, confidence

    def _capture(self, size: int) -> None:
        where = self._where[:size]

        def run() -> None:
            made: tuple[Tensor, ...] = self._statistics(self._hidden.index_select(0, where))
            if self._combine_in_graph:
                made = self._combine(ShardStatistics(*made))
            if size not in self._results:
                self._results[size] = tuple(torch.empty_like(field) for field in made)
            for into, field in zip(self._results[size], made, strict=True):
                into.copy_(field)

        self._recorder.record(("head", size), run)

    def _finish(self, size: int, part: int, *, keep: bool) -> Candidates:
        results = tuple(field[:part] for field in self._results[size])
        if not self._combine_in_graph:
            return self._combine(ShardStatistics(*results))
        candidate, confidence = results
        # The next replay of this size overwrites its results.
        return (candidate.clone(), confidence.clone()) if keep else (candidate, confidence)
