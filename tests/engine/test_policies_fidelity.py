"""Every policy gives the reference's tokens: alone, mixed with all others, and retracted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from inprocess import InProcessEngine
from oracle import Oracle
from policy_cases import EDITING, UNMASKING, reference

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt
from llada_sglang.reference.tokens import TokenRules

CASES = UNMASKING + EDITING
SAMPLED = TokenRules(temperature=1.0, top_p=0.95, seed=21)
NOISE = [100, 7, 431, 55, 12, 300, 9]


@pytest.fixture(autouse=True, params=[False, True], ids=["in-step", "overlap"])
def overlap(request: pytest.FixtureRequest, engine: InProcessEngine) -> Iterator[None]:
    """Every test with results taken before the next step is launched, and after."""
    rounds = engine.scheduler.rounds
    rounds.overlap = request.param
    yield
    engine.flush()
    rounds.overlap = False


def prompt_of(engine: InProcessEngine, seed: int) -> list[int]:
    """A question whose answer takes several blocks, or tokens that mean nothing."""
    if seed % 4 == 3:
        rng = random.Random(seed)
        return [rng.randrange(700) for _ in range(rng.randrange(1, 80))]
    (example,) = tasks.examples(seed, ("table", "count", "again")[seed % 4], "eval", 1)
    return list(engine.tokenizer.encode(render_prompt(example.messages, tools=example.tools)))


def sampling(rules: TokenRules) -> dict[str, Any]:
    if rules == TokenRules():
        return {}
    return {"temperature": rules.temperature, "top_p": rules.top_p, "sampling_seed": rules.seed}


def clean(engine: InProcessEngine) -> None:
    table = engine.scheduler.rounds.table
    assert table.states_in_use == 0, "a policy's state outlives its request"
    assert table.free_slots == table.tokens.shape[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_alone(engine: InProcessEngine, oracle: Oracle, case: dict[str, Any]) -> None:
    for seed in (0, 1, 3, 6):
        prompt = prompt_of(engine, seed)
        rid = engine.submit(prompt, max_new_tokens=100, custom_params={**case, "trace": True})
        engine.run()
        expected = oracle(prompt, max_new_tokens=100, **reference(case))
        answer = engine.answers[rid]
        assert tuple(answer.ids) == expected.output_ids
        assert tuple(answer.traces["unmask_step"]) == expected.unmask_step
        assert answer.traces["unmask_confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        forwards = answer.info["denoise_forwards"]
        if case in EDITING and engine.scheduler.rounds.overlap:
            # That a block's last step will be one is not always known in time for a rider.
            assert expected.forwards <= forwards <= sum(expected.steps_per_block)
        else:
            assert forwards == expected.forwards
    clean(engine)


@pytest.mark.parametrize("rules", [TokenRules(), SAMPLED], ids=["greedy", "sampled"])
def test_sixteen_at_once_mixed_with_all_others(
    engine: InProcessEngine, oracle: Oracle, rules: TokenRules
) -> None:
    rng = random.Random(5)
    chosen = [*CASES, *CASES[:13]]
    rng.shuffle(chosen)
    asked = []
    for i, case in enumerate(chosen):
        prompt, tokens = prompt_of(engine, i), rng.choice((20, 64, 100))
        rid = engine.submit(prompt, max_new_tokens=tokens, custom_params=case, **sampling(rules))
        asked.append((rid, prompt, tokens, case))
        while len(engine.scheduler.rounds.states) + len(engine.scheduler.waiting_queue) >= 16:
            engine.tick()
    engine.run()
    for rid, prompt, tokens, case in asked:
        expected = oracle(prompt, max_new_tokens=tokens, rules=rules, **reference(case))
        assert tuple(engine.answers[rid].ids) == expected.output_ids, case
    clean(engine)


def test_retracted_at_any_step(engine: InProcessEngine, oracle: Oracle) -> None:
    rng = random.Random(9)
    rounds = engine.scheduler.rounds
    asked = []
    for i, case in enumerate(CASES):
        prompt = prompt_of(engine, i)
        rid = engine.submit(
            prompt, max_new_tokens=90, custom_params={**case, "trace": True}, stream=True
        )
        asked.append((rid, prompt, case))
    turns = 0
    while engine.tick():
        turns += 1
        if turns % 3 == 0 and rounds.states and turns < 90:
            engine.retract(rng.choice(rounds.states))
    for rid, prompt, case in asked:
        expected = oracle(prompt, max_new_tokens=90, **reference(case))
        answer = engine.answers[rid]
        assert tuple(answer.ids) == expected.output_ids, case
        assert tuple(answer.traces["unmask_step"]) == expected.unmask_step, case
    clean(engine)


def test_aborted_at_any_step(engine: InProcessEngine, oracle: Oracle) -> None:
    rng = random.Random(10)
    rids = [
        engine.submit(prompt_of(engine, i), max_new_tokens=90, custom_params=case, stream=True)
        for i, case in enumerate(CASES)
    ]
    while rids:
        for _ in range(rng.randrange(3)):
            engine.tick()
        engine.abort(rids.pop(rng.randrange(len(rids))))
    engine.run()
    clean(engine)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_length_and_any_end(
    engine: InProcessEngine, oracle: Oracle, case: dict[str, Any]
) -> None:
    for prompt in ([], [5], list(range(40, 72)), list(range(40, 73)), [760, 759, 40]):
        for tokens, ignore_eos in ((1, False), (33, True), (70, True)):
            prompt = prompt or [1]
            rid = engine.submit(
                prompt, max_new_tokens=tokens, ignore_eos=ignore_eos, custom_params=case
            )
            engine.run()
            expected = oracle(
                prompt, max_new_tokens=tokens, ignore_eos=ignore_eos, **reference(case)
            )
            assert tuple(engine.answers[rid].ids) == expected.output_ids
            assert not {760} & set(engine.answers[rid].ids), "a mask was emitted"


def test_lookahead_one_is_the_same_as_none(engine: InProcessEngine) -> None:
    answers = []
    for extra in ({}, {"lookahead": 1, "lookahead_start": 0.0, "lookahead_semi": 0.1}):
        rid = engine.submit(
            prompt_of(engine, 4), max_new_tokens=100, custom_params={"trace": True, **extra}
        )
        engine.run()
        answers.append((engine.answers[rid].ids, engine.answers[rid].traces))
    assert answers[0] == answers[1]


def test_a_later_block_costs_no_forward_of_its_own(engine: InProcessEngine, oracle: Oracle) -> None:
    forwards = dict.fromkeys((1, 2), 0)
    for seed in range(12):
        for lookahead in forwards:
            # Past its end, so that there are later blocks whatever the answer's length is.
            decoded = oracle(
                prompt_of(engine, seed), max_new_tokens=100, ignore_eos=True, lookahead=lookahead
            )
            forwards[lookahead] += decoded.forwards
    assert forwards[2] < forwards[1]


@pytest.mark.parametrize("case", [UNMASKING[1], UNMASKING[2], UNMASKING[7]], ids=str)
def test_stop_strings_end_a_request_in_an_earlier_block(
    engine: InProcessEngine, oracle: Oracle, case: dict[str, Any]
) -> None:
    prompt = prompt_of(engine, 0)
    whole = engine.tokenizer.decode(
        oracle(prompt, max_new_tokens=100, **reference(case)).output_ids
    )
    stop = whole[len(whole) // 3 : len(whole) // 3 + 4]
    rid = engine.submit(prompt, max_new_tokens=100, stop=[stop], custom_params=case)
    engine.run()
    text = engine.tokenizer.decode(engine.answers[rid].ids)
    assert whole.startswith(text[: text.index(stop)])
    assert engine.answers[rid].finish["type"] == "stop"
    clean(engine)


def test_a_stream_shows_nothing_provisional(engine: InProcessEngine, oracle: Oracle) -> None:
    prompt = prompt_of(engine, 0)
    rid = engine.submit(prompt, max_new_tokens=100, stream=True, custom_params={"lookahead": 3})
    expected = oracle(prompt, max_new_tokens=100, lookahead=3).output_ids
    while engine.tick():
        got = tuple(engine.answers[rid].ids)
        assert got == expected[: len(got)]
    assert tuple(engine.answers[rid].ids) == expected


def test_a_lookahead_that_follows_the_load_is_a_lookahead(
    engine: InProcessEngine, oracle: Oracle
) -> None:
    prompts = [prompt_of(engine, i) for i in range(8)]
    rids = [
        engine.submit(p, max_new_tokens=64, custom_params={"lookahead": "auto"}) for p in prompts
    ]
    engine.run()
    for rid in rids:
        ids = engine.answers[rid].ids
        assert ids
        assert len(ids) <= 64
        assert engine.answers[rid].finish["type"] in ("stop", "length")
    clean(engine)


def test_unknown_policies_are_refused_with_the_known_ones(engine: InProcessEngine) -> None:
    rid = engine.submit([40, 41], max_new_tokens=8, custom_params={"policy": "magic"})
    engine.run()
    finish = engine.answers[rid].finish
    assert finish["status_code"] == 400
    for name in ("threshold", "edit", "levenshtein", "credit", "'magic'"):
        assert name in finish["message"]
