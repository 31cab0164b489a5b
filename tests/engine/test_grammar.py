"""Constrained requests: valid by construction, parallel, never in the way, never stuck."""

from __future__ import annotations

import json
import re
import time

import jsonschema
import pytest
from inprocess import Answer, InProcessEngine
from json_schemas import schemas
from oracle import Oracle

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

SCHEMAS = schemas(200)


@pytest.fixture(scope="module")
def prompt(engine: InProcessEngine) -> list[int]:
    (example,) = tasks.examples(3, tasks.FAMILIES[0], "eval", 1)
    return list(engine.tokenizer.encode(render_prompt(example.messages, tools=example.tools)))


def text_of(engine: InProcessEngine, rid: str) -> str:
    return str(engine.tokenizer.decode(engine.answers[rid].ids, skip_special_tokens=True))


def finished(engine: InProcessEngine, rid: str) -> Answer:
    answer = engine.answers[rid]
    assert answer.finish is not None
    return answer


def test_two_hundred_schemas_on_nano(engine: InProcessEngine, prompt: list[int]) -> None:
    rids = [
        engine.submit(
            prompt,
            max_new_tokens=500,
            json_schema=json.dumps(schema),
            temperature=float(i % 2),
            sampling_seed=i,
        )
        for i, schema in enumerate(SCHEMAS)
    ]
    engine.run()
    per_forward = []
    for rid, schema in zip(rids, SCHEMAS, strict=True):
        answer = finished(engine, rid)
        assert answer.finish["type"] == "stop", (schema, answer.finish)
        jsonschema.validate(json.loads(text_of(engine, rid)), schema)
        per_forward.append(answer.info["tokens_per_forward"])
    assert sum(per_forward) / len(per_forward) > 2.0


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(
    ("kind", "grammar", "pattern"),
    [
        ("regex", "[0-9]{3}-[a-c]+x", "[0-9]{3}-[a-c]+x"),
        ("regex", "(ä|ö){5}", "(ä|ö){5}"),
        ("regex", "[a-z]{70}", "[a-z]{70}"),
        ("ebnf", 'root ::= "yes" | "no " digit+\ndigit ::= [0-9]', r"yes|no \d+"),
    ],
)
def test_other_grammars(
    engine: InProcessEngine,
    prompt: list[int],
    kind: str,
    grammar: str,
    pattern: str,
    temperature: float,
) -> None:
    rids = [
        engine.submit(
            prompt,
            max_new_tokens=400,
            temperature=temperature,
            sampling_seed=seed,
            **{kind: grammar},
        )
        for seed in range(3)
    ]
    engine.run()
    for rid in rids:
        if finished(engine, rid).finish["type"] == "stop":
            assert re.fullmatch(pattern, text_of(engine, rid)), text_of(engine, rid)
        else:
            assert len(engine.answers[rid].ids) == 400


def test_truncation_is_a_length_finish(engine: InProcessEngine, prompt: list[int]) -> None:
    for budget in (1, 31, 33, 50):
        rid = engine.submit(prompt, max_new_tokens=budget, regex="[a-z]{300}")
        engine.run()
        answer = finished(engine, rid)
        assert answer.finish["type"] == "length"
        assert len(answer.ids) == budget
        assert re.fullmatch("[a-z]*", text_of(engine, rid))


def test_stops_end_a_constrained_text(engine: InProcessEngine, prompt: list[int]) -> None:
    rid = engine.submit(prompt, max_new_tokens=100, regex="[a-z]{3}STOP[a-z]{50}", stop="STOP")
    engine.run()
    answer = finished(engine, rid)
    assert answer.finish == {"type": "stop", "matched": "STOP"}
    assert len(answer.ids) < 20


def test_beside_others_nobody_s_text_changes(
    engine: InProcessEngine, oracle: Oracle, prompt: list[int]
) -> None:
    constraint = {"max_new_tokens": 120, "json_schema": json.dumps(SCHEMAS[150])}
    alone = engine.submit(prompt, **constraint)
    engine.run()
    greedy = [engine.submit(prompt, max_new_tokens=64) for _ in range(3)]
    beside = [engine.submit(prompt, **constraint) for _ in range(3)]
    engine.run()
    for rid in beside:
        assert engine.answers[rid].ids == engine.answers[alone].ids
    for rid in greedy:
        assert tuple(engine.answers[rid].ids) == oracle(prompt, max_new_tokens=64).output_ids


def test_retracted_in_the_middle_of_a_block(engine: InProcessEngine, prompt: list[int]) -> None:
    constraint = {"max_new_tokens": 120, "json_schema": json.dumps(SCHEMAS[170]), "stream": True}
    alone = engine.submit(prompt, **constraint)
    engine.run()
    rid = engine.submit(prompt, **constraint)
    rounds = engine.scheduler.rounds
    retracted = 0
    while engine.answers[rid].finish is None:
        if rounds.states and retracted < 5:
            retracted += 1
            engine.retract(rounds.youngest(), keep=retracted % 2 == 0)
        engine.tick_unchecked()
        engine.tick_unchecked()
    engine.run()
    assert retracted == 5
    assert finished(engine, rid).finish["type"] == "stop"
    jsonschema.validate(json.loads(text_of(engine, rid)), SCHEMAS[170])
    assert engine.answers[alone].finish is not None


def test_an_aborted_one_frees_everything(engine: InProcessEngine, prompt: list[int]) -> None:
    running = engine.submit(prompt, max_new_tokens=2000, regex="[a-z]{1900}", stream=True)
    deadline = time.monotonic() + 30
    while not engine.scheduler.rounds.states and time.monotonic() < deadline:
        engine.tick_unchecked()
    compiling = engine.submit(prompt, max_new_tokens=50, regex="[a-z]{1,900}[0-9]{1,900}x")
    engine.abort(running)
    engine.abort(compiling)
    engine.run()
    assert finished(engine, running).finish["type"] == "abort"
    assert finished(engine, compiling).finish["type"] == "abort"
    again = engine.submit(prompt, max_new_tokens=50, regex="[a-z]{1,900}[0-9]{1,900}x")
    engine.run()
    assert finished(engine, again).finish["type"] in ("stop", "length")


@pytest.mark.parametrize(
    "bad",
    [
        {"regex": "("},
        {"json_schema": '{"type": "nonsense"}'},
        {"json_schema": "{"},
        {"ebnf": "root ::= missing"},
        {"regex": "a\x00b"},
    ],
)
def test_a_bad_grammar_is_a_400(
    engine: InProcessEngine, prompt: list[int], bad: dict[str, str]
) -> None:
    for _ in range(2):  # compiled, then from the cache
        rid = engine.submit(prompt, max_new_tokens=20, **bad)
        engine.run()
        finish = finished(engine, rid).finish
        assert finish["type"] == "abort"
        assert finish["status_code"] == 400
        assert next(iter(bad)).removesuffix("_schema") in finish["message"].lower()


def test_min_new_tokens_yields_to_a_grammar_that_is_through(
    engine: InProcessEngine, prompt: list[int]
) -> None:
    rid = engine.submit(prompt, max_new_tokens=60, min_new_tokens=30, regex="[0-9]{4}")
    engine.run()
    assert finished(engine, rid).finish["type"] == "stop"
    assert re.fullmatch("[0-9]{4}", text_of(engine, rid))


def test_ignore_eos_does_not_outlive_the_grammar(
    engine: InProcessEngine, prompt: list[int]
) -> None:
    rid = engine.submit(prompt, max_new_tokens=60, ignore_eos=True, regex="[0-9]{4}")
    engine.run()
    assert finished(engine, rid).finish["type"] == "stop"
    assert re.fullmatch("[0-9]{4}", text_of(engine, rid))
