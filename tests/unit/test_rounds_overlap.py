"""Steps launched before the last result is known: the same tokens, in the same number of steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelled_rounds import ModelledRounds
from test_rounds_of_policies import (
    BLOCK,
    CHECKPOINT,
    EOS,
    KINDS,
    THRESHOLDS,
    VOCAB,
    expected,
    model,
    policy,
    submit,
)

from llada_sglang import env

UNMASKING = st.one_of(
    policy("threshold", threshold=THRESHOLDS),
    policy("threshold", threshold=THRESHOLDS),
    policy("steps"),
    policy("entropy", gamma=st.sampled_from([0.0, 0.5, 9.0])),
    policy("hierarchical", threshold=THRESHOLDS, low_threshold=st.sampled_from([0.0, 0.5])),
    policy("credit", threshold=THRESHOLDS, credit_alpha=st.sampled_from([0.7, 4.0])),
    policy("factor", factor=st.sampled_from([0.1, 3.0])),
).flatmap(
    lambda own: st.fixed_dictionaries(
        {"steps": st.integers(1, 5), "eos_early_stop": st.booleans()}
    ).map(lambda common: {**common, **own})
)
BUDGETS = st.integers(0, 4)
EDITING = st.one_of(
    policy(
        "edit",
        threshold=THRESHOLDS,
        edit_threshold=st.sampled_from([0.0, 0.3, 0.9]),
        max_post_edit_steps=BUDGETS,
        penalty_lambda=st.sampled_from([0.0, 0.0, 2.0]),
    ),
    policy(
        "levenshtein",
        threshold=THRESHOLDS,
        edit_threshold=st.sampled_from([0.0, 0.3, 0.9]),
        max_post_edit_steps=BUDGETS,
    ),
)
PREDICTABLE = st.one_of(UNMASKING, EDITING)
OTHERS = policy(
    "threshold", lookahead=st.integers(2, 4), lookahead_start=st.sampled_from([0.0, 0.5])
)


def requests(custom: Any) -> Any:
    return st.fixed_dictionaries(
        {
            "custom": custom,
            "prompt": st.lists(st.integers(0, VOCAB - 1), max_size=3 * BLOCK + 1),
            "tokens": st.integers(1, 5 * BLOCK),
            "ignore_eos": st.booleans(),
            "temperature": st.sampled_from([0.0, 0.0, 0.0, 0.8]),
            "seed": st.integers(0, 3),
            "min_new_tokens": st.sampled_from([0, 0, 3]),
        }
    )


REACHES = st.sampled_from([0.0, 1.0, 2.0, float("inf")])


def check(rounds: ModelledRounds, logits_of: Any, got: Any, request: dict[str, Any]) -> None:
    want = expected(logits_of, request)
    text = got.output_ids_through_stop
    assert tuple(text) == want.output_ids
    assert got.customized_info["unmask_step"][: len(text)] == list(want.unmask_step)
    assert got.customized_info["unmask_confidence"][: len(text)] == pytest.approx(
        want.confidence, abs=1e-5
    )
    forwards = rounds.records[got.rid].denoise_forwards
    if request["custom"]["policy"] in ("edit", "levenshtein"):
        # Where the pool is full there is no room for the next block's first step to ride along,
        # and of what a step has just resolved nobody knew in time that it should.
        assert want.forwards <= forwards <= sum(want.steps_per_block)
    else:
        assert forwards == want.forwards


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 255),
    asked=st.lists(requests(PREDICTABLE), min_size=1, max_size=8),
    late=st.lists(requests(OTHERS), max_size=2),
    reach=REACHES,
    pages=st.sampled_from([11, 14, 1000]),
    running=st.sampled_from([2, 3, 8]),
)
def test_requests_that_come_go_and_collide(
    kind: str,
    seed: int,
    asked: list[dict[str, Any]],
    late: list[dict[str, Any]],
    reach: float,
    pages: int,
    running: int,
) -> None:
    logits_of = model(kind, seed)
    rounds = ModelledRounds(
        logits_of,
        CHECKPOINT,
        vocab=VOCAB,
        overlap=True,
        reach=reach,
        pages=pages,
        running=running,
    )
    rng = random.Random(seed)
    todo = [*asked, *late]
    rng.shuffle(todo)
    sent, aborted = [], set()
    turn = 0
    while rounds.step() or todo:
        turn += 1
        assert turn < 3000
        if todo and rng.random() < 0.4:
            request = todo.pop()
            sent.append((submit(rounds, request), request))
        states = rounds.rounds.states
        if states and rng.random() < 0.1 and turn < 60:
            rounds.rounds.retract(rng.choice(states))
        if states and rng.random() < 0.05:
            rounds.rounds.flush()
            for state in states[:1]:
                aborted.add(state.req.rid)
                rounds.rounds.end(state)
    rounds.check_idle()
    for got, request in sent:
        if got.rid not in aborted:
            check(rounds, logits_of, got, request)


def both(
    asked: list[dict[str, Any]], kind: str = "random", seed: int = 1, **options: Any
) -> tuple[ModelledRounds, ModelledRounds]:
    """The same requests with overlap and without, both at their end."""
    out = []
    for overlap in (True, False):
        rounds = ModelledRounds(
            model(kind, seed), CHECKPOINT, vocab=VOCAB, overlap=overlap, **options
        )
        for request in asked:
            submit(rounds, request)
        rounds.run()
        out.append(rounds)
    return out[0], out[1]


def request(tokens: int, **custom: Any) -> dict[str, Any]:
    return {
        "custom": {"policy": "threshold", "threshold": 0.3, **custom},
        "prompt": [1, 2],
        "tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "seed": 0,
        "min_new_tokens": 0,
    }


def test_no_step_is_lost_where_the_next_block_always_rides_along() -> None:
    ahead, plain = both([request(40)], reach=float("inf"))
    # One forward more: when the last block is done the next forward is under way.
    assert ahead.rounds.tally.forwards == plain.rounds.tally.forwards + 1
    assert ahead.rounds.tally.denoise_rows == plain.rounds.tally.denoise_rows
    assert ahead.rounds.tally.denoise_forwards == plain.rounds.tally.denoise_forwards
    assert ahead.rounds.tally.commit_rows == plain.rounds.tally.commit_rows


def test_a_block_loses_one_step_where_the_next_one_never_rides_along() -> None:
    asked = [request(40, steps=3)]
    ahead, plain = both(asked, reach=0.0, kind="random")
    blocks = 11  # of which the last needs no successor
    lost = ahead.rounds.tally.forwards - plain.rounds.tally.forwards
    assert 1 <= lost <= blocks
    assert ahead.rounds.tally.denoise_rows == plain.rounds.tally.denoise_rows
    assert ahead.rounds.tally.commit_rows == plain.rounds.tally.commit_rows


def watched() -> tuple[ModelledRounds, list[str]]:
    """Rounds with overlap, and what they do, as it happens: launch, result, and end of a step."""
    rounds = ModelledRounds(model("random", 2), CHECKPOINT, vocab=VOCAB, overlap=True)
    events: list[str] = []
    runner, step = rounds.rounds.runner, rounds.rounds.step
    launch = runner.launch

    def launched(finals: Any, active: Any) -> Any:
        events.append("launch")
        step = launch(finals, active)
        result = step.result
        step.result = lambda: (events.append("result"), result())[1]
        return step

    def stepped() -> None:
        step()
        events.append("end")

    runner.launch = launched  # type: ignore[method-assign]
    rounds.rounds.step = stepped  # type: ignore[method-assign]
    return rounds, events


@pytest.mark.parametrize("name", ["threshold", "edit", "levenshtein"])
def test_a_result_is_taken_after_the_next_step_is_launched(name: str) -> None:
    rounds, events = watched()
    submit(rounds, request(12, policy=name))
    rounds.run()
    assert events[:6] == ["launch", "end", "launch", "result", "end", "launch"]
    assert events.count("launch") == events.count("result") + 1


@pytest.mark.parametrize("lookahead", [2, "auto"])
def test_a_step_that_needs_the_last_result_is_under_way_between_the_steps(
    lookahead: int | str,
) -> None:
    """Planned when the result is known, and launched before the host does anything else."""
    rounds, events = watched()
    submit(rounds, request(12, lookahead=lookahead))
    rounds.run()
    assert events[:6] == ["launch", "end", "result", "launch", "end", "result"]
    # No forward runs for nobody.
    assert events.count("launch") == events.count("result")


@pytest.mark.parametrize("name", ["edit", "levenshtein"])
def test_edited_blocks_are_launched_ahead_too(name: str) -> None:
    """And their riders begin in the same steps as if every result was known."""
    custom = {"policy": name, "threshold": 0.1, "edit_threshold": 0.9}
    ahead, plain = both([request(40, **custom)], reach=float("inf"))
    assert ahead.rounds.tally.denoise_rows == plain.rounds.tally.denoise_rows
    assert ahead.rounds.tally.denoise_forwards == plain.rounds.tally.denoise_forwards
    assert ahead.rounds.tally.forwards == plain.rounds.tally.forwards + 1


def test_a_stop_ends_the_request_and_what_ran_on_is_nobodys() -> None:
    asked = request(40)
    asked["ignore_eos"] = False
    logits_of = model("random", 5)

    def ends(ids: Any) -> Any:
        logits = logits_of(ids)
        logits[9:, EOS] += 40
        return logits

    rounds = ModelledRounds(ends, CHECKPOINT, vocab=VOCAB, overlap=True, reach=float("inf"))
    got = submit(rounds, asked)
    rounds.run()
    check(rounds, ends, got, asked)
    assert got.output_ids[-1] == EOS


@pytest.mark.parametrize(
    ("environ", "value"),
    [({}, None), ({"LLADA_SGLANG_OVERLAP": "1"}, True), ({"LLADA_SGLANG_OVERLAP": "0"}, False)],
)
def test_the_environment_says_yes_or_no_or_leaves_it_to_the_device(
    environ: dict[str, str], value: bool | None
) -> None:
    assert env.load(environ).overlap is value
