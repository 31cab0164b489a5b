"""Sampling, penalties, log-probabilities and traces give what the reference gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from inprocess import InProcessEngine
from oracle import Oracle

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt
from llada_sglang.reference.tokens import TokenRules

SAMPLED = (
    TokenRules(temperature=1.0, seed=11),
    TokenRules(temperature=0.7, top_k=20, seed=-5),
    TokenRules(temperature=1.5, top_p=0.9, seed=2**62),
    TokenRules(temperature=1.2, min_p=0.1, seed=3),
    TokenRules(temperature=2.0, top_k=50, top_p=0.8, min_p=0.02, seed=4),
)
PENALISED = (
    TokenRules(repetition_penalty=1.3),
    TokenRules(frequency_penalty=0.8, presence_penalty=-0.4),
    TokenRules(logit_bias=((40, 6.0), (50, -8.0))),
    TokenRules(min_new_tokens=24),
    TokenRules(
        temperature=1.0, seed=8, repetition_penalty=1.1, frequency_penalty=0.3, min_new_tokens=40
    ),
)


@pytest.fixture(autouse=True, params=[False, True], ids=["in-step", "overlap"])
def overlap(request: pytest.FixtureRequest, engine: InProcessEngine) -> Iterator[None]:
    """Every test with results taken before the next step is launched, and after."""
    rounds = engine.scheduler.rounds
    rounds.overlap = request.param
    yield
    engine.flush()
    rounds.overlap = False


def prompt_of(engine: InProcessEngine, seed: int) -> list[int]:
    family = tasks.FAMILIES[seed % len(tasks.FAMILIES)]
    (example,) = tasks.examples(seed, family, "eval", 1)
    return list(engine.tokenizer.encode(render_prompt(example.messages, tools=example.tools)))


def submit(
    engine: InProcessEngine, prompt: list[int], rules: TokenRules, tokens: int, **extra: Any
) -> str:
    custom = extra.pop("custom_params", None)
    return engine.submit(
        prompt,
        max_new_tokens=tokens,
        temperature=rules.temperature,
        top_k=rules.top_k or -1,
        top_p=rules.top_p,
        min_p=rules.min_p,
        sampling_seed=rules.seed,
        frequency_penalty=rules.frequency_penalty,
        presence_penalty=rules.presence_penalty,
        repetition_penalty=rules.repetition_penalty,
        logit_bias={str(token): value for token, value in rules.logit_bias} or None,
        min_new_tokens=rules.min_new_tokens,
        custom_params=custom,
        **extra,
    )


@pytest.mark.parametrize("rules", SAMPLED + PENALISED)
def test_alone(engine: InProcessEngine, oracle: Oracle, rules: TokenRules) -> None:
    for seed in (0, 3):
        prompt = prompt_of(engine, seed)
        rid = submit(engine, prompt, rules, 64)
        engine.run()
        expected = oracle(prompt, max_new_tokens=64, rules=rules)
        assert tuple(engine.answers[rid].ids) == expected.output_ids


def test_mixed_with_each_other_and_with_greedy_requests(
    engine: InProcessEngine, oracle: Oracle
) -> None:
    rng = random.Random(1)
    chosen = [*SAMPLED, *PENALISED, *[TokenRules()] * 6]
    rng.shuffle(chosen)
    asked = []
    for i, rules in enumerate(chosen):
        prompt = prompt_of(engine, 20 + i)
        asked.append((submit(engine, prompt, rules, 48), prompt, rules))
        for _ in range(rng.randrange(3)):
            engine.tick()
    engine.run()
    for rid, prompt, rules in asked:
        expected = oracle(prompt, max_new_tokens=48, rules=rules)
        assert tuple(engine.answers[rid].ids) == expected.output_ids, rules


def test_a_retracted_request_draws_the_same(engine: InProcessEngine, oracle: Oracle) -> None:
    rules = TokenRules(temperature=1.0, top_p=0.95, seed=21)
    prompts = [prompt_of(engine, 50 + i) for i in range(3)]
    rids = [
        submit(
            engine, p, rules, 64, return_logprob=True, custom_params={"trace": True}, stream=True
        )
        for p in prompts
    ]
    rounds = engine.scheduler.rounds
    for turn in range(12):
        engine.tick()
        if turn in (2, 5, 6) and rounds.states:
            engine.retract(rounds.youngest())
    engine.run()
    for rid, prompt in zip(rids, prompts, strict=True):
        expected = oracle(prompt, max_new_tokens=64, rules=rules)
        answer = engine.answers[rid]
        assert tuple(answer.ids) == expected.output_ids
        assert answer.logprobs == pytest.approx(expected.logprob, abs=1e-3)
        assert tuple(answer.traces["unmask_step"]) == expected.unmask_step


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rules", [TokenRules(), SAMPLED[1], PENALISED[0]])
def test_logprobs_and_traces(
    engine: InProcessEngine, oracle: Oracle, rules: TokenRules, stream: bool
) -> None:
    prompt = prompt_of(engine, 7)
    ids = [5, 300, 17]
    rid = submit(
        engine,
        prompt,
        rules,
        80,
        stream=stream,
        return_logprob=True,
        top_logprobs_num=3,
        token_ids_logprob=ids,
        custom_params={"trace": True},
    )
    engine.run()
    answer = engine.answers[rid]
    expected = oracle(prompt, max_new_tokens=80, rules=rules)
    assert tuple(answer.ids) == expected.output_ids
    assert answer.logprobs == pytest.approx(expected.logprob, abs=1e-3)
    assert sum(answer.logprobs) == pytest.approx(sum(expected.logprob), abs=1e-2)
    assert tuple(answer.traces["unmask_step"]) == expected.unmask_step
    assert answer.traces["unmask_confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    count = len(answer.ids)
    assert len(answer.top_logprobs) == len(answer.id_logprobs) == count
    for token, logprob, top, at_ids in zip(
        answer.ids, answer.logprobs, answer.top_logprobs, answer.id_logprobs, strict=True
    ):
        values = [value for _, value in top]
        assert len(top) == 3
        assert values == sorted(values, reverse=True)
        assert logprob <= values[0] + 1e-6
        if token in dict(top):
            assert dict(top)[token] == pytest.approx(logprob)
        assert len(at_ids) == len(ids)
        assert all(value <= 0.0 for value in [*at_ids, logprob])


def test_a_trace_alone_costs_no_general_path(engine: InProcessEngine, oracle: Oracle) -> None:
    prompt = prompt_of(engine, 9)
    rid = engine.submit(prompt, max_new_tokens=64, custom_params={"trace": True})
    (req,) = engine.scheduler.waiting_queue
    assert not req.dllm_algo_state.options.general
    engine.run()
    expected = oracle(prompt, max_new_tokens=64)
    answer = engine.answers[rid]
    assert tuple(answer.ids) == expected.output_ids
    assert tuple(answer.traces["unmask_step"]) == expected.unmask_step
    assert answer.traces["unmask_confidence"] == pytest.approx(expected.confidence, abs=1e-4)


def test_without_a_seed_draws_differ(engine: InProcessEngine) -> None:
    prompt = prompt_of(engine, 2)
    rids = [
        engine.submit(prompt, max_new_tokens=64, temperature=50.0, ignore_eos=True)
        for _ in range(4)
    ]
    engine.run()
    assert len({tuple(engine.answers[rid].ids) for rid in rids}) == 4


def test_no_stop_before_min_new_tokens(engine: InProcessEngine) -> None:
    prompt = prompt_of(engine, 4)
    rid = engine.submit(prompt, max_new_tokens=200, min_new_tokens=150)
    engine.run()
    answer = engine.answers[rid]
    stops = set(engine.scheduler.model_config.hf_eos_token_id)
    assert len(answer.ids) >= 150
    assert not stops & set(answer.ids[:150])
