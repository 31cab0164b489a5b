"""Turns running requests into the block rows of one forward. Pure host code, no engine.

A request is described by two positions, both multiples of the block size B: `committed`, up to
where its KV came from final tokens, and `front`, where its blocks in flight start. Blocks in
between are final but not persisted: a prompt being prefilled, or blocks that resolved in the
step before, whose commit rides with the next block's first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Plannable(Protocol):
    """What the planner reads of a request."""

    @property
    def committed(self) -> int: ...

    @property
    def front(self) -> int: ...

    @property
    def prefilled(self) -> bool: ...

    @property
    def denoise_rows(self) -> int: ...


class RowSpan(NamedTuple):
    """The rows of one request in one forward.

    request: place of the request in the planner's input. start: position of the first final
    block to persist. final_blocks: how many consecutive final blocks (commit or prefill rows).
    denoise: whether the active block at the request's front is a row too.
    """

    request: int
    start: int
    final_blocks: int
    denoise: int

    @property
    def rows(self) -> int:
        return self.final_blocks + self.denoise


def plan_rows(
    requests: Sequence[Plannable], *, block: int, row_budget: int, prefill_budget: int
) -> list[RowSpan]:
    """Choose the rows of one forward.

    Requests that are denoising (prefilled, or all but one block of them) always run: a long
    prompt can slow them, never stop them. Prompts share what is left of `row_budget`, in the
    order given, and at most `prefill_budget` rows of it while something is denoising. A
    prompt whose last block fits joins with its first denoise row in the same forward, since
    rows read what earlier rows of the forward wrote.
    """
    running: list[RowSpan] = []
    prompts: list[tuple[int, Plannable]] = []
    for index, request in enumerate(requests):
        pending = (request.front - request.committed) // block
        if request.denoise_rows and (pending <= 1 or request.prefilled):
            running.append(RowSpan(index, request.committed, pending, request.denoise_rows))
        elif pending or request.denoise_rows:
            prompts.append((index, request))
    left = row_budget - sum(span.rows for span in running)
    if running:
        left = min(left, prefill_budget)
    return running + list(_prefill(prompts, block, left))


def _prefill(
    prompts: Iterable[tuple[int, Plannable]], block: int, budget: int
) -> Iterable[RowSpan]:
    for index, request in prompts:
        if budget <= 0:
            return
        pending = (request.front - request.committed) // block
        blocks = min(pending, budget)
        budget -= blocks
        rows = request.denoise_rows
        denoise = rows if blocks == pending and budget >= rows else 0
        budget -= denoise
        yield RowSpan(index, request.committed, blocks, denoise)
