"""What becomes of a step's result: text handed out, blocks rolled on, requests ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.running import Running
from llada_sglang.scheduler.state import MASKED, ActiveBlock, ActiveRow, BlockState, Provisional

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from llada_sglang.scheduler.load import Work
    from llada_sglang.scheduler.runner import Launched, StepResult


class Sample(NamedTuple):
    """What a forward is to requests with a lookahead that follows the load, before its result.

    began: when it was launched, in seconds. rows, positions: all of them, whoever they belong to;
    positions that went to the head. width: what these requests were allowed. work: what it does
    for them, but for the tokens. following: they themselves. tokens: of their texts so far.
    """

    began: float
    rows: int
    positions: int
    width: int
    work: Work
    following: list[Req]
    tokens: int


@dataclass(slots=True)
class Step:
    """A forward the device was given.

    launched: its report on the way, None where no row denoises. active: its denoise rows, in the
    order of the report; those of one request are neighbours. commit_rows: how many of its rows
    persist blocks that were resolved, as far as known. sample: what it tells of a lookahead that
    follows the load, where anybody has one.
    """

    launched: Launched | None
    active: list[ActiveRow]
    commit_rows: int
    sample: Sample | None = None


@dataclass(kw_only=True)
class Outcomes(Running):
    """The running requests and the step they are in, if one is under way."""

    _under_way: Step | None = None

    @staticmethod
    def _count_committed(state: BlockState, end: int) -> None:
        state.committed = end
        state.req.kv.kv_committed_len = end

    def _act_on(self, step: Step, result: StepResult) -> None:
        """Act on the result of a forward."""
        canvases, settled = list(result.canvas), result.settled.tolist()
        masks = (result.canvas == MASKED).sum(axis=1).tolist()
        denoised = 0
        live: list[BlockState] = []
        for index, (state, one, _, least, gated) in enumerate(step.active):
            if not one.held:
                continue
            one.pending -= 1
            if gated and not _opened(state, one):
                continue
            denoised += 1
            if not live or live[-1] is not state:
                live.append(state)
            if one.settled:  # it was a row for its K/V only
                one.gained, one.persisted = 0, not one.masks
                continue
            canvas = canvases[index]
            if index in result.details:
                self._note(one, canvas, result.details[index])
            one.persisted = not one.masks and np.array_equal(one.canvas, canvas)
            one.gained = one.masks - masks[index]
            one.most = max(one.most, one.gained)
            one.canvas = canvas
            one.masks = masks[index]
            one.settled = settled[index]
            one.step += 1
            one.forced += least > 0
        self.tally.denoise_rows += denoised
        self.tally.denoise_forwards += denoised > 0
        failed = {id(step.active[index].state): why for index, why in result.failed.items()}
        for state in live:
            first = state.flight[0]
            state.record.denoise_forwards += 1
            if failed and id(state) in failed:
                self._fail(state, failed[id(state)])
            elif first.settled or state.shows or state.walks or len(state.flight) > 1:
                self._act(state)
            # Behind a block that is edited they may have begun in the step under way.
            if state.gated and not (state.gated[0].pending and state.record.policy.edits):
                self._drop_gated(state)

    def _act(self, state: BlockState) -> None:
        """Act on what a step made of a request: show, emit, roll on, end."""
        first = state.flight[0]
        if state.shows:
            canvas = np.concatenate([one.canvas for one in state.flight])
            state.record.provisional = Provisional(state.front, first.step, canvas)
            self.changed[id(state.req)] = state.req
        self._cut_behind_stops(state)
        persisted = first.persisted
        while (first.settled or state.walks) and self._emit(state):
            if first.pending and self._under_way is not None:
                # The step under way has the block's final tokens as its input.
                self._count_late_commit(self._under_way)
                persisted = True
            if persisted:
                self._count_committed(state, first.start + self.block)
                persisted = False
            first = state.flight[0]
            if first.step == 0:
                break

    def _count_late_commit(self, step: Step) -> None:
        self.tally.commit_rows += 1
        self.tally.commit_forwards += step.commit_rows == 0
        step.commit_rows += 1

    def _cut_behind_stops(self, state: BlockState) -> None:
        """Drop blocks in flight that can no longer be part of the text."""
        for place, one in enumerate(state.flight[:-1]):
            if one.settled and one.masks:
                for dropped in state.flight[place + 1 :]:
                    self._drop(state, dropped)
                del state.flight[place + 1 :]
                return

    @staticmethod
    def _note(one: ActiveBlock, canvas: np.ndarray, details: BlockDetails) -> None:
        """Keep what the step says of the tokens it wrote."""
        if one.details is None:
            one.details = BlockDetails.like(details)
        before = one.canvas
        if details.source is not None:
            before = np.where(details.source >= 0, before[details.source], MASKED)
            one.details.move(details.source)
        new = np.flatnonzero((canvas != MASKED) & (canvas != before))
        one.details.take(new, details, one.step, details.source)


def _opened(state: BlockState, one: ActiveBlock) -> bool:
    """Whether a gated row counts in the step whose outcome for the rows before it is known."""
    if one not in state.gated:
        return True  # it came into flight with the step before
    place = state.gated.index(one)
    in_front = state.gated[place - 1] if place else state.flight[0]
    # Resolved is not enough: the step may have changed it, so that it begins with the next one.
    return in_front.settled and in_front.persisted
