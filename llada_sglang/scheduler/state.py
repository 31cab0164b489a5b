"""What the scheduler knows of a diffusion request, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llada_sglang.config import DecodeParams
from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.options import TokenOptions
from llada_sglang.scheduler.planner import may_resolve

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from torch import Tensor

    from llada_sglang.decoding.policy import Policy

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
    general: whether its rows need their logits, and not only what leads them. special: whether
    more is to be done for a row than to unmask by the leading tokens. predictable: whether the
    next step can be planned before the result of the last one is known, as neither a grammar nor
    another block in flight depends on what it was.
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
    policy: Policy = field(init=False)
    general: bool = field(init=False)
    special: bool = field(init=False)
    predictable: bool = field(init=False)

    def __post_init__(self) -> None:
        # A grammar's state is known behind one frontier only.
        if not self.options.constrained:
            self.lookahead = self.params.values.get("lookahead", 1)
        self.policy = self.params.policy
        self.general = self.options.general or self.policy_reads
        self.special = self.general or self.options.reports or self.policy.edits
        self.predictable = self.lookahead == 1 and not self.options.constrained


@dataclass(slots=True, eq=False)
class ActiveBlock:
    """A block in flight.

    start: absolute position of its first token. canvas: int64 [block], a mirror of the device's
    with MASKED at masked positions. masks: how many of them. step: steps whose result is known;
    forced: those in which something had to be unmasked. pending: steps under way, 1 at most.
    settled: no further step is needed, though an earlier block may have to come first. gained: the
    positions that the last known step resolved; most: the most that one did. persisted: whether
    the last known forward had the final tokens as its input, so that its K/V are the block's. held:
    whether a running request still has it; what comes in for one that is not is nobody's.
    state_row: where the policy's tensors of this block are; saved_state: the tensors themselves
    while the request is retracted.
    """

    start: int
    canvas: np.ndarray
    masks: int
    step: int = 0
    forced: int = 0
    pending: int = 0
    settled: bool = False
    gained: int = 0
    most: int = 0
    persisted: bool = False
    held: bool = True
    details: BlockDetails | None = None
    state_row: int = -1
    saved_state: dict[str, Tensor] | None = None

    @classmethod
    def fresh(cls, start: int, size: int, head: Sequence[int] = ()) -> ActiveBlock:
        """A block of masks behind the tokens of `head`."""
        canvas = np.full(size, MASKED, dtype=np.int64)
        canvas[: len(head)] = head
        return cls(start, canvas, size - len(head))

    @property
    def resolved(self) -> float:
        """The share of positions that are not masked."""
        return (self.canvas.size - self.masks) / self.canvas.size


@dataclass(slots=True, eq=False)
class BlockState:
    """A running request: where its blocks stand and which slots it holds.

    slot: row of the canvas table. committed: an absolute position, a multiple of the block size,
    below which K/V is persisted by forwards that ran or are under way. text_start, text_end: the
    first generated position and the first one past the budget. flight: the blocks in flight,
    consecutive, never empty; tokens are final in front of the first. gated: the blocks behind the
    only one in flight that are under way before it is known whether the one in front is final;
    their steps count from when it was. pace: the most that a step of the block before these
    resolved, 0 for none. prompt_front: `front` at admission; final blocks below it are prefill
    rows, those above it commit rows. order: admission order, for retraction. published: whether the
    prompt's blocks were shown to the tree. denoises: whether it wants text at all. shows: whether
    its stream shows unresolved blocks; walks: whether its text is looked at after every step and
    not only when a block has settled.
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
    gated: list[ActiveBlock] = field(default_factory=list)
    pace: int = 0
    published: bool = False
    denoises: bool = field(init=False)
    shows: bool = field(init=False)
    walks: bool = field(init=False)

    def __post_init__(self) -> None:
        # max_new_tokens = 0 only warms the prefix cache.
        self.denoises = self.text_end > self.text_start
        self.shows = self.req.stream and self.record.params.stream_mode == "denoise"
        self.walks = self.record.options.walks and not self.record.policy.edits

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
        """Blocks that have to be rows of the next forward: the first in flight, and gated ones.

        Those behind the last unsettled one can wait: nobody reads their K/V.
        """
        if not self.denoises:
            return 0
        rows = len(self.flight)
        while rows > 1 and self.flight[rows - 1].settled:
            rows -= 1
        return rows + len(self.gated)

    def may_resolve(self, one: ActiveBlock, reach: float) -> bool:
        """Whether the step under way may resolve a block of it; see the planner."""
        schedule = self.record.schedule
        least = schedule[min(one.forced, len(schedule) - 1)]
        # Of a request that has taken no step yet everything is to be expected.
        pace = max(one.most, self.flight[0].most, self.pace) or one.canvas.size
        return may_resolve(one.masks, least=least, pace=pace, reach=reach)

    def rows(self, count: int) -> list[ActiveRow]:
        """The first `count` of these as rows of the next forward."""
        if count == 1:
            one = self.flight[0]
            return [ActiveRow(self, one, one.step + one.pending, self._scheduled(one))]
        rows = []
        for one in self.flight[:count]:
            forced = self.forces(one)
            least = self._scheduled(one) if forced else 0
            rows.append(ActiveRow(self, one, one.step + one.pending, least))
        for one in self.gated[: count - len(rows)]:
            rows.append(ActiveRow(self, one, one.pending, self._scheduled(one), True))
        assert len(rows) == count, "more rows than blocks"
        return rows

    def forces(self, one: ActiveBlock) -> bool:
        """Whether the next step of a block in flight has to unmask something."""
        place = self.flight.index(one)
        if place == 0:
            return True
        semi = self.record.params.values.get("lookahead_semi", 1.0)
        return bool(self.flight[place - 1].resolved >= semi)

    def _scheduled(self, one: ActiveBlock) -> int:
        """How many positions the next step of a block has to unmask where it is forced."""
        schedule = self.record.schedule
        return schedule[min(one.forced + one.pending, len(schedule) - 1)]


class ActiveRow(NamedTuple):
    """A denoise row of a forward.

    step: steps its block has taken before; 1 may be 0 where it is unsure. least: how many positions
    have to be unmasked; 0 where the block is not forced, and only there. gated: whether it changes
    nothing unless the block in front of it is final.
    """

    state: BlockState
    block: ActiveBlock
    step: int
    least: int
    gated: bool = False

    @property
    def unsure(self) -> bool:
        """Whether only the device knows if the one step counts that its block had before."""
        return self.gated and self.step > 0
