"""What the scheduler knows of a diffusion request, on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llada_sglang.config import DecodeParams
from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.options import TokenOptions

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from torch import Tensor

MASKED = -1
"""Stands for a masked position in canvases on the host."""


@dataclass(frozen=True, slots=True)
class Provisional:
    """The blocks in flight after a step, for streams that show them.

    start: absolute position of their first token. step: steps the first one has taken. canvas:
    int64 [blocks * block], MASKED at masked positions.
    """

    start: int
    step: int
    canvas: np.ndarray


@dataclass(slots=True)
class RequestRecord:
    """What stays with a request from admission check to its last chunk, over retractions.

    stop_ids: every token id that ends the request. schedule: least positions to unmask at each
    forced step of a block. Both are set at admission, when the budget is known. policy_reads:
    whether the policy needs the logits themselves. numbers: its parameters as numbers. lookahead:
    most blocks in flight, or `auto`.
    """

    params: DecodeParams
    options: TokenOptions = field(default_factory=TokenOptions)
    policy_reads: bool = False
    numbers: dict[str, float] = field(default_factory=dict)
    lookahead: int | str = 1
    stop_ids: tuple[int, ...] = ()
    schedule: tuple[int, ...] = ()
    prefill_forwards: int = 0
    denoise_forwards: int = 0
    # The blocks in flight at retraction, front first; each with its policy's state.
    saved: list[ActiveBlock] = field(default_factory=list)
    provisional: Provisional | None = None

    def __post_init__(self) -> None:
        # A grammar's state is known behind one frontier only.
        if not self.options.constrained:
            self.lookahead = self.params.values.get("lookahead", 1)

    @property
    def general(self) -> bool:
        """Whether this request's rows need their logits, and not only what leads them."""
        return self.options.general or self.policy_reads


@dataclass(slots=True, eq=False)
class ActiveBlock:
    """A block in flight.

    start: absolute position of its first token. canvas: int64 [block], a mirror of the device's
    with MASKED at masked positions. step: steps taken; forced: those in which something had to be
    unmasked. settled: no further step is needed, though an earlier block may have to come first.
    state_row: where the policy's tensors of this block are; saved_state: the tensors themselves
    while the request is retracted.
    """

    start: int
    canvas: np.ndarray
    step: int = 0
    forced: int = 0
    settled: bool = False
    details: BlockDetails | None = None
    state_row: int = -1
    saved_state: dict[str, Tensor] | None = None

    @property
    def resolved(self) -> float:
        """The share of positions that are not masked."""
        return float((self.canvas != MASKED).mean())


@dataclass(slots=True, eq=False)
class BlockState:
    """A running request: where its blocks stand and which slots it holds.

    slot: row of the canvas table. committed: an absolute position, a multiple of the block size,
    below which K/V is persisted. text_start, text_end: the first generated position and the first
    one past the budget. flight: the blocks in flight, consecutive, never empty; tokens are final
    in front of the first. prompt_front: `front` at admission; final blocks below it are prefill
    rows, those above it commit rows. order: admission order, for retraction. published: whether
    the prompt's blocks were shown to the tree.
    """

    req: Req
    record: RequestRecord
    slot: int
    order: int
    committed: int
    text_start: int
    text_end: int
    prompt_front: int
    flight: list[ActiveBlock]
    published: bool = False
    denoises: bool = field(init=False)

    def __post_init__(self) -> None:
        # max_new_tokens = 0 only warms the prefix cache.
        self.denoises = self.text_end > self.text_start

    @property
    def front(self) -> int:
        """Where the first block in flight begins: an absolute position."""
        return self.flight[0].start

    @property
    def prefilled(self) -> bool:
        """Whether what waits for its commit, if anything, are generated blocks."""
        return self.committed >= self.prompt_front

    @property
    def denoise_rows(self) -> int:
        """Blocks in flight that have to be rows of the next forward, the first ones.

        Those behind the last unsettled one can wait: nobody reads their K/V.
        """
        if not self.denoises:
            return 0
        rows = len(self.flight)
        while rows > 1 and self.flight[rows - 1].settled:
            rows -= 1
        return rows

    def least(self, one: ActiveBlock) -> int:
        """How many positions the next step of a block in flight has to unmask: 0 if not forced."""
        if len(self.flight) > 1 and not self.forces(one):
            return 0
        schedule = self.record.schedule
        return schedule[min(one.forced, len(schedule) - 1)]

    def forces(self, one: ActiveBlock) -> bool:
        """Whether the next step of a block in flight has to unmask something."""
        place = self.flight.index(one)
        if place == 0:
            return True
        semi = self.record.params.values.get("lookahead_semi", 1.0)
        return self.flight[place - 1].resolved >= semi


class ActiveRow(NamedTuple):
    """A denoise row of a forward."""

    state: BlockState
    block: ActiveBlock
