"""Every rule of `edit` and `levenshtein`, on probabilities from which the result can be told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scripted_logits import DELETE, EOS, MASK, SPLIT, Row, Scripted, run, table

from llada_sglang.reference.editing import Levenshtein
from llada_sglang.reference.tokens import (
    GREEDY,
    Candidate,
    Cell,
    TokenRules,
    candidate_of,
    choose,
    legal,
    noise,
)


def flip(at: int, canvas: list[int]) -> Row:
    """0 for a mask, then 1 and 0 in turn."""
    return {1: 0.9} if canvas[at] == 0 else {0: 0.9}


def test_edit_unmasks_and_edits_in_one_step_and_ends_when_nothing_changes() -> None:
    first = {1: {1: 0.9}, 2: {2: 0.3}, 3: {3: 0.8}}
    later = {1: {5: 0.6}, 2: {2: 0.3}, 3: {4: 0.4}}
    logits_of = Scripted([table(first, {6: 0.99}), table(later, {6: 0.99})])
    result = run(logits_of, [7], policy="edit", max_new_tokens=3)
    assert logits_of.seen == [
        [7, MASK, MASK, MASK],  # 1 and 3 are above 0.7
        [7, 1, MASK, 3],  # nothing is: the best mask; 5 is above 0.5, 4 is not
        [7, 5, 2, 3],
    ]
    assert result.output_ids == (5, 2, 3)
    assert result.unmask_step == (1, 1, 0)
    assert result.confidence == pytest.approx([0.6, 0.3, 0.8])
    assert result.logprob == pytest.approx([math.log(p) for p in (0.6, 0.3, 0.8)])
    assert (result.steps_per_block, result.forwards) == ((3,), 3)


def test_the_step_that_finds_a_block_final_is_shared_with_the_next_blocks_first() -> None:
    kept = run(lambda at, canvas: {1: 0.9}, [], policy="edit", max_new_tokens=12)
    assert (kept.steps_per_block, kept.forwards) == ((2, 2, 2), 4)
    # Ended by its budget while it still changes, a block shares nothing.
    parameters = {"max_post_edit_steps": 2}
    changed = run(flip, [], policy="edit", max_new_tokens=12, parameters=parameters)
    assert changed.forwards == sum(changed.steps_per_block)


@pytest.mark.parametrize(
    ("options", "expected", "last"),
    [
        ({}, (0, 1, 2, 3), 3),  # quality: 0.7 and 0.5
        ({"parameters": {"preset": "speed"}}, (0, 0, 1, 3), 4),
        ({"parameters": {"preset": "speed", "threshold": 0.7}}, (0, 1, 2, 4), 4),
        ({"parameters": {"edit_threshold": 0.4}}, (0, 1, 2, 4), 4),
        ({"threshold": 0.5}, (0, 0, 1, 2), 3),
        ({"threshold": 0.99, "parameters": {"threshold": 0.5}}, (0, 0, 1, 2), 3),
    ],
)
def test_edit_has_presets(options: dict[str, Any], expected: tuple[int, ...], last: int) -> None:
    def script(at: int, canvas: list[int]) -> Row:
        if at == 3:
            return {3: 0.3} if canvas[3] == MASK else {4: 0.45}
        return {at: (0.8, 0.6, 0.4)[at]}

    result = run(script, [], policy="edit", **options)
    assert (result.output_ids, result.unmask_step) == ((0, 1, 2, last), expected)


def test_edit_thresholds_are_strict() -> None:
    half: Row = {1: 0.5, 2: 0.5}
    other: Row = {3: 0.5, 4: 0.5}
    logits_of = Scripted([table({}, half), table({}, half), table({}, other)])
    result = run(logits_of, [], policy="edit", threshold=0.5, block_size=2, max_new_tokens=2)
    assert logits_of.seen == [[MASK, MASK], [1, MASK], [1, 1]]
    assert result.output_ids == (1, 1)


@pytest.mark.parametrize(("budget", "token"), [(0, 0), (1, 1), (2, 0), (3, 1), (16, 0)])
def test_edit_ends_an_oscillation_by_its_budget(budget: int, token: int) -> None:
    parameters = {"max_post_edit_steps": budget}
    result = run(flip, [5, 5], policy="edit", max_new_tokens=6, parameters=parameters)
    assert result.output_ids == (token,) * 6
    assert result.steps_per_block == (1 + budget,) * 2
    assert result.unmask_step == (budget,) * 6


def test_edit_with_budget_0_ends_with_the_last_mask_and_the_edits_of_that_step() -> None:
    first: dict[int, Row] = {0: {1: 0.9}, 1: {2: 0.3}}
    later: dict[int, Row] = {0: {5: 0.9}, 1: {2: 0.3}}
    options: dict[str, Any] = {"block_size": 2, "max_new_tokens": 2}
    options["parameters"] = {"max_post_edit_steps": 0}
    result = run([table(first), table(later)], [], policy="edit", **options)
    assert (result.output_ids, result.unmask_step, result.forwards) == ((5, 2), (1, 1), 2)


def test_edit_takes_the_penalty_from_the_token_before() -> None:
    stutter: Row = {3: 0.6, 4: 0.4}
    parameters: dict[str, Any] = {"preset": "speed", "penalty_lambda": 1.0}
    logits_of = Scripted(table({}, stutter))
    result = run(logits_of, [3], policy="edit", parameters=parameters, max_new_tokens=3)
    # Behind 3, weights 0.6/e and 0.4 make it 4; behind 4 or a mask it is 3.
    assert logits_of.seen == [[3, MASK, MASK, MASK], [3, 4, 3, 3], [3, 4, 3, 4]]
    assert result.output_ids == (4, 3, 4)
    weak = 0.6 / math.e
    assert result.confidence == pytest.approx([0.4 / (0.4 + weak), 0.6, 0.4 / (0.4 + weak)])
    assert result.logprob[0] == pytest.approx(math.log(0.4 / (0.4 + weak)), abs=1e-6)
    other_block = run(logits_of, [3] * 4, policy="edit", parameters=parameters, max_new_tokens=2)
    assert other_block.output_ids == (3, 4)


def test_edit_looks_for_a_stop_in_finished_blocks_only() -> None:
    def script(at: int, canvas: list[int]) -> Row:
        if at == 1:
            return {EOS: 0.9} if canvas[at] == MASK else {1: 0.9}
        return {EOS: 0.9} if at == 6 else {2: 0.9}

    result = run(script, [], policy="edit", max_new_tokens=20)
    assert result.output_ids == (2, 1, 2, 2, 2, 2, EOS)
    assert (result.finish_reason, result.steps_per_block) == ("stop", (3, 2))
    endless = run(script, [], policy="edit", max_new_tokens=9, ignore_eos=True)
    assert endless.output_ids == (2, 1, 2, 2, 2, 2, EOS, 2, 2)
    assert endless.finish_reason == "length"


@pytest.mark.parametrize("policy", ["edit", "levenshtein"])
def test_editing_denoises_whole_blocks_and_cuts_the_text(policy: str) -> None:
    def script(at: int, canvas: list[int]) -> Row:
        return {1 if at < 4 or canvas[7] != 5 else 6: 0.9} if at != 7 else {5: 0.9}

    long = run(script, [], policy=policy, max_new_tokens=8)
    assert long.output_ids == (1, 1, 1, 1, 6, 6, 6, 5)
    for count in range(1, 8):
        short = run(script, [], policy=policy, max_new_tokens=count)
        assert short.output_ids == long.output_ids[:count]
        assert short.unmask_step == long.unmask_step[:count]
        assert short.steps_per_block == long.steps_per_block[: -(-count // 4)]
    late_stop = run(table({3: {EOS: 0.9}}, {1: 0.9}), [], policy=policy, max_new_tokens=3)
    assert (late_stop.output_ids, late_stop.finish_reason) == ((1, 1, 1), "length")


@pytest.mark.parametrize("policy", ["edit", "levenshtein"])
def test_editing_obeys_bias_and_min_new_tokens_on_tokens_already_there(policy: str) -> None:
    def script(at: int, canvas: list[int]) -> Row:
        return {1: 0.9} if canvas[at] == MASK else {EOS: 0.6, 2: 0.3}

    assert run(script, [], policy=policy).output_ids == (EOS,)
    rules = TokenRules(min_new_tokens=2)
    assert run(script, [], policy=policy, rules=rules).output_ids == (2, 2, EOS)
    rules = TokenRules(logit_bias=((EOS, -100.0), (2, -100.0)))
    assert set(run(script, [], policy=policy, rules=rules).output_ids) <= set(range(11)) - {2}


@pytest.mark.parametrize("policy", ["edit", "levenshtein"])
def test_editing_draws_by_seed_position_and_step(policy: str) -> None:
    rules = TokenRules(temperature=1.5, top_k=5, seed=9)
    row: Row = {0: 0.3, 1: 0.25, 2: 0.2, 3: 0.15, 4: 0.1}
    logits_of = Scripted(table({}, row))
    parameters = {"threshold": 0.0, "edit_threshold": 0.0, "max_post_edit_steps": 2}
    result = run(logits_of, [7], policy=policy, rules=rules, parameters=parameters)

    def drawn(at: int, step: int) -> int:
        return choose(legal(Scripted.row(row), [MASK]), rules, noise(9, at, step))[0]

    assert logits_of.seen[1] == [7, *(drawn(at, 0) for at in range(1, 4))]
    assert logits_of.seen[2] == [7, *(drawn(at, 1) for at in range(1, 4))]
    assert result.output_ids[:3] == tuple(drawn(at, 2) for at in range(1, 4))


def test_other_policies_take_delete_and_split_for_tokens() -> None:
    rows: dict[int, Row] = {0: {DELETE: 0.9}, 1: {SPLIT: 0.9}}
    for policy in ("threshold", "edit"):
        result = run(table(rows), [], policy=policy, block_size=2, max_new_tokens=2)
        assert result.output_ids == (DELETE, SPLIT)


def levenshtein(budget: int = 16, threshold: float = 0.5) -> Levenshtein:
    return Levenshtein(threshold, 0.0, budget, delete_id=DELETE, split_id=SPLIT, rules=GREEDY)


def found_by(rows: dict[int, Row]) -> Any:
    def find(*, excluded: Any = (), adjust: Any = None) -> dict[int, Candidate]:
        return {
            at: candidate_of(legal(Scripted.row(row), [MASK, *excluded]), GREEDY, 0.0)
            for at, row in rows.items()
        }

    return find


def tokens(cells: list[Cell]) -> list[int | None]:
    return [cell.token for cell in cells]


def test_delete_closes_the_gap_and_fills_up_with_a_new_mask() -> None:
    first: dict[int, Row] = {1: {1: 0.9}, 2: {DELETE: 0.8}, 3: {3: 0.7}}
    later: dict[int, Row] = {1: {1: 0.9}, 2: {3: 0.9}, 3: {4: 0.3}}
    logits_of = Scripted([table(first), table(later)])
    result = run(logits_of, [7], policy="levenshtein", max_new_tokens=3)
    assert logits_of.seen == [[7, MASK, MASK, MASK], [7, 1, 3, MASK], [7, 1, 3, 4]]
    assert result.output_ids == (1, 3, 4)
    assert result.unmask_step == (0, 0, 1)
    assert result.confidence == pytest.approx([0.9, 0.7, 0.3])
    assert result.logprob == pytest.approx([math.log(p) for p in (0.9, 0.7, 0.3)])
    assert result.steps_per_block == (3,)


FILL: dict[int, Row] = {i: {i + 1: 0.9} for i in range(4)}  # 1 2 3 4


@pytest.mark.parametrize(
    ("actions", "after", "steps"),
    [
        ({1: SPLIT}, [1, MASK, 2, 3], (0, 2, 0, 0)),
        ({3: SPLIT}, [1, 2, 3, MASK], (0, 0, 0, 2)),
        ({0: SPLIT, 1: SPLIT}, [MASK, 1, MASK, 2], (2, 0, 2, 0)),
        ({0: SPLIT, 1: SPLIT, 2: SPLIT}, [MASK, 1, MASK, 2], (2, 0, 2, 0)),
        ({0: DELETE}, [2, 3, 4, MASK], (0, 0, 0, 2)),
        ({1: DELETE, 3: DELETE}, [1, 3, MASK, MASK], (0, 0, 2, 2)),
        ({0: DELETE, 2: SPLIT}, [2, MASK, 3, 4], (0, 2, 0, 0)),
        ({0: SPLIT, 3: DELETE}, [MASK, 1, 2, 3], (2, 0, 0, 0)),
        ({1: DELETE, 2: DELETE, 3: SPLIT}, [1, MASK, 4, MASK], (0, 2, 0, 2)),
        ({0: 7, 1: SPLIT, 2: DELETE}, [7, MASK, 2, 4], (1, 2, 0, 0)),
    ],
)
def test_actions_go_from_left_to_right_on_a_block_of_fixed_length(
    actions: dict[int, int], after: list[int], steps: tuple[int, ...]
) -> None:
    change: dict[int, Row] = {**FILL, **{at: {token: 0.8} for at, token in actions.items()}}

    def settle(at: int, canvas: list[int]) -> Row:
        return {5: 0.1} if canvas[at] in (MASK, 5) else {canvas[at]: 0.9}

    logits_of = Scripted([table(FILL), table(change), settle])
    result = run(logits_of, [], policy="levenshtein")
    assert logits_of.seen[1:3] == [[1, 2, 3, 4], after]
    assert result.output_ids == tuple(5 if token == MASK else token for token in after)
    assert result.unmask_step == steps


def test_the_prompt_stays_where_it_is_whatever_the_model_says_of_it() -> None:
    everything = table({}, {DELETE: 0.9, 1: 0.05})
    prompt = [DELETE, MASK, SPLIT, EOS, 7, DELETE]
    logits_of = Scripted(everything)
    result = run(logits_of, prompt, policy="levenshtein", max_new_tokens=5)
    assert all(canvas[:6] == prompt for canvas in logits_of.seen)
    assert result.output_ids == (1,) * 5
    assert result.finish_reason == "length"


def test_a_split_original_mask_stays_original_and_a_new_one_raises_k() -> None:
    low: dict[int, Row] = {i: {i: p} for i, p in enumerate((0.2, 0.3, 0.25, 0.22))}
    scripts = [
        table({**low, 0: {SPLIT: 0.9}}),  # k = 1: n o o o, one o is cut off
        table({**low, 1: {1: 0.6}}),  # k = 2: 1 and the best other one, 2
        table(low),  # k = 2: both masks
    ]
    logits_of = Scripted(scripts)
    result = run(logits_of, [], policy="levenshtein", parameters={"edit_threshold": 0.9})
    # Position 2 writes its second candidate, 0, as the block stood like this before.
    assert logits_of.seen == [[MASK] * 4, [MASK] * 4, [MASK, 1, 0, MASK], [0, 1, 0, 3]]
    assert result.unmask_step == (2, 1, 1, 2)


def test_above_the_threshold_there_must_be_k_positions() -> None:
    block = levenshtein()
    cells = [Cell(original=False), Cell(), Cell(), Cell()]
    p = {0: 0.1, 1: 0.4, 2: 0.6, 3: 0.2}
    out, _ = block.step(cells, found_by({at: {at + 1: p[at]} for at in p}))
    assert tokens(out) == [None, 2, 3, None]  # {2} is fewer than 2, so the best two
    p |= {3: 0.7}
    out, _ = levenshtein().step(cells, found_by({at: {at + 1: p[at]} for at in p}))
    assert tokens(out) == [None, None, 3, 4]
    out, _ = levenshtein().step(cells[1:], found_by({at: {at + 1: 0.2} for at in range(3)}))
    assert tokens(out) == [1, None, None]  # no new masks: one of equals, the lower
    new = [Cell(original=False)] * 3
    out, _ = levenshtein().step(new, found_by({at: {at + 1: 0.2} for at in range(3)}))
    assert tokens(out) == [1, 2, 3]  # no original masks: all of them


def test_the_budgets_last_post_edit_step_is_final() -> None:
    rows = table({}, {DELETE: 0.6, 1: 0.3, 2: 0.1})
    options: dict[str, Any] = {"policy": "levenshtein", "block_size": 2, "max_new_tokens": 2}
    logits_of = Scripted(rows)
    result = run(logits_of, [], **options, parameters={"max_post_edit_steps": 2})
    # Step 0 deletes both masks. Step 1, post-edit, finds the same block: position 0 takes its
    # second candidate. Step 2 is final: without DELETE 1 has 0.3 of 0.4.
    assert logits_of.seen == [[MASK, MASK], [MASK, MASK], [1, MASK]]
    assert (result.output_ids, result.unmask_step) == ((1, 1), (1, 2))
    assert result.confidence == pytest.approx([0.3, 0.75])
    assert result.logprob == pytest.approx([math.log(0.3), math.log(0.75)])
    one = run(rows, [], **options, parameters={"max_post_edit_steps": 1})
    assert (one.output_ids, one.unmask_step, one.forwards) == ((1, 1), (1, 1), 2)


def test_with_budget_0_the_step_that_takes_the_last_original_mask_is_final() -> None:
    scripts = [
        table({0: {1: 0.9}, 1: {DELETE: 0.3, 2: 0.2}, 2: {DELETE: 0.3, 3: 0.2}}),
        table({0: {DELETE: 0.9, 4: 0.1}, 1: {DELETE: 0.8, 2: 0.2}, 2: {SPLIT: 0.9, 3: 0.1}}),
    ]
    options: dict[str, Any] = {"policy": "levenshtein", "block_size": 3, "max_new_tokens": 3}
    result = run(scripts, [], **options, parameters={"max_post_edit_steps": 0})
    assert (result.output_ids, result.unmask_step) == ((4, 2, 3), (1, 1, 1))
    assert result.confidence == pytest.approx([1.0, 1.0, 1.0])
    # With any budget the same step is an ordinary one.
    logits_of = Scripted(scripts)
    run(logits_of, [], **options, parameters={"max_post_edit_steps": 1})
    assert logits_of.seen[2] == [MASK, MASK, MASK]


def test_with_budget_0_the_first_step_without_original_masks_is_final() -> None:
    block = levenshtein(budget=0)
    cells = [Cell(1), Cell(original=False)]
    out, finished = block.step(cells, found_by({0: {DELETE: 0.9, 3: 0.1}, 1: {SPLIT: 0.9, 4: 0.1}}))
    assert (tokens(out), finished) == ([3, 4], True)


def test_a_block_whose_original_masks_never_go_ends_at_the_cap() -> None:
    scripts = [
        table({0: {SPLIT: 0.9}}),
        # The block stands as before, so position 1, the worse, takes its second: SPLIT.
        table({0: {DELETE: 0.9}, 1: {1: 0.6, SPLIT: 0.3}}),
        table({0: {DELETE: 0.9}, 1: {1: 0.6, 2: 0.2, SPLIT: 0.15}}),
        # Step B + 0 + 1: final, though masks 1 and 2 are original.
        table({0: {DELETE: 0.9, 3: 0.1}, 1: {1: 0.6}, 2: {2: 0.2}}),
    ]
    logits_of = Scripted(scripts)
    options: dict[str, Any] = {"policy": "levenshtein", "block_size": 3, "max_new_tokens": 3}
    result = run(logits_of, [], **options, parameters={"max_post_edit_steps": 0})
    assert logits_of.seen == [[MASK] * 3] * 4
    assert (result.output_ids, result.unmask_step) == ((3, 1, 2), (3, 3, 3))


def test_a_final_step_edits_too() -> None:
    parameters = {"max_post_edit_steps": 1}
    result = run(flip, [], policy="levenshtein", parameters=parameters)
    assert (result.output_ids, result.forwards) == ((1,) * 4, 2)


def test_a_repeated_block_gives_the_worst_position_another_candidate() -> None:
    def script(at: int, canvas: list[int]) -> Row:
        p = 0.9 if at == 0 else 0.8
        return {1: p, 2: 0.05} if canvas[at] == 0 else {0: p, 2: 0.05}

    logits_of = Scripted(script)
    options: dict[str, Any] = {"policy": "levenshtein", "block_size": 2, "max_new_tokens": 2}
    result = run(logits_of, [], **options, parameters={"max_post_edit_steps": 5})
    assert logits_of.seen == [
        [MASK, MASK],
        [0, 0],
        [1, 1],
        [0, 0],  # seen once before: position 1 takes its second likeliest
        [1, 2],
        [0, 0],  # seen twice, but final
    ]
    assert result.output_ids == (1, 1)
    longer = Scripted(script)
    result = run(longer, [], **options, parameters={"max_post_edit_steps": 6})
    assert longer.seen[5:] == [[0, 0], [1, 0]]  # the third: the lowest id of the rest
    assert result.output_ids == (0, 1)


def test_a_second_candidate_has_the_confidence_of_temperature_one_and_may_be_the_same_token() -> (
    None
):
    block = levenshtein()
    cells = [Cell(0), Cell(5)]
    rows: dict[int, Row] = {0: {1: 0.6, 0: 0.3}, 1: {5: 0.9}}
    assert tokens(block.step(cells, found_by(rows))[0]) == [1, 5]
    out, finished = block.step(cells, found_by(rows))
    assert (tokens(out), finished) == ([0, 5], False)
    assert out[0].step == 1
    assert out[0].confidence == pytest.approx(0.3)
    assert out[1].step == -1


def test_the_lower_of_equally_bad_positions_changes_and_actions_may_come_second() -> None:
    block = levenshtein()
    cells = [Cell(1), Cell(2)]
    rows: dict[int, Row] = {0: {3: 0.6, SPLIT: 0.3}, 1: {4: 0.6, DELETE: 0.3}}
    assert tokens(block.step(cells, found_by(rows))[0]) == [3, 4]
    assert tokens(block.step(cells, found_by(rows))[0]) == [None, 1]


def test_the_eighth_candidate_is_the_last_resort() -> None:
    block = levenshtein(budget=100)
    row: Row = {i: 0.5 / 2**i for i in range(8)}  # 0 to 7 by rank, then 8 and 9
    cells = [Cell(6)]
    taken = [tokens(block.step(cells, found_by({0: row}))[0])[0] for _ in range(11)]
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]


def test_equal_logits_rank_by_id_and_fewer_than_eight_end_with_the_last() -> None:
    block = levenshtein(budget=100)
    cells = [Cell(6)]
    row: Row = {5: 0.4, 2: 0.3, 3: 0.3}
    taken = [tokens(block.step(cells, found_by({0: row}))[0])[0] for _ in range(5)]
    assert taken == [5, 2, 3, 3, 3]


def test_levenshtein_stops_at_the_first_stop_of_a_finished_block() -> None:
    def script(at: int, canvas: list[int]) -> Row:
        if at == 2 and canvas[2] == MASK and canvas[0] == MASK:
            return {DELETE: 0.9}
        if at == 3 and canvas[2] != EOS:
            return {EOS: 0.9}
        return {EOS: 0.9} if canvas[at] == EOS else {1: 0.9}

    result = run(script, [], policy="levenshtein", max_new_tokens=12)
    assert (result.output_ids, result.finish_reason) == ((1, 1, EOS), "stop")
    assert result.unmask_step == (0, 0, 0)
    assert len(result.steps_per_block) == 1
