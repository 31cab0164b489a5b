"""The threshold policy and the end of a block, against loops written from the definition."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sglang.decoding.finish import settled_rows
from llada_sglang.decoding.policies.threshold import Threshold
from llada_sglang.decoding.policy import Checkpoint, Step

BLOCK = 8
CONFIDENCES = st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 0.95, 0.951, 1.0, float("nan")])


def unmask(canvas, masked, candidate, confidence, *, threshold, least):
    """One step of the threshold policy; threshold, least: of all rows, or one per row."""
    rows = len(canvas)
    update = Threshold(Checkpoint(BLOCK, mask_id=99)).update(
        Step(
            canvas=canvas,
            masked=masked,
            generated=torch.ones_like(masked),
            candidate=candidate,
            confidence=confidence,
            least=torch.as_tensor(least).reshape(-1, 1).expand(rows, 1),
            numbers={
                "threshold": torch.as_tensor(threshold).double().reshape(-1, 1).expand(rows, 1)
            },
        )
    )
    return update.canvas, update.masked


def unmask_by_loop(masked, confidence, threshold, least):
    """LLaDA2.0 report 5.4, one row, position by position."""
    at = [i for i in range(BLOCK) if masked[i]]
    value = {i: 0.0 if confidence[i] != confidence[i] else confidence[i] for i in at}
    above = [i for i in at if value[i] > threshold]
    if len(above) >= least:
        return set(above)
    grade = {i: round(math.log(v) * 2**14) if v > 0 else -math.inf for i, v in value.items()}
    return set(sorted(at, key=lambda i: (-grade[i], i))[:least])


def test_positions_equal_but_for_rounding_resolve_from_the_left():
    masked = torch.ones(1, BLOCK, dtype=torch.bool)
    canvas = torch.zeros(1, BLOCK, dtype=torch.int64)
    noise = torch.linspace(0.3, 0.3000001, BLOCK)[None]
    _, still = unmask(canvas, masked, canvas, noise, threshold=0.9, least=2)
    assert still.tolist() == [[False, False] + [True] * (BLOCK - 2)]


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=BLOCK, max_size=BLOCK),
            st.lists(CONFIDENCES, min_size=BLOCK, max_size=BLOCK),
            st.sampled_from([0.05, 0.5, 0.95, 1.0]),
            st.integers(1, BLOCK),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_rows_with_different_parameters_unmask_what_the_definition_says(rows):
    masked = torch.tensor([row[0] for row in rows])
    confidence = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    canvas = torch.zeros(masked.shape, dtype=torch.int64)
    candidate = torch.arange(1, BLOCK + 1).expand_as(canvas)
    threshold = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    new, still = unmask(
        canvas,
        masked,
        candidate,
        confidence,
        threshold=threshold,
        least=[row[3] for row in rows],
    )
    for r, (was_masked, _, _, least) in enumerate(rows):
        expected = unmask_by_loop(was_masked, confidence[r].tolist(), float(threshold[r]), least)
        accepted = {i for i in range(BLOCK) if was_masked[i] and not still[r, i]}
        assert accepted == expected
        assert all(new[r, i] == (i + 1 if i in expected else 0) for i in range(BLOCK))


def test_a_masked_block_always_makes_progress_whatever_the_confidence():
    masked = torch.ones(1, BLOCK, dtype=torch.bool)
    canvas = torch.zeros(1, BLOCK, dtype=torch.int64)
    for bad in (float("nan"), 0.0, -1.0):
        _, still = unmask(
            canvas, masked, canvas, torch.full((1, BLOCK), bad), threshold=1.0, least=1
        )
        assert still.sum() == BLOCK - 1


def test_resolved_positions_are_never_touched():
    canvas = torch.arange(BLOCK)[None]
    masked = torch.zeros(1, BLOCK, dtype=torch.bool)
    new, still = unmask(
        canvas, masked, canvas + 100, torch.ones(1, BLOCK), threshold=0.1, least=BLOCK
    )
    assert torch.equal(new, canvas)
    assert not still.any()


def settled_by_loop(canvas, masked, start, stops, text_start, text_end):
    for i in range(BLOCK):
        if masked[i]:
            return start + i >= text_end
        if start + i >= text_start and canvas[i] in stops:
            return True
    return True


@given(
    canvas=st.lists(st.integers(0, 3), min_size=BLOCK, max_size=BLOCK),
    masked=st.lists(st.booleans(), min_size=BLOCK, max_size=BLOCK),
    stops=st.lists(st.integers(0, 3), max_size=2),
    text_start=st.integers(0, 3 * BLOCK),
    length=st.integers(1, 2 * BLOCK),
)
@settings(max_examples=300, deadline=None)
def test_a_block_is_settled_when_its_text_can_no_longer_change(
    canvas, masked, stops, text_start, length
):
    start = BLOCK
    padded = stops + [-1] * (3 - len(stops))
    got = settled_rows(
        torch.tensor([canvas]),
        torch.tensor([masked]),
        torch.tensor([start]),
        stop_ids=torch.tensor([padded]),
        text_start=torch.tensor([text_start]),
        text_end=torch.tensor([text_start + length]),
    )
    expected = settled_by_loop(canvas, masked, start, stops, text_start, text_start + length)
    assert bool(got[0]) == expected
