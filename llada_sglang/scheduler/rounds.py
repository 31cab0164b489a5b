"""Rounds: which rows a forward has, and what becomes of its results.

Planned ahead (`overlap`), a step is given to the device before the host knows what became of the
one before it, so that the device never waits for the host. What the host plans from is then one
step old, and the texts are the same:

- Step numbers, schedules and noise depend on how many steps a block has had, which is known.
- Unmasking policies take nothing back. A stale mask is one too many at worst; the device's own
  masks decide what is written. Of blocks that are edited it notes itself which are finished.
- A block that the step under way resolves has a row in the next forward all the same. Its input is
  final by then, so that this row is its commit.
- The block behind it may ride in that forward too, as a *gated* row: one that changes nothing
  unless the block in front was final when the forward began. So no step is lost.
- A row of a request that ended, or one whose gate turns out to have been closed, is nobody's:
  results name blocks, not places, and a block that is not held any more takes none.

While requests run of which the next step cannot be foretold, because a grammar or another block in
flight depends on the last one, every step is planned from the result of the one before it. It is
under way all the same while the host hands out text, looks for input and admits.

Blocks that are edited take a last step that finds nothing to change. The block behind rides with
every step that may be this one, gated: what it reads was final if it was, and its first step costs
no forward of its own. Planned ahead, it may have begun in the step under way, and even be what the
next one finds final: then the block behind that one rides too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llada_sglang.scheduler.load import Load, Work
from llada_sglang.scheduler.outcomes import Outcomes, Sample, Step
from llada_sglang.scheduler.planner import RowSpan, plan_rows
from llada_sglang.scheduler.runner import FinalRows
from llada_sglang.scheduler.state import ActiveRow, BlockState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from llada_sglang.scheduler.runner import BlockRunner

logger = logging.getLogger(__name__)

AUTO = "auto"
"""A lookahead that follows the load."""


@dataclass(kw_only=True)
class Rounds(Outcomes):
    """Steps of the running requests.

    agree: turns a number of this rank's into the same one on all ranks that run these rounds.
    overlap: whether a step is launched before the result of the last one is known, where every
    request allows it.
    """

    runner: BlockRunner
    agree: Callable[[int], int] = int
    overlap: bool = False
    load: Load = field(default_factory=Load)

    @property
    def idle(self) -> bool:
        """Whether nobody runs and no result is awaited."""
        return not self.states and self._under_way is None

    def step(self) -> None:
        """Run one forward over the rows of all running requests, if there are any.

        With `overlap` it is under way when this returns.
        """
        if not (self.overlap and all(state.record.predictable for state in self.states)):
            self.flush()
        for state in [s for s in self.states if not s.denoises and s.committed == s.front]:
            self._end_by_length(state)
        ahead = [state for state in self.states if state.record.lookahead != 1]
        following = [state for state in ahead if state.record.lookahead == AUTO]
        width = self._auto_width(following)
        for state in ahead:
            self._widen(state, width)
        self._secure_slots()
        self._start_gated()
        spans = plan_rows(
            self.states,
            block=self.block,
            row_budget=self.limits.row_budget,
            prefill_budget=self.limits.prefill_budget,
        )
        if not spans:
            return
        began = time.perf_counter()
        step = self._launch(spans)
        if following:
            step.sample = self._sample(spans, following, width, began)
        before, self._under_way = self._under_way, step
        if before is not None:
            self._take(before)
        if not self.states:
            self._under_way = None  # nobody is left to take its result
        if not self.overlap:
            self.flush()

    def flush(self) -> None:
        """Take the result of the step under way, if there is one, before anybody is taken away."""
        step, self._under_way = self._under_way, None
        if step is not None:
            self._take(step)

    def _take(self, step: Step) -> None:
        """Wait for the result of a forward, and act on it."""
        if step.launched is None:
            return
        result = step.launched.result()
        ended = time.perf_counter()
        self._act_on(step, result)
        if (seen := step.sample) is not None:
            seen.work.tokens += _tokens(seen.following) - seen.tokens
            self.load.observe(
                ended - seen.began,
                rows=seen.rows,
                positions=seen.positions,
                width=seen.width,
                auto=seen.work,
            )

    def retract(self, state: BlockState, *, keep: bool = True) -> None:
        """Take a request's slots back; it resumes where it was, its canvases included.

        It may turn out to have ended in the step under way; then there is nothing to do.
        keep: whether what was computed stays valid. Not so when weights are about to change:
        then no KV is published and the unresolved blocks start over.
        """
        self.flush()
        if state in self.states:
            self._take_back(state, keep=keep)

    def _sample(
        self, spans: Sequence[RowSpan], following: Sequence[BlockState], width: int, began: float
    ) -> Sample:
        """A forward that was launched, as the requests that follow the load see it."""
        mine = set(map(id, following))
        positions, work = 0, Work()
        for span in spans:
            state = self.states[span.request]
            masks = sum(one.masks for one in state.flight[: span.denoise])
            positions += masks
            if span.denoise and id(state) in mine:
                prompt = (state.prompt_front - span.start) // self.block
                work.steps += 1
                work.rows += span.rows - min(max(0, prompt), span.final_blocks)
                work.positions += masks
        rows, reqs = sum(span.rows for span in spans), [state.req for state in following]
        return Sample(began, rows, positions, width, work, reqs, _tokens(reqs))

    def _auto_width(self, following: Sequence[BlockState]) -> int:
        """How many blocks of a request with lookahead `auto` may be in flight now."""
        if not following:
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
            state.flight.append(self._fresh(state, begin))

    def _stops(self, state: BlockState) -> bool:
        """Whether a block in flight holds a resolved stop id: what is behind it will be cut."""
        stops = state.record.stop_ids
        for one in state.flight:
            begin = max(0, state.text_start - one.start)
            if stops and np.isin(one.canvas[begin:], stops).any():
                return True
        return False

    def _secure_slots(self) -> None:
        """Hold the KV slots of every block in flight, retracting the youngest where short."""
        while self._short_of_slots():
            if self._under_way is not None:
                self.flush()  # somebody may have ended
                continue
            ends = [(state.req, state.flight[-1].start + self.block) for state in self.states]
            if sum(self.kv.drop_ahead(req, end) for req, end in ends):
                continue
            victim = self.youngest()
            logger.warning(
                "KV pool is full: retracting request %s (%d committed tokens kept), %d run on",
                victim.req.rid,
                victim.committed,
                len(self.states) - 1,
            )
            self.retract(victim)

    def _short_of_slots(self) -> bool:
        for state in self.states:
            end = state.flight[-1].start + self.block
            short = state.denoises and end > state.req.kv.kv_allocated_len
            if short and not self.kv.extend(state.req, end):
                return True
        return False

    def _start_gated(self) -> None:
        """Start the block behind every one that may be final before the next step, or be found so
        by it."""
        for state in self.states:
            if state.gated and not state.gated[0].pending:
                # They waited behind the prompt: no row yet, and the slots may be gone.
                self._drop_gated(state)
            edits = state.record.policy.edits
            # An edited block may have ended, and the one behind it with it, in the step under way.
            while len(state.gated) < 1 + edits:
                last = state.gated[-1] if state.gated else state.flight[0]
                begin = last.start + self.block
                if last.pending:
                    near = state.may_resolve(last, self.limits.reach)
                else:
                    near = edits and not last.masks
                if (
                    not near
                    or begin >= state.text_end
                    or (edits and self._stops(state))
                    or not self.kv.extend(state.req, begin + self.block)
                ):
                    break
                state.gated.append(self._fresh(state, begin))

    def _launch(self, spans: Sequence[RowSpan]) -> Step:
        """Give the device a forward, and count its final rows as persisted."""
        block, tally = self.block, self.tally
        finals: list[FinalRows] = []
        active: list[ActiveRow] = []
        for span in spans:
            state = self.states[span.request]
            if span.final_blocks:
                finals.append(FinalRows(state, span.start, span.final_blocks))
            if span.denoise:
                active += state.rows(span.denoise)
        launched = self.runner.launch(finals, active)
        for row in active:
            row.block.pending += 1

        prefills = commits = 0
        for state, start, blocks in finals:
            prefill = max(0, min(blocks, (state.prompt_front - start) // block))
            prefills += prefill
            commits += blocks - prefill
            state.record.prefill_forwards += prefill > 0
            self._count_committed(state, start + blocks * block)
        for span in spans:
            state = self.states[span.request]
            if not state.published and state.prefilled:
                self.kv.publish(state)
                state.published = True
        tally.forwards += 1
        tally.rows_per_forward.append(prefills + commits + len(active))
        tally.prefill_rows += prefills
        tally.prefill_forwards += prefills > 0
        tally.commit_rows += commits
        tally.commit_forwards += commits > 0
        return Step(launched, active, commits)


def _tokens(reqs: Sequence[Req]) -> int:
    """Tokens of these requests' texts so far."""
    return sum(len(req.output_ids_through_stop) for req in reqs)
