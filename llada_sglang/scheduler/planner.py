"""Turns running requests into the block rows of one forward. Pure host code, no engine.

A request is described by two positions, both multiples of the block size B: `committed`, up to
where its KV came from final tokens, and `front`, where its blocks in flight start. Blocks in
between are final but not persisted: a prompt being prefilled, or blocks that resolved in the
step before, whose commit rides with the next block's first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

REACH = 2.0
"""How many times as many positions as any other step of late a step may resolve, as far as the
planner is concerned; see `may_resolve`."""


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
    denoise: how many blocks from the request's front on are rows too.
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
        committed, rows = request.committed, request.denoise_rows
        pending = (request.front - committed) // block
        if rows and (pending <= 1 or request.prefilled):
            running.append(RowSpan(index, committed, pending, rows))
        elif pending or rows:
            prompts.append((index, request))
    if not prompts:
        return running
    left = row_budget - sum(span.rows for span in running)
    if running:
        left = min(left, prefill_budget)
    return running + list(_prefill(prompts, block, left))


def may_resolve(masks: int, *, least: int, pace: int, reach: float = REACH) -> bool:
    """Whether a step under way may resolve a block, so that the next one should ride along.

    While a step runs, the one behind it is planned from a canvas one step old. If the block
    resolves in between, its row of that next forward persists it; the block behind it loses a
    step unless it has a row there too. Such a row is wasted if the block is not resolved: it costs
    a forward its share of the arithmetic, the head at all of its positions, and, in a small batch
    of a mixture of experts, experts that no other row reads. So it rides only with a block that
    may be done: whose masks, as far as known, are at most what the step has to unmask, or `reach`
    times what the best of the steps before it did. 0 takes one along only where the schedule
    resolves the block, infinity always. Either way the text is the same.

    masks: masked positions before the step; least: how many it has to unmask; pace: the most that
    a known step of this block or the one before it did.
    """
    # Not 0 times infinity, which is nothing to compare with.
    return masks <= max(least, reach * max(pace, 1))


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
