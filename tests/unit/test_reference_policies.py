"""Every rule of the unmasking policies, on probabilities from which the result can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scripted_logits import EOS, MASK, Row, Scripted, run, table

from llada_sglang.reference.decode import decode_with
from llada_sglang.reference.policies import Credit
from llada_sglang.reference.tokens import TokenRules


def sure(*probabilities: float) -> dict[int, Row]:
    """Position i wants token i with these probabilities."""
    return {i: {i: p} for i, p in enumerate(probabilities)}


def order(
    rows: Mapping[int, Row], policy: str, *, count: int = 4, **options: Any
) -> tuple[int, ...]:
    """The step at which each position of one block of `count` was unmasked."""
    values = {"block_size": count, "max_new_tokens": count, "policy": policy} | options
    return run(table(rows), [], **values).unmask_step


def test_a_parameter_goes_before_the_keyword_and_the_keyword_before_the_default() -> None:
    rows = sure(0.96, 0.8, 0.6, 0.4)
    assert order(rows, "threshold") == (0, 1, 2, 3)
    assert order(rows, "threshold", threshold=0.7) == (0, 0, 1, 2)
    parameters = {"threshold": 0.5}
    assert order(rows, "threshold", threshold=0.7, parameters=parameters) == (0, 0, 0, 1)


def test_steps_takes_the_best_by_schedule_whatever_their_confidence() -> None:
    rows = sure(0.99, 0.999, 0.3, 0.4)
    assert order(rows, "steps") == (1, 0, 3, 2)
    assert order(rows, "steps", steps=2) == (0, 0, 1, 1)
    assert order(rows, "steps", steps=3) == (0, 0, 2, 1)
    assert order(rows, "steps", steps=4, minimal_topk=4) == (0, 0, 0, 0)


def test_steps_gives_ties_to_the_lower_position() -> None:
    assert order(sure(0.5, 0.5, 0.5, 0.5), "steps", steps=2) == (0, 0, 1, 1)
    nearly = sure(0.50000001, 0.5, 0.50000002, 0.5)
    assert order(nearly, "steps") == (0, 1, 2, 3)


EVEN = {ways: dict.fromkeys(range(ways), 1 / ways) for ways in (1, 2, 4)}  # entropy ln(ways)


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.0, (2, 0, 0, 1)),  # entropies in order: 0 at 1, ln 2 at 2 and 3, ln 4 at 0
        (0.1, (2, 0, 0, 1)),
        (0.7, (1, 0, 0, 0)),
        (1.3, (1, 0, 0, 0)),
        (1.4, (0, 0, 0, 0)),
    ],
)
def test_entropy_bounds_the_sum_but_for_the_last_one(
    gamma: float, expected: tuple[int, ...]
) -> None:
    rows = {0: EVEN[4], 1: EVEN[1], 2: EVEN[2], 3: EVEN[2]}
    assert order(rows, "entropy", parameters={"gamma": gamma}) == expected


def test_entropy_goes_by_entropy_but_falls_back_on_confidence() -> None:
    broad = {0: 0.6, 1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1}  # more probable, but of entropy 1.23
    rows = {0: broad, 1: EVEN[2], 2: EVEN[2], 3: EVEN[4]}
    assert order(rows, "entropy") == (2, 0, 1, 3)
    # At least two a step: {1} is too small, so the best two by confidence go, then the others.
    assert order(rows, "entropy", steps=2) == (0, 0, 1, 1)


def test_entropy_is_that_after_bias_and_at_temperature_one() -> None:
    rows = {0: EVEN[4], 1: {0: 0.5, 4: 0.5}, 2: EVEN[4], 3: EVEN[4]}
    against = ((1, -100.0), (2, -100.0), (3, -100.0))  # leaves one token of EVEN[4]
    rules = TokenRules(logit_bias=against)
    assert order(rows, "entropy", rules=rules) == (0, 0, 0, 0)
    rules = TokenRules(logit_bias=against[1:])  # leaves two of four, as position 1 has
    assert order(rows, "entropy", rules=rules) == (0, 1, 2, 3)
    cold = TokenRules(logit_bias=against[1:], temperature=0.01)
    assert order(rows, "entropy", rules=cold) == (0, 1, 2, 3)


def test_hierarchical_takes_the_best_of_each_run_of_masks() -> None:
    rows = sure(0.6, 0.3, 0.97, 0.3, 0.4, 0.7)
    # Runs: all; 0-1 and 3-5; 1 and 3-4, none above 0.5; 1 and 3, equal; 3.
    assert order(rows, "hierarchical", count=6) == (1, 3, 0, 4, 2, 1)
    low = {"low_threshold": 0.2}
    assert order(rows, "hierarchical", count=6, parameters=low) == (1, 2, 0, 3, 2, 1)


def test_hierarchical_thresholds_are_strict_and_ties_of_a_run_go_left() -> None:
    rows: dict[int, Row] = {0: {0: 0.6}, 1: {1: 0.6}, 2: {2: 0.99}, 3: EVEN[2], 4: EVEN[2]}
    assert order(rows, "hierarchical", count=5) == (1, 2, 0, 3, 4)


def test_hierarchical_keeps_to_the_schedule() -> None:
    rows = sure(0.6, 0.3, 0.97, 0.3, 0.4, 0.7)
    # {2} is too small for 3 a step; then {1} and {3-4} give nothing, so all three are forced.
    assert order(rows, "hierarchical", count=6, steps=2) == (0, 1, 0, 1, 1, 0)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.0, (0, 0, 1, 2)),  # 2 * 0.1, 3 * 0.2 and 4 * 0.3; then 2 * 0.3 and 3 * 0.8
        (1.3, (0, 0, 0, 1)),
        (0.5, (0, 1, 2, 3)),
        (5.0, (0, 0, 0, 0)),
    ],
)
def test_factor_takes_the_longest_prefix_of_the_best(
    factor: float, expected: tuple[int, ...]
) -> None:
    assert order(sure(0.9, 0.8, 0.7, 0.2), "factor", parameters={"factor": factor}) == expected


def test_factor_is_strict_and_its_ranks_start_anew_each_step() -> None:
    rows = dict.fromkeys(range(4), EVEN[2])  # 2 * 0.5 is not below 1
    assert order(rows, "factor") == (0, 1, 2, 3)
    assert order(rows, "factor", parameters={"factor": 1.01}) == (0, 1, 2, 3)
    assert order(rows, "factor", parameters={"factor": 1.51}) == (0, 0, 1, 1)
    assert order(rows, "factor", steps=2) == (0, 0, 1, 1)


def raised(weights: dict[int, float], credit: dict[int, float], token: int) -> float:
    """The probability of a token once each weight has its credit, alpha = 0.7."""
    after = {t: w * math.exp(0.7 * math.log(1 + credit.get(t, 0.0))) for t, w in weights.items()}
    return after[token] / sum(after.values())


def test_credit_of_a_steady_token_adds_up() -> None:
    rows: dict[int, Row] = {0: {1: 0.5, 2: 0.3, 3: 0.2}, 1: {4: 0.6, 5: 0.4}}
    result = run(table(rows), [], policy="credit", block_size=2, max_new_tokens=2)
    q = 0.5**0.2
    expected = (
        raised(rows[0], {1: 0.8 * q + q}, 1),  # type: ignore[arg-type]
        raised(rows[1], {4: 0.6**0.2}, 4),  # type: ignore[arg-type]
    )
    assert (result.output_ids, result.unmask_step) == ((1, 4), (1, 0))
    assert result.confidence == pytest.approx(expected, abs=1e-6)
    assert result.logprob == pytest.approx([math.log(p) for p in expected], abs=1e-5)
    assert expected == pytest.approx((0.6593, 0.7009), abs=1e-3)
    # So a threshold of 0.65 is passed in the second step, not in the first.
    rows[1] = {4: 0.99}
    options: dict[str, Any] = {"block_size": 3, "max_new_tokens": 3, "threshold": 0.65}
    result = run(table(rows | {2: rows[0]}), [], policy="credit", **options)
    assert result.unmask_step == (1, 0, 1)


def test_credit_of_a_former_argmax_decays() -> None:
    other: Row = {7: 0.99}
    first, later = {1: 0.6, 2: 0.4}, {1: 0.49, 2: 0.51}
    scripts = [table({0: first, 1: {7: 0.9}, 2: other}), table({0: later, 1: {7: 0.9}})]
    options: dict[str, Any] = {"block_size": 3, "max_new_tokens": 3, "policy": "credit"}
    result = run(scripts, [], threshold=0.99, **options)
    assert result.unmask_step == (2, 1, 0)
    credit = {
        1: 0.8**2 * 0.6**0.2,
        2: 0.8 * 0.51**0.2 + 0.51**0.2,
    }
    assert result.output_ids[0] == 2
    assert result.confidence[0] == pytest.approx(raised(later, credit, 2), abs=1e-6)


def test_credit_may_choose_another_token_than_the_argmax() -> None:
    first, later = {1: 0.9, 2: 0.1}, {1: 0.49, 2: 0.51}
    scripts = [table({0: first, 1: {7: 0.99}}), table({0: later})]
    parameters = {"threshold": 0.98, "boost_gamma": 4.0, "decay_beta": 1.0}
    options: dict[str, Any] = {"block_size": 2, "max_new_tokens": 2, "policy": "credit"}
    result = run(scripts, [], parameters=parameters, **options)
    credit = {1: 0.9**4, 2: 0.51**4}
    assert (result.output_ids, result.unmask_step) == ((1, 7), (1, 0))
    assert result.confidence[0] == pytest.approx(raised(later, credit, 1), abs=1e-6)


def test_credit_counts_the_last_32_steps() -> None:
    policy = Credit(0.95, credit_alpha=0.7, boost_gamma=0.2, decay_beta=0.9)
    old, new = Scripted.row({3: 0.8}), Scripted.row({4: 0.5})
    old[MASK] = new[MASK] = -math.inf
    policy.adjust(0, old)
    for _ in range(31):
        gain = policy.adjust(0, new) - new
    assert gain[3] == pytest.approx(0.7 * math.log(1 + 0.9**31 * 0.8**0.2), abs=1e-5)
    gain = policy.adjust(0, new) - new
    assert gain[3] == 0.0
    total = sum(0.9**age * 0.5**0.2 for age in range(32))
    assert gain[4] == pytest.approx(0.7 * math.log(1 + total), abs=1e-5)
    assert policy.adjust(1, new)[4] - new[4] == pytest.approx(
        0.7 * math.log(1 + 0.5**0.2), abs=1e-5
    )


@pytest.mark.parametrize("policy", ["entropy", "hierarchical", "credit", "factor"])
def test_a_stop_ends_the_text_as_with_threshold(policy: str) -> None:
    rows: dict[int, Row] = {0: {3: 0.999}, 1: {EOS: 0.9999}, 2: {1: 0.2}, 3: {1: 0.2}}
    result = run(table(rows), [], policy=policy, max_new_tokens=8)
    assert (result.output_ids, result.finish_reason) == ((3, EOS), "stop")
    assert result.steps_per_block == (result.forwards,)
    late = run(table(rows), [], policy=policy, max_new_tokens=8, eos_early_stop=False)
    assert late.output_ids == (3, EOS)
    assert late.forwards > result.forwards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "greedy"}, "unknown policy 'greedy'; there are threshold, steps, entropy"),
        ({"parameters": {"gamma": 1}}, "threshold has no gamma; it has threshold"),
        ({"policy": "factor", "parameters": {"threshold": 1}}, "factor has no threshold"),
        ({"policy": "edit", "parameters": {"preset": "best"}}, "preset must be one of quality"),
        ({"policy": "edit", "lookahead": 2}, "edit has no lookahead 2"),
        ({"lookahead": 0}, "threshold has no lookahead 0"),
        ({"policy": "levenshtein", "split_id": None}, "needs delete_id and split_id"),
        ({"policy": "edit", "rules": TokenRules(repetition_penalty=1.1)}, "penalties count"),
        ({"policy": "levenshtein", "rules": TokenRules(presence_penalty=1.0)}, "penalties count"),
    ],
)
def test_what_a_policy_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(table({}), [], **options)


def test_nan_is_no_candidate_and_a_position_of_nan_takes_the_first_legal_id() -> None:
    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(ids), 4), math.nan)
        logits[0, 2] = 1.0
        return logits

    result = decode_with(
        logits_of, [], block_size=2, mask_id=0, eos_ids=[], max_new_tokens=2, threshold=0.5
    )
    assert (result.output_ids, result.unmask_step) == ((2, 1), (0, 1))
    assert result.confidence == pytest.approx([1.0, 1 / 3])
