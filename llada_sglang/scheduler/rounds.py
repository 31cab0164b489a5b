"""Rounds: who runs, which rows, and what becomes of their results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from llada_sglang.scheduler.details import BlockDetails, report
from llada_sglang.scheduler.load import Load
from llada_sglang.scheduler.options import stop_ids
from llada_sglang.scheduler.planner import RowSpan, plan_rows
from llada_sglang.scheduler.state import (
    MASKED,
    ActiveBlock,
    BlockState,
    Provisional,
    RequestRecord,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.kv import BlockKV
    from llada_sglang.scheduler.runner import BlockRunner, StepResult

logger = logging.getLogger(__name__)

AUTO = "auto"
"""A lookahead that follows the load."""


@dataclass(frozen=True, slots=True)
class Limits:
    """max_running: most requests at once. row_budget: most rows of a forward that only
    prefills or that has room; prefill_budget: most prefill rows beside denoise rows.
    max_position: no token at or behind this absolute position, a multiple of the block.
    """

    max_running: int
    row_budget: int
    prefill_budget: int
    max_position: int


@dataclass(slots=True)
class Tally:
    """Counts since the last reading, for metrics.

    A forward counts for every kind it carries rows of. rows_per_forward: one entry per forward.
    ended_tokens_per_forward: one entry per ended request that denoised.
    """

    forwards: int = 0
    prefill_rows: int = 0
    commit_rows: int = 0
    denoise_rows: int = 0
    prefill_forwards: int = 0
    commit_forwards: int = 0
    denoise_forwards: int = 0
    rows_per_forward: list[int] = field(default_factory=list)
    ended_tokens_per_forward: list[float] = field(default_factory=list)
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retracted: int = 0


@dataclass(slots=True)
class Rounds:
    """The running requests and what a step does to them.

    requeue: called with a retracted request. agree: turns a number of this rank's into the same
    one on all ranks that run these rounds. changed: requests with new tokens or an end
    since the caller last cleared it, each once, in order. retractions: how many ever.
    """

    kv: BlockKV
    table: CanvasTable
    runner: BlockRunner
    limits: Limits
    requeue: Callable[[Req], None]
    agree: Callable[[int], int] = int
    states: list[BlockState] = field(default_factory=list)
    changed: dict[int, Req] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    load: Load = field(default_factory=Load)
    retractions: int = 0
    _admitted: int = 0

    @property
    def block(self) -> int:
        return self.table.block

    def admit(self, req: Req, record: RequestRecord, growth: float) -> bool:
        """Start or resume a request; False if it has to wait.

        growth: share of its remaining tokens that must be obtainable now; what it turns out
        to need beyond that is taken back from the youngest.
        """
        if len(self.states) >= self.limits.max_running or not self.table.free_slots:
            return False
        block = self.block
        context = req.origin_input_ids + req.output_ids
        prompt_len = len(req.origin_input_ids)
        text_end = min(prompt_len + req.sampling_params.max_new_tokens, self.limits.max_position)
        front = len(context) // block * block
        prefix = self.kv.lock_prefix(req, context)
        need = front - prefix + (block if text_end > prompt_len else 0)
        reserve = block * sum(len(other.flight) for other in self.states) + growth * max(
            0, text_end - front - block
        )
        if self.states and need + reserve > self.kv.obtainable():
            self.kv.unlock_prefix(req)
            return False
        self.kv.open_row(req, prefix)
        if not self.kv.extend(req, prefix + need):
            # Only possible beside others: alone, a validated request always fits.
            self.kv.drop_uncommitted(req, prefix)
            self.kv.abandon_row(req)
            return False

        self._admitted += 1
        record.stop_ids = stop_ids(req)
        record.schedule = record.params.schedule(block, text_end - prompt_len)
        state = BlockState(
            req=req,
            record=record,
            slot=-1,
            order=self._admitted,
            committed=prefix,
            text_start=prompt_len,
            text_end=text_end,
            prompt_front=front,
            flight=[self._fresh_block(front, context[front:])],
        )
        params, policy = record.params, record.params.policy
        record.numbers = policy.numbers(params.values)
        state.slot = self.table.acquire(
            context,
            numbers=list(record.numbers.values()),
            stop_ids=record.stop_ids if params.values.get("eos_early_stop") else (),
            text_start=prompt_len,
            text_end=text_end,
        )
        if record.saved and record.saved[0].start == front:
            state.flight = record.saved
        for one in state.flight:
            self.table.restore(state.slot, one.start, one.canvas)
            one.state_row = self.table.state_of(policy).acquire(one.saved_state)
            one.saved_state = None
        record.saved = []
        self.states.append(state)
        self._count_admission(req, prefix)
        return True

    def step(self) -> None:
        """Run one forward over the rows of all running requests, if there are any."""
        for state in [s for s in self.states if not s.denoises and s.committed == s.front]:
            self._end_by_length(state)
        ahead = [state for state in self.states if state.record.lookahead != 1]
        if ahead:
            auto = self._auto_width(ahead)
            for state in ahead:
                self._widen(state, auto)
        self._secure_slots()
        spans = plan_rows(
            self.states,
            block=self.block,
            row_budget=self.limits.row_budget,
            prefill_budget=self.limits.prefill_budget,
        )
        if spans:
            began = time.perf_counter()
            result = self.runner.step(self.states, spans)
            seconds = time.perf_counter() - began
            resolved = self._advance(spans, result, count=bool(ahead))
            if ahead:
                self.load.observe(sum(span.rows for span in spans), seconds, resolved)

    def end(self, state: BlockState) -> None:
        """Release a finished request; its committed blocks stay in the tree."""
        state.record.provisional = None
        self._release(state)
        self.kv.close_row(state)
        if denoised := state.record.denoise_forwards:
            tokens = len(state.req.output_ids_through_stop)
            self.tally.ended_tokens_per_forward.append(tokens / denoised)
        state.req.time_stats.set_completion_time()
        self.changed[id(state.req)] = state.req

    def retract(self, state: BlockState, *, keep: bool = True) -> None:
        """Take a request's slots back; it resumes where it was, its canvases included.

        keep: whether what was computed stays valid. Not so when weights are about to change:
        then no KV is published and the unresolved blocks start over.
        """
        record, req = state.record, state.req
        if keep:
            tables = self.table.state_of(record.params.policy)
            for one in state.flight:
                one.saved_state = tables.save(one.state_row)
            record.saved = state.flight
        self._release(state)
        self.kv.close_row(state, publish=keep)
        req.reset_for_retract()
        req.time_stats.set_retract_time()
        self.tally.retracted += 1
        self.retractions += 1
        self.requeue(req)

    def youngest(self) -> BlockState:
        """The request that loses least by starting over: lowest priority, then last come."""
        return max(self.states, key=lambda state: state.order)

    def _release(self, state: BlockState) -> None:
        """Give back what a request holds on the device besides KV."""
        tables = self.table.state_of(state.record.params.policy)
        for one in state.flight:
            tables.release(one.state_row)
        self.table.release(state.slot)
        self.states.remove(state)

    def _auto_width(self, ahead: list[BlockState]) -> int:
        """How many blocks of a request with lookahead `auto` may be in flight now."""
        if not any(state.record.lookahead == AUTO for state in ahead):
            return 1
        return self.agree(self.load.lookahead(sum(state.denoises for state in self.states)))

    def _widen(self, state: BlockState, auto: int) -> None:
        """Start as many later blocks as the request's lookahead allows now."""
        record = state.record
        width = auto if record.lookahead == AUTO else int(record.lookahead)
        if width == 1 or not state.denoises:
            return
        start = record.params.values["lookahead_start"]
        while len(state.flight) < width:
            last = state.flight[-1]
            begin = last.start + self.block
            if last.resolved < start or begin >= state.text_end or self._stops(state):
                return
            self._open(state, begin)

    def _stops(self, state: BlockState) -> bool:
        """Whether a block in flight holds a resolved stop id: what is behind it will be cut."""
        stops = state.record.stop_ids
        for one in state.flight:
            begin = max(0, state.text_start - one.start)
            if stops and np.isin(one.canvas[begin:], stops).any():
                return True
        return False

    def _open(self, state: BlockState, begin: int) -> None:
        one = self._fresh_block(begin)
        one.state_row = self.table.state_of(state.record.params.policy).acquire()
        state.flight.append(one)

    def _secure_slots(self) -> None:
        """Hold the KV slots of every active block, retracting the youngest where short."""
        for state in list(self.states):
            while state in self.states and state.denoises:
                if self.kv.extend(state.req, state.flight[-1].start + self.block):
                    break
                victim = self.youngest()
                logger.warning(
                    "KV pool is full: retracting request %s (%d committed tokens kept), %d run on",
                    victim.req.rid,
                    victim.committed,
                    len(self.states) - 1,
                )
                self.retract(victim)

    def _advance(
        self, spans: list[RowSpan], result: StepResult | None, *, count: bool
    ) -> list[list[int]]:
        """Act on a forward.

        Returns, if asked to count, the positions resolved per request that denoised and block.
        """
        counts: list[list[int]] = []
        block, tally = self.block, self.tally
        tally.forwards += 1
        tally.rows_per_forward.append(sum(span.rows for span in spans))
        prefills, commits = tally.prefill_rows, tally.commit_rows
        row = 0
        for span, state in [(span, self.states[span.request]) for span in spans]:
            prefill = max(0, min(span.final_blocks, (state.prompt_front - span.start) // block))
            tally.prefill_rows += prefill
            tally.commit_rows += span.final_blocks - prefill
            state.record.prefill_forwards += prefill > 0
            state.committed += span.final_blocks * block
            state.req.kv.kv_committed_len = state.committed
            if not state.published and state.committed >= state.prompt_front:
                self.kv.publish(state)
                state.published = True
            if span.denoise:
                assert result is not None
                state.record.denoise_forwards += 1
                blocks = state.flight[: span.denoise]
                # Before any of them changes: whether one is forced depends on the one before.
                forced = [len(blocks) == 1 or state.forces(one) for one in blocks]
                masked = [_masks(one) for one in blocks] if count else []
                for one, had_to in zip(blocks, forced, strict=True):
                    self._take(one, result, row, forced=had_to)
                    row += 1
                if count:
                    pairs = zip(masked, blocks, strict=True)
                    counts.append([before - _masks(one) for before, one in pairs])
                self._after(state, result, row - span.denoise)
        tally.denoise_forwards += row > 0
        tally.prefill_forwards += tally.prefill_rows > prefills
        tally.commit_forwards += tally.commit_rows > commits
        return counts

    def _take(self, one: ActiveBlock, result: StepResult, row: int, *, forced: bool) -> None:
        """Take over what a step made of one block."""
        self.tally.denoise_rows += 1
        if one.settled:
            return  # it was a row for its K/V only
        canvas = result.canvas[row]
        if (details := result.details.get(row)) is not None:
            self._note(one, canvas, details)
        one.forced += forced
        one.step += 1
        one.canvas = canvas
        one.settled = bool(result.settled[row])

    def _after(self, state: BlockState, result: StepResult, row: int) -> None:
        """Act on a step of a request whose first block was `row` of it."""
        record, first = state.record, state.flight[0]
        if state.req.stream and record.params.stream_mode == "denoise":
            canvas = np.concatenate([one.canvas for one in state.flight])
            record.provisional = Provisional(state.front, first.step, canvas)
            self.changed[id(state.req)] = state.req
        if (reason := result.failed.get(row)) is not None:
            self._fail(state, reason)
            return
        if len(state.flight) > 1:
            self._cut_behind_stops(state)
        persisted = bool(result.persisted[row])
        while first.settled or (record.options.walks and not record.params.policy.edits):
            rolled = self._emit(state)
            if not rolled:
                return
            if persisted:
                # The forward's input was final: its K/V are the block's, no commit is needed.
                state.committed = first.start + self.block
                state.req.kv.kv_committed_len = state.committed
                persisted = False
            first = state.flight[0]
            if first.step == 0:
                return

    def _cut_behind_stops(self, state: BlockState) -> None:
        """Drop blocks in flight that can no longer be part of the text."""
        for place, one in enumerate(state.flight[:-1]):
            if one.settled and (one.canvas == MASKED).any():
                tables = self.table.state_of(state.record.params.policy)
                for dropped in state.flight[place + 1 :]:
                    tables.release(dropped.state_row)
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

    def _emit(self, state: BlockState) -> bool:
        """Hand out resolved text of the first block; True if it was settled and the next is first.

        Ends the request where its text ends.
        """
        req, one = state.req, state.flight[0]
        canvas = one.canvas
        masked = np.flatnonzero(canvas == MASKED)
        resolved = int(masked[0]) if masked.size else self.block
        begin = max(state.text_start + len(req.output_ids) - one.start, 0)
        cut = min(resolved, state.text_end - one.start)
        text = canvas[begin:cut].tolist()
        if text:
            req.output_ids.extend(text)
            self.tally.output_tokens += len(text)
            report(req, state.record.options, one.details, range(begin, cut))
            req.update_finish_state(new_accepted_len=len(text))
        if req.finished():
            self.end(state)
        elif not one.settled:
            pass
        elif one.start + cut >= state.text_end:
            self._end_by_length(state)
        else:
            # Settled early only at a stop or at the budget's end, and both end the request.
            assert not masked.size, f"request {req.rid} settled without an end"
            self.changed[id(req)] = req
            state.record.provisional = None
            if len(state.flight) == 1:
                self._open(state, one.start + self.block)
            self.table.state_of(state.record.params.policy).release(one.state_row)
            del state.flight[0]
            return True
        return False

    def _fail(self, state: BlockState, reason: str) -> None:
        state.req.finished_reason = FINISH_ABORT(reason, HTTPStatus.BAD_REQUEST, "BadRequestError")
        self.end(state)

    def _end_by_length(self, state: BlockState) -> None:
        req = state.req
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        req.finished_len = len(req.output_ids)
        self.end(state)

    def _fresh_block(self, start: int, head: object = ()) -> ActiveBlock:
        """A block of masks behind the tokens of `head`."""
        canvas = np.full(self.block, MASKED, dtype=np.int64)
        tokens = np.asarray(head, dtype=np.int64)
        canvas[: tokens.size] = tokens
        return ActiveBlock(start, canvas)

    def _count_admission(self, req: Req, prefix: int) -> None:
        req.is_retracted = False
        if not req.retracted_stain:
            req.cached_tokens += prefix
            req.cached_tokens_device += prefix
            self.tally.prompt_tokens += len(req.origin_input_ids)
            self.tally.cached_tokens += prefix


def _masks(one: ActiveBlock) -> int:
    return int((one.canvas == MASKED).sum())
