"""The requests that run: how they come in, what they hold, what they say and how they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from llada_sglang.scheduler.details import report
from llada_sglang.scheduler.options import stop_ids
from llada_sglang.scheduler.planner import REACH
from llada_sglang.scheduler.state import MASKED, ActiveBlock, BlockState, RequestRecord
from llada_sglang.scheduler.tally import Tally

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.kv import BlockKV


@dataclass(frozen=True, slots=True)
class Limits:
    """max_running: most requests at once. row_budget: most rows of a forward that only
    prefills or that has room; prefill_budget: most prefill rows beside denoise rows.
    max_position: no token at or behind this absolute position, a multiple of the block.
    reach: see `planner.may_resolve`.
    """

    max_running: int
    row_budget: int
    prefill_budget: int
    max_position: int
    reach: float = REACH


@dataclass(kw_only=True)
class Running:
    """The running requests, with what they hold of the KV pool and of the table of canvases.

    requeue: called with a retracted request. changed: requests with new tokens or an end since
    the caller last cleared it, each once, in order. retractions: how many ever.
    """

    kv: BlockKV
    table: CanvasTable
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
            flight=[ActiveBlock.fresh(front, block, context[front:])],
        )
        params, policy = record.params, record.policy
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
            one.held = True
        record.saved = []
        self.states.append(state)
        self._count_admission(req, prefix)
        return True

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

    def youngest(self) -> BlockState:
        """The request that loses least by starting over: lowest priority, then last come."""
        return max(self.states, key=lambda state: state.order)

    def _take_back(self, state: BlockState, *, keep: bool) -> None:
        """Free what a request holds and queue it again, its canvases kept where they are valid."""
        record, req = state.record, state.req
        if keep:
            tables = self.table.state_of(record.policy)
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

    def _release(self, state: BlockState) -> None:
        """Give back what a request holds on the device besides KV.

        It can be given out again at once, though a step under way may still write there: what the
        next owner does comes behind that step in the device's queue.
        """
        self._drop_gated(state)
        for one in state.flight:
            self._drop(state, one)
        self.table.release(state.slot)
        self.states.remove(state)

    def _drop(self, state: BlockState, one: ActiveBlock) -> None:
        """Give back what a block holds; what a step under way says of it is for nobody."""
        one.held = False
        self.table.state_of(state.record.policy).release(one.state_row)

    def _drop_gated(self, state: BlockState) -> None:
        for one in state.gated:
            self._drop(state, one)
        state.gated.clear()

    def _fresh(self, state: BlockState, begin: int) -> ActiveBlock:
        """A block of masks at `begin`, with a row of its policy's state."""
        one = ActiveBlock.fresh(begin, self.block)
        one.state_row = self.table.state_of(state.record.policy).acquire()
        return one

    def _emit(self, state: BlockState) -> bool:
        """Hand out resolved text of the first block; True if it was settled and the next is first.

        Ends the request where its text ends.
        """
        req, one = state.req, state.flight[0]
        canvas = one.canvas
        resolved = int((canvas == MASKED).argmax()) if one.masks else self.block
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
            assert not one.masks, f"request {req.rid} settled without an end"
            self.changed[id(req)] = req
            state.record.provisional = None
            if state.gated:
                state.flight.append(state.gated.pop(0))
            elif len(state.flight) == 1:
                state.flight.append(self._fresh(state, one.start + self.block))
            self._drop(state, one)
            del state.flight[0]
            state.pace = one.most
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

    def _count_admission(self, req: Req, prefix: int) -> None:
        req.is_retracted = False
        if not req.retracted_stain:
            req.cached_tokens += prefix
            req.cached_tokens_device += prefix
            self.tally.prompt_tokens += len(req.origin_input_ids)
            self.tally.cached_tokens += prefix
