"""Rounds: who runs, which rows, and what becomes of their results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from llada_sglang.scheduler.details import BlockDetails, report
from llada_sglang.scheduler.options import stop_ids
from llada_sglang.scheduler.planner import RowSpan, plan_rows
from llada_sglang.scheduler.state import (
    MASKED,
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

    requeue: called with a retracted request. changed: requests with new tokens or an end
    since the caller last cleared it, each once, in order. retractions: how many ever.
    """

    kv: BlockKV
    table: CanvasTable
    runner: BlockRunner
    limits: Limits
    requeue: Callable[[Req], None]
    states: list[BlockState] = field(default_factory=list)
    changed: dict[int, Req] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
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
        reserve = block * len(self.states) + growth * max(0, text_end - front - block)
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
            front=front,
            text_start=prompt_len,
            text_end=text_end,
            prompt_front=front,
            canvas=self._fresh_canvas(context[front:]),
        )
        state.slot = self.table.acquire(
            context,
            threshold=record.params.threshold,
            schedule=record.schedule,
            stop_ids=record.stop_ids if record.params.eos_early_stop else (),
            text_start=prompt_len,
            text_end=text_end,
        )
        if record.saved_canvas is not None and record.saved_front == front:
            state.canvas, state.step = record.saved_canvas, record.saved_step
            state.details = record.saved_details
            self.table.restore(state.slot, front, state.canvas)
        record.saved_canvas = record.saved_details = None
        self.states.append(state)
        self._count_admission(req, prefix)
        return True

    def step(self) -> None:
        """Run one forward over the rows of all running requests, if there are any."""
        for state in [s for s in self.states if not s.denoises and s.committed == s.front]:
            self._end_by_length(state)
        self._secure_slots()
        spans = plan_rows(
            self.states,
            block=self.block,
            row_budget=self.limits.row_budget,
            prefill_budget=self.limits.prefill_budget,
        )
        if spans:
            result = self.runner.step(self.states, spans)
            self._advance(spans, result)

    def end(self, state: BlockState) -> None:
        """Release a finished request; its committed blocks stay in the tree."""
        state.record.provisional = None
        self.kv.close_row(state)
        self.table.release(state.slot)
        self.states.remove(state)
        if denoised := state.record.denoise_forwards:
            tokens = len(state.req.output_ids_through_stop)
            self.tally.ended_tokens_per_forward.append(tokens / denoised)
        state.req.time_stats.set_completion_time()
        self.changed[id(state.req)] = state.req

    def retract(self, state: BlockState, *, keep: bool = True) -> None:
        """Take a request's slots back; it resumes where it was, its canvas included.

        keep: whether what was computed stays valid. Not so when weights are about to change:
        then no KV is published and the unresolved block starts over.
        """
        record, req = state.record, state.req
        if keep:
            record.saved_front, record.saved_canvas = state.front, state.canvas
            record.saved_step, record.saved_details = state.step, state.details
        self.kv.close_row(state, publish=keep)
        self.table.release(state.slot)
        self.states.remove(state)
        req.reset_for_retract()
        req.time_stats.set_retract_time()
        self.tally.retracted += 1
        self.retractions += 1
        self.requeue(req)

    def youngest(self) -> BlockState:
        """The request that loses least by starting over: lowest priority, then last come."""
        return max(self.states, key=lambda state: state.order)

    def _secure_slots(self) -> None:
        """Hold the KV slots of every active block, retracting the youngest where short."""
        for state in list(self.states):
            while state in self.states and state.denoises:
                if self.kv.extend(state.req, state.front + self.block):
                    break
                victim = self.youngest()
                logger.warning(
                    "KV pool is full: retracting request %s (%d committed tokens kept), %d run on",
                    victim.req.rid,
                    victim.committed,
                    len(self.states) - 1,
                )
                self.retract(victim)

    def _advance(self, spans: list[RowSpan], result: StepResult | None) -> None:
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
                tally.denoise_rows += 1
                state.record.denoise_forwards += 1
                if (details := result.details.get(row)) is not None:
                    self._note(state, result.canvas[row], details)
                state.step += 1
                state.canvas = result.canvas[row]
                if state.req.stream and state.record.params.stream_mode == "denoise":
                    state.record.provisional = Provisional(state.front, state.step, state.canvas)
                    self.changed[id(state.req)] = state.req
                if (reason := result.failed.get(row)) is not None:
                    self._fail(state, reason)
                elif result.settled[row] or state.record.options.walks:
                    self._emit(state, settled=bool(result.settled[row]))
                row += 1
        tally.denoise_forwards += row > 0
        tally.prefill_forwards += tally.prefill_rows > prefills
        tally.commit_forwards += tally.commit_rows > commits

    def _note(self, state: BlockState, canvas: np.ndarray, details: BlockDetails) -> None:
        """Keep what the step says of the tokens it unmasked."""
        if state.details is None:
            state.details = BlockDetails.like(details)
        new = np.flatnonzero((state.canvas == MASKED) & (canvas != MASKED))
        state.details.take(new, details, state.step)

    def _emit(self, state: BlockState, *, settled: bool) -> None:
        """Hand out resolved text; end the request or, where settled, roll on to the next block."""
        req, canvas = state.req, state.canvas
        masked = np.flatnonzero(canvas == MASKED)
        resolved = int(masked[0]) if masked.size else self.block
        begin = max(state.text_start + len(req.output_ids) - state.front, 0)
        cut = min(resolved, state.text_end - state.front)
        text = canvas[begin:cut].tolist()
        if text:
            req.output_ids.extend(text)
            self.tally.output_tokens += len(text)
            report(req, state.record.options, state.details, range(begin, cut))
            req.update_finish_state(new_accepted_len=len(text))
        if req.finished():
            self.end(state)
        elif not settled:
            return
        elif state.front + cut >= state.text_end:
            self._end_by_length(state)
        else:
            # Settled early only at a stop or at the budget's end, and both end the request.
            assert not masked.size, f"request {req.rid} settled without an end"
            self.changed[id(req)] = req
            state.record.provisional = None
            state.front += self.block
            state.step = 0
            state.details = None
            state.canvas = np.full(self.block, MASKED, dtype=np.int64)

    def _fail(self, state: BlockState, reason: str) -> None:
        state.req.finished_reason = FINISH_ABORT(reason, HTTPStatus.BAD_REQUEST, "BadRequestError")
        self.end(state)

    def _end_by_length(self, state: BlockState) -> None:
        req = state.req
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        req.finished_len = len(req.output_ids)
        self.end(state)

    def _fresh_canvas(self, head: object) -> np.ndarray:
        canvas = np.full(self.block, MASKED, dtype=np.int64)
        tokens = np.asarray(head, dtype=np.int64)
        canvas[: tokens.size] = tokens
        return canvas

    def _count_admission(self, req: Req, prefix: int) -> None:
        req.is_retracted = False
        if not req.retracted_stain:
            req.cached_tokens += prefix
            req.cached_tokens_device += prefix
            self.tally.prompt_tokens += len(req.origin_input_ids)
            self.tally.cached_tokens += prefix
