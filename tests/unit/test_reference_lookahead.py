"""Several blocks in flight, on probabilities from which every step can be told."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_logits import EOS, MASK, Row, Scripted, run, table

from llada_sglang.reference.tokens import TokenRules

M = MASK
SURE: Row = {7: 0.99}


def front(*p: float) -> dict[int, Row]:
    """The first block wants token i at position i with these probabilities."""
    return {i: {i: x} for i, x in enumerate(p)}


def ahead(rows: dict[int, Row] | Any, prompt: list[int], **options: Any) -> tuple[Any, Scripted]:
    logits_of = Scripted(table(rows, SURE) if isinstance(rows, dict) else rows)
    values: dict[str, Any] = {"max_new_tokens": 8, "threshold": 0.9, "lookahead": 2} | options
    return run(logits_of, prompt, **values), logits_of


def test_the_next_block_starts_at_half_and_waits_when_it_is_resolved() -> None:
    result, logits_of = ahead(front(0.99, 0.3, 0.4, 0.5), [])
    assert logits_of.seen == [
        [M, M, M, M],
        [0, M, M, M],
        [0, M, M, 3, M, M, M, M],  # half of the block is there
        [0, M, 2, 3, 7, 7, 7, 7],  # the second waits
    ]
    assert result.output_ids == (0, 1, 2, 3, 7, 7, 7, 7)
    assert result.unmask_step == (0, 3, 2, 1, 0, 0, 0, 0)
    assert (result.steps_per_block, result.forwards) == ((4, 1), 4)
    alone, _ = ahead(front(0.99, 0.3, 0.4, 0.5), [], lookahead=1)
    assert (alone.steps_per_block, alone.forwards) == ((4, 1), 5)
    assert alone.output_ids == result.output_ids


@pytest.mark.parametrize(("start", "steps"), [(0.0, 0), (0.2, 1), (0.25, 1), (0.75, 3), (1.0, 4)])
def test_the_share_that_starts_a_block_is_inclusive(start: float, steps: int) -> None:
    _, logits_of = ahead(front(0.4, 0.3, 0.2, 0.15), [], lookahead_start=start)
    assert [len(canvas) for canvas in logits_of.seen].index(8) == steps


def test_the_prompt_counts_as_resolved() -> None:
    _, logits_of = ahead(front(0.4, 0.4, 0.4, 0.4), [5, 5])
    assert logits_of.seen[:2] == [[5, 5, M, M, M, M, M, M], [5, 5, 2, M, 7, 7, 7, 7]]


def test_no_block_starts_behind_the_end_of_the_text() -> None:
    result, logits_of = ahead({}, [], max_new_tokens=4, lookahead=3, lookahead_start=0.0)
    assert [len(canvas) for canvas in logits_of.seen] == [4]
    assert result.forwards == 1
    result, logits_of = ahead({}, [], max_new_tokens=5, lookahead=3, lookahead_start=0.0)
    assert [len(canvas) for canvas in logits_of.seen] == [8]
    assert result.output_ids == (7,) * 5


def test_a_block_is_forced_from_the_share_of_the_one_before() -> None:
    rows = {**front(0.4, 0.4, 0.4, 0.4), **{i: {i: 0.3} for i in range(4, 8)}}
    result, logits_of = ahead(rows, [], lookahead_semi=0.75)
    assert logits_of.seen == [
        [M, M, M, M],
        [0, M, M, M],
        [0, 1, M, M, M, M, M, M],  # started, not forced: nothing is above the threshold
        [0, 1, 2, M, M, M, M, M],  # forced
        [0, 1, 2, 3, 4, M, M, M],
        [0, 1, 2, 3, 4, 5, M, M],
        [0, 1, 2, 3, 4, 5, 6, M],
    ]
    assert result.unmask_step == (0, 1, 2, 3, 1, 2, 3, 4)
    assert (result.steps_per_block, result.forwards) == ((4, 5), 7)


def test_the_schedule_counts_forced_steps_only() -> None:
    rows = {**front(0.4, 0.4, 0.4, 0.4), **{i: {i: 0.3} for i in range(4, 8)}}
    result, logits_of = ahead(rows, [], steps=3)  # 2, 1, 1
    assert logits_of.seen == [
        [M, M, M, M],
        [0, 1, M, M, M, M, M, M],
        [0, 1, 2, M, M, M, M, M],
        [0, 1, 2, 3, M, M, M, M],  # the third step of the block, its first forced one
        [0, 1, 2, 3, 4, 5, M, M],
        [0, 1, 2, 3, 4, 5, 6, M],
    ]
    assert result.unmask_step[4:] == (2, 2, 3, 4)
    result, _ = ahead(rows, [], policy="steps", steps=3)
    assert result.unmask_step[4:] == (2, 2, 3, 4)


def test_all_blocks_of_a_step_see_the_same_canvas() -> None:
    def script(at: int, canvas: list[int]) -> Row:
        resolved = sum(token != MASK for token in canvas)
        return {resolved: 0.99 if at >= 4 or at == resolved else 0.3}

    result, logits_of = ahead(script, [], lookahead_start=0.25, lookahead_semi=0.3)
    assert logits_of.seen == [
        [M, M, M, M],
        [0, M, M, M, M, M, M, M],
        [0, 1, M, M, 1, 1, 1, 1],
        [0, 1, 6, M, 1, 1, 1, 1],
    ]
    assert result.output_ids == (0, 1, 6, 7, 1, 1, 1, 1)


def test_three_blocks_start_one_by_one_and_the_front_makes_room() -> None:
    result, logits_of = ahead(front(0.4, 0.4, 0.4, 0.4), [], lookahead=3, max_new_tokens=20)
    # Step 3 resolves the last of the front and all of the third block, so three are done at once;
    # the fifth starts once half of the fourth is there.
    assert [len(canvas) for canvas in logits_of.seen] == [4, 4, 8, 12, 16, 20]
    assert (result.steps_per_block, result.forwards) == ((4, 1, 1, 1, 1), 6)
    _, logits_of = ahead(
        front(0.4, 0.4, 0.4, 0.4), [], lookahead=3, max_new_tokens=20, lookahead_start=0.0
    )
    assert [len(canvas) for canvas in logits_of.seen] == [12, 12, 12, 12, 20]


def test_a_stop_in_the_front_block_drops_what_was_ahead() -> None:
    rows = {**front(0.99, 0.99, 0.4, 0.5), 2: {EOS: 0.4}}
    result, logits_of = ahead(rows, [], max_new_tokens=12)
    assert logits_of.seen == [[M] * 4, [0, 1, M, M, M, M, M, M], [0, 1, M, 3, 7, 7, 7, 7]]
    assert (result.output_ids, result.finish_reason) == ((0, 1, EOS), "stop")
    assert (result.steps_per_block, result.forwards) == ((3,), 3)


def test_no_block_starts_while_a_stop_is_in_flight_even_behind_a_mask() -> None:
    rows = {**front(0.3, 0.99, 0.4, 0.99), 3: {EOS: 0.99}}
    _, logits_of = ahead(rows, [], lookahead_start=0.0)
    assert [len(canvas) for canvas in logits_of.seen] == [8, 8, 8]
    result, logits_of = ahead(rows, [])
    assert logits_of.seen == [[M] * 4, [M, 1, M, EOS], [M, 1, 2, EOS]]
    assert result.output_ids == (0, 1, 2, EOS)
    ignored, logits_of = ahead(rows, [], ignore_eos=True)
    assert [len(canvas) for canvas in logits_of.seen] == [4, 8, 8]
    assert ignored.output_ids == (0, 1, 2, EOS, 7, 7, 7, 7)


def test_a_stop_of_the_prompt_holds_nothing_up() -> None:
    _, logits_of = ahead(front(0.3, 0.3, 0.3, 0.3), [EOS, EOS])
    assert len(logits_of.seen[0]) == 8


def test_a_stop_in_a_later_block_lets_it_wait_and_ends_the_text_in_its_turn() -> None:
    rows = {**front(0.99, 0.99, 0.4, 0.3), 4: {5: 0.99}, 5: {EOS: 0.99}, 6: {1: 0.3}, 7: {1: 0.3}}
    result, logits_of = ahead(rows, [], max_new_tokens=20, lookahead=3, lookahead_start=0.4)
    assert logits_of.seen == [
        [M] * 4,
        [0, 1, M, M, M, M, M, M],
        [0, 1, 2, M, 5, EOS, M, M],  # settled: no forward for its masks, no third block
    ]
    assert (result.output_ids, result.finish_reason) == ((0, 1, 2, 3, 5, EOS), "stop")
    assert (result.steps_per_block, result.forwards) == ((3, 1), 3)
    assert result.unmask_step == (0, 0, 1, 2, 0, 0)

    late, logits_of = ahead(rows, [], max_new_tokens=20, eos_early_stop=False)
    assert logits_of.seen[3:] == [
        [0, 1, 2, 3, 5, EOS, M, M],
        [0, 1, 2, 3, 5, EOS, 1, M],
    ]
    assert late.output_ids == result.output_ids
    assert late.steps_per_block == (3, 4)


def test_a_block_cut_by_the_limit_waits_once_nothing_before_it_is_masked() -> None:
    rows = {**front(0.4, 0.4, 0.4, 0.4), 6: {1: 0.3}, 7: {1: 0.3}}
    result, logits_of = ahead(rows, [], max_new_tokens=6)
    assert logits_of.seen[2:] == [
        [0, 1, M, M, M, M, M, M],
        [0, 1, 2, M, 7, 7, M, M],
    ]
    assert (result.output_ids, result.finish_reason) == ((0, 1, 2, 3, 7, 7), "length")
    assert (result.steps_per_block, result.forwards) == ((4, 1), 4)


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("prompt", [[], [5], [5, 5, 5, 5, 5, 5]])
def test_max_new_tokens_cuts_the_text_wherever_it_ends(count: int, prompt: list[int]) -> None:
    rows = {i: {i % 8: 0.3 + 0.02 * (i * 7 % 5)} for i in range(24)}
    result, _ = ahead(rows, prompt, max_new_tokens=count, lookahead=3)
    start = len(prompt)
    assert result.output_ids == tuple(i % 8 for i in range(start, start + count))
    assert len(result.unmask_step) == len(result.confidence) == len(result.logprob) == count
    assert len(result.steps_per_block) == -(-(start + count) // 4) - start // 4


def test_penalties_count_what_later_blocks_hold() -> None:
    rows: dict[int, Row] = {**front(0.99, 0.99, 0.4), 3: {7: 0.35, 6: 0.3}}
    result, logits_of = ahead(rows, [], rules=TokenRules(presence_penalty=3.0), threshold=0.8)
    assert logits_of.seen[2] == [0, 1, 2, M, 7, 7, 7, 7]
    assert result.output_ids[3] == 6
    alone, _ = ahead(rows, [], rules=TokenRules(presence_penalty=3.0), threshold=0.8, lookahead=1)
    assert alone.output_ids[3] == 7


def test_entropy_counts_the_last_one_too_where_nothing_is_forced() -> None:
    half: Row = {1: 0.5, 2: 0.5}  # ln 2 = 0.693
    rows: dict[int, Row] = {i: {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25} for i in range(4)}
    rows |= {4: half, 5: {7: 1.0}, 6: half, 7: half}
    parameters = {"gamma": 0.7}
    result, logits_of = ahead(rows, [5], policy="entropy", parameters=parameters, max_new_tokens=7)
    assert logits_of.seen == [
        [5, M, M, M],
        [5, 0, M, M, M, M, M, M],
        [5, 0, 0, M, 1, 7, M, M],  # 0 and one ln 2; then one each step
        [5, 0, 0, 0, 1, 7, 1, M],
    ]
    assert result.unmask_step == (0, 1, 2, 0, 0, 1, 2)


@pytest.mark.parametrize("policy", ["hierarchical", "credit", "factor"])
def test_a_block_that_is_not_forced_takes_the_policy_s_own_choice(policy: str) -> None:
    rows = {**front(0.2, 0.2, 0.2, 0.2), 4: {4: 0.3}, 5: {5: 0.97}, 6: {6: 0.3}, 7: {7: 0.3}}
    result, logits_of = ahead(rows, [5, 5], policy=policy, max_new_tokens=6, threshold=None)
    assert logits_of.seen[1] == [5, 5, 2, M, M, 5, M, M]
    assert logits_of.seen[2] == [5, 5, 2, 3, M, 5, M, M]
    assert result.unmask_step[2:] == (2, 0, 3, 4)
