"""Random schedules of the row planner against the invariants every forward must keep."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sglang.scheduler.planner import may_resolve, plan_rows

BLOCK = 32


@dataclass
class Request:
    committed: int
    front: int
    denoises: bool = True
    steps: int = 1
    blocks: int = 1
    lookahead: int = 1
    prompt: int = -1

    def __post_init__(self):
        self.prompt = self.front

    @property
    def denoise_rows(self):
        return self.lookahead if self.denoises else 0

    @property
    def prefilled(self):
        return self.committed >= self.prompt


REQUESTS = st.lists(
    st.builds(
        lambda hit, pending, denoises, steps, blocks, lookahead: Request(
            hit * BLOCK, (hit + pending) * BLOCK, denoises, steps, blocks, lookahead
        ),
        st.integers(0, 3),
        st.integers(0, 40),
        st.booleans(),
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=8,
)


@given(arrivals=st.lists(REQUESTS, min_size=1, max_size=3), row_budget=st.integers(16, 64))
@settings(max_examples=150, deadline=None)
def test_any_schedule_keeps_order_budget_and_progress(arrivals, row_budget):
    prefill_budget = 8
    running: list[Request] = []
    left: dict[int, int] = {}
    queue = list(arrivals)
    for _ in range(2000):
        if queue:
            new = queue.pop(0)
            running += new
            left |= {id(r): r.steps for r in new}
        running = [r for r in running if r.denoises or r.committed < r.front]
        if not running and not queue:
            return
        spans = plan_rows(
            running, block=BLOCK, row_budget=row_budget, prefill_budget=prefill_budget
        )
        assert spans or not running, "something runs in every forward"
        denoising = [
            r for r in running if r.denoises and (r.front - r.committed <= BLOCK or r.prefilled)
        ]
        planned = {span.request for span in spans}
        assert len(planned) == len(spans), "one span per request"
        assert all(i in planned for i, r in enumerate(running) if r in denoising), (
            "a prompt never keeps a denoising request out of a forward"
        )
        prefill = sum(s.rows for s in spans if running[s.request] not in denoising)
        assert prefill <= (prefill_budget if denoising else row_budget)
        for span in spans:
            request = running[span.request]
            assert span.start == request.committed, "no block is skipped or written twice"
            end = span.start + span.final_blocks * BLOCK
            assert end <= request.front, "only final tokens are committed"
            if span.denoise:
                assert end == request.front, "a block is denoised over a whole context"
                assert request.denoises
                assert span.denoise == request.lookahead, "blocks in flight stay together"
            request.committed = end
            if span.denoise:
                left[id(request)] -= 1
                if left[id(request)] == 0:
                    left[id(request)] = request.steps
                    done = min(request.blocks, request.lookahead)
                    request.blocks -= done
                    request.front += done * BLOCK
                    if request.blocks == 0:
                        request.denoises = False
                        request.committed = request.front  # finished: leaves without a commit
    raise AssertionError("the schedule did not end")


def test_a_resolved_block_commits_in_the_forward_that_starts_the_next():
    (span,) = plan_rows([Request(64, 96)], block=BLOCK, row_budget=8, prefill_budget=8)
    assert (span.start, span.final_blocks, span.denoise) == (64, 1, True)


def test_a_prompt_is_prefilled_together_with_its_first_step():
    (span,) = plan_rows([Request(0, 128 * BLOCK)], block=BLOCK, row_budget=256, prefill_budget=8)
    assert (span.final_blocks, span.denoise) == (128, True)


def test_prompts_beside_running_requests_are_cut_to_the_prefill_budget():
    spans = plan_rows(
        [Request(0, 100 * BLOCK), Request(64, 64)], block=BLOCK, row_budget=256, prefill_budget=8
    )
    assert [(s.request, s.final_blocks, s.denoise) for s in spans] == [(1, 0, True), (0, 8, False)]


@pytest.mark.parametrize(
    ("masks", "least", "pace", "reach", "rides"),
    [
        (1, 1, 0, 3.0, True),  # the schedule resolves the block
        (2, 1, 0, 0.0, False),
        (32, 32, 0, 0.0, True),
        (6, 1, 2, 3.0, True),  # three times what the best step did, and no more
        (7, 1, 2, 3.0, False),
        (32, 1, 0, float("inf"), True),
    ],
)
def test_the_next_block_rides_along_where_the_one_in_flight_may_be_done(
    masks, least, pace, reach, rides
):
    assert may_resolve(masks, least=least, pace=pace, reach=reach) is rides
