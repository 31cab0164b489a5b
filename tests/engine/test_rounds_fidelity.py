"""The scheduler gives the reference's tokens, exactly, however requests come, go and collide."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import zmq
from inprocess import InProcessEngine
from oracle import Oracle

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt
from llada_sglang.scheduler import scheduler as scheduler_module

Question = tuple[list[int], dict[str, Any]]


@pytest.fixture(autouse=True, params=[False, True], ids=["in-step", "overlap"])
def overlap(request: pytest.FixtureRequest, engine: InProcessEngine) -> Iterator[None]:
    """Every test with results taken before the next step is launched, and after."""
    rounds = engine.scheduler.rounds
    rounds.overlap = request.param
    yield
    engine.flush()
    rounds.overlap = False


def ask(engine: InProcessEngine, question: Question, **extra: Any) -> str:
    prompt, params = question
    sampling = {"max_new_tokens": params["max_new_tokens"]}
    if params.get("ignore_eos"):
        sampling["ignore_eos"] = True
    custom = {k: v for k, v in params.items() if k not in ("max_new_tokens", "ignore_eos")}
    return engine.submit(prompt, **sampling, custom_params=custom or None, **extra)


def check(engine: InProcessEngine, oracle: Oracle, rid: str, question: Question) -> None:
    prompt, params = question
    expected = oracle(prompt, **params)
    answer = engine.answers[rid]
    assert answer.finish is not None, f"{rid} never ended"
    assert tuple(answer.ids) == expected.output_ids, (prompt[-20:], params)
    assert answer.finish["type"] == expected.finish_reason


def nano_prompt(engine: InProcessEngine, example: tasks.Example) -> list[int]:
    return list(engine.tokenizer.encode(render_prompt(example.messages, tools=example.tools)))


def questions(engine: InProcessEngine, seed: int, count: int) -> list[Question]:
    """Prompts of every family, at random thresholds, steps and lengths."""
    rng = random.Random(seed)
    out: list[Question] = []
    for i in range(count):
        family = tasks.FAMILIES[i % len(tasks.FAMILIES)]
        (example,) = tasks.examples(seed * 1000 + i, family, "eval", 1)
        params: dict[str, Any] = {"max_new_tokens": rng.choice([16, 40, 64, 100])}
        if rng.random() < 0.5:
            params["threshold"] = rng.choice([0.5, 0.8, 0.99, 1.0])
        if rng.random() < 0.3:
            params["steps"] = rng.choice([1, 4, 7, 16])
        if rng.random() < 0.2:
            params["ignore_eos"] = True
        out.append((nano_prompt(engine, example), params))
    return out


@contextmanager
def steps_per_round(count: int) -> Iterator[None]:
    before = scheduler_module.STEPS_PER_ROUND
    scheduler_module.STEPS_PER_ROUND = count
    try:
        yield
    finally:
        scheduler_module.STEPS_PER_ROUND = before


@contextmanager
def pool_of(engine: InProcessEngine, blocks: int) -> Iterator[None]:
    """Leave only so many free blocks in the KV pool."""
    scheduler, block = engine.scheduler, 32
    scheduler.flush_cache()
    allocator = scheduler.token_to_kv_pool_allocator
    held = allocator.alloc(allocator.available_size() - blocks * block)
    try:
        yield
    finally:
        scheduler.tree_cache.reset()
        allocator.clear()
    del held


def test_a_round_ends_with_the_step_that_ends_a_request(
    engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is not kept back, nor its place empty, for what the others have still to do."""
    rounds = engine.scheduler.rounds
    ends: list[bool] = []
    step = rounds.step

    def watched() -> None:
        step()
        ends.append(any(req.finished() for req in rounds.changed.values()))

    monkeypatch.setattr(rounds, "step", watched)
    for tokens in (3, 7, 20, 90, 100):
        engine.submit(
            list(range(40, 70)),
            max_new_tokens=tokens,
            ignore_eos=True,
            custom_params={"threshold": 1.0},
        )
    lengths, seen = [], 0
    while engine.tick():
        one = ends[seen:]
        assert not any(one[:-1])
        lengths.append(len(one))
        seen = len(ends)
    assert sum(ends) >= 4
    assert max(lengths) == scheduler_module.STEPS_PER_ROUND


def test_a_round_ends_with_the_step_during_which_something_came_in(
    engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request or an abort is not left in the socket for what the others have still to do."""
    host, rounds = engine.scheduler, engine.scheduler.rounds
    step, taken = rounds.step, []
    with zmq.Context() as context, context.socket(zmq.PULL) as inside:
        port = inside.bind_to_random_port("tcp://127.0.0.1")
        monkeypatch.setattr(host, "recv_from_tokenizer", inside)
        with context.socket(zmq.PUSH) as outside:
            outside.connect(f"tcp://127.0.0.1:{port}")

            def watched() -> None:
                step()
                taken.append(1)
                if len(taken) == 2:
                    outside.send(b"anything")
                    assert inside.poll(10_000)

            monkeypatch.setattr(rounds, "step", watched)
            engine.submit(
                list(range(40, 70)),
                max_new_tokens=60,
                ignore_eos=True,
                custom_params={"threshold": 1.0},
            )
            engine.tick()
            assert len(taken) == 2
            assert inside.recv() == b"anything"
            engine.tick()
            assert len(taken) == 2 + scheduler_module.STEPS_PER_ROUND
            engine.run()


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 500])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_any_prompt_length(engine, oracle, length, ignore_eos):
    rng = random.Random(length)
    special = {oracle.family.mask_id, *oracle.family.eos_ids}
    legal = [i for i in range(300) if i not in special]
    params: dict[str, Any] = {"max_new_tokens": 40}
    if ignore_eos:
        params["ignore_eos"] = True
    question = ([rng.choice(legal) for _ in range(length)], params)
    rid = ask(engine, question)
    engine.run()
    check(engine, oracle, rid, question)


@pytest.mark.parametrize("which", ["mask", "eos"])
def test_special_tokens_in_a_prompt_are_text(engine, oracle, which):
    ids = {"mask": oracle.family.mask_id, "eos": oracle.family.eos_ids[0]}
    (prompt, _), *_ = questions(engine, 5, 1)
    for place in (0, 31, 32, len(prompt) - 1, len(prompt)):
        question = ([*prompt[:place], ids[which], *prompt[place:]], {"max_new_tokens": 40})
        rid = ask(engine, question)
        engine.run()
        check(engine, oracle, rid, question)


@pytest.mark.parametrize("rounds", [1, 8])
@pytest.mark.parametrize("concurrent", [1, 2, 7, 16, 64])
def test_mixed_requests_arriving_at_random(engine, oracle, rounds, concurrent):
    asked = questions(engine, 17, max(8, concurrent))
    rng = random.Random(concurrent)
    waiting = list(asked)
    sent: list[tuple[str, Question]] = []
    with steps_per_round(rounds):
        while waiting:
            open_ = sum(engine.answers[rid].finish is None for rid, _ in sent)
            for _ in range(rng.randint(1, max(1, concurrent - open_))):
                if waiting and open_ < concurrent:
                    question = waiting.pop()
                    sent.append((ask(engine, question, stream=rng.random() < 0.3), question))
                    open_ += 1
            engine.tick()
        engine.run()
    for rid, question in sent:
        check(engine, oracle, rid, question)


def test_two_hundred_nano_prompts_at_the_default_parameters(engine, oracle):
    asked: list[Question] = [
        (nano_prompt(engine, example), {"max_new_tokens": 128})
        for family in tasks.FAMILIES
        for example in tasks.examples(11, family, "eval", 20)
    ]
    sent = [(ask(engine, question), question) for question in asked]
    engine.run()
    for rid, question in sent:
        check(engine, oracle, rid, question)


def test_radix_hits_and_misses_give_the_same(engine, oracle, monkeypatch):
    asked = questions(engine, 23, 8)
    for force_miss in ("0", "1"):
        monkeypatch.setenv("SGLANG_RADIX_FORCE_MISS", force_miss)
        for _ in range(2):
            sent = [(ask(engine, question), question) for question in asked]
            engine.run()
            for rid, question in sent:
                check(engine, oracle, rid, question)


def test_a_second_turn_reuses_the_generated_blocks(engine, oracle):
    engine.scheduler.flush_cache()
    (prompt, _), *_ = questions(engine, 29, 4)
    first = ask(engine, (prompt, {"max_new_tokens": 100, "ignore_eos": True}))
    engine.run()
    history = prompt + engine.answers[first].ids
    question = (history + prompt, {"max_new_tokens": 40})
    rid = ask(engine, question)
    (req,) = engine.plan().reqs
    # Everything but the last block, which never ran as a final row.
    assert req.cached_tokens == (len(history) - 1) // 32 * 32
    engine.run()
    check(engine, oracle, rid, question)


@pytest.mark.parametrize("rounds", [1, 8])
def test_a_pool_run_dry_retracts_and_resumes_to_the_same_text(engine, oracle, rounds):
    long = {"max_new_tokens": 100, "ignore_eos": True}
    asked = [(prompt, {**params, **long}) for prompt, params in questions(engine, 31, 12)]
    with pool_of(engine, 24), steps_per_round(rounds):
        sent = [(ask(engine, question), question) for question in asked]
        records = [req.dllm_algo_state for req in engine.scheduler.waiting_queue]
        engine.scheduler.new_token_ratio_tracker.current = 0.0
        for _ in range(3000):
            if not engine.tick_unchecked():
                break
        assert not engine.scheduler.rounds.states
        assert engine.scheduler.rounds.retractions > 0, "the pool was meant to run dry"
    assert len(records) == len(asked)
    for rid, question in sent:
        check(engine, oracle, rid, question)


def test_aborts_of_others_at_any_step_change_nothing_and_free_everything(engine, oracle):
    asked = questions(engine, 37, 12)
    rng = random.Random(3)
    sent = [(ask(engine, question), question) for question in asked]
    victims = {rid for rid, _ in sent[::3]}
    pending = set(victims)
    while pending:
        engine.tick()
        rid = rng.choice(sorted(pending))
        engine.abort(rid)
        engine.tick()
        pending.discard(rid)
        running = {req.rid for req in engine.scheduler.running_batch.reqs}
        assert rid not in running, "an aborted request is gone within one round"
    engine.run()
    for rid, question in sent:
        if rid in victims:
            assert engine.answers[rid].finish is not None
        else:
            check(engine, oracle, rid, question)


def test_paused_and_retracted_requests_resume_to_the_same_text(engine, oracle):
    from sglang.srt.managers.io_struct import ContinueGenerationReqInput

    asked = questions(engine, 41, 6)
    sent = [(ask(engine, question), question) for question in asked]
    for mode in ("retract", "in_place"):
        for _ in range(3):
            engine.tick()
        engine.pause(mode)
        if mode == "retract":
            assert not engine.scheduler.rounds.states
        engine.scheduler.continue_generation(ContinueGenerationReqInput())
    engine.run()
    for rid, question in sent:
        check(engine, oracle, rid, question)


def test_a_request_of_higher_priority_takes_the_place_of_a_lower_one(engine, oracle):
    scheduler = engine.scheduler
    asked = questions(engine, 43, 3)
    limits = scheduler.rounds.limits
    scheduler.rounds.limits = replace(limits, max_running=1)
    scheduler.enable_priority_preemption = True
    try:
        low = ask(engine, asked[0], priority=0)
        engine.tick()
        high = ask(engine, asked[1], priority=100)
        engine.tick()
        running = [req.rid for req in scheduler.running_batch.reqs]
        assert high in running or engine.answers[high].finish is not None
        engine.run()
    finally:
        scheduler.rounds.limits = limits
        scheduler.enable_priority_preemption = False
    check(engine, oracle, low, asked[0])
    check(engine, oracle, high, asked[1])


def test_a_full_queue_turns_newcomers_away_and_nobody_else(engine, oracle):
    scheduler = engine.scheduler
    asked = questions(engine, 53, 4)
    limits, queued = scheduler.rounds.limits, scheduler.max_queued_requests
    scheduler.rounds.limits = replace(limits, max_running=1)
    scheduler.max_queued_requests = 2
    try:
        first = ask(engine, asked[0], stream=True, priority=1)
        engine.tick()
        waiting = [ask(engine, question, priority=1) for question in asked[1:3]]
        refused = ask(engine, asked[3], priority=1)
        assert engine.answers[refused].finish["type"] == "abort"
        assert "queue is full" in engine.answers[refused].finish["message"]
        engine.run()
    finally:
        scheduler.rounds.limits = limits
        scheduler.max_queued_requests = queued
    for rid, question in zip([first, *waiting], asked[:3], strict=True):
        check(engine, oracle, rid, question)


def test_forwards_per_block_are_the_steps_of_the_reference(engine, oracle):
    question = (questions(engine, 47, 1)[0][0], {"max_new_tokens": 96, "ignore_eos": True})
    rid = ask(engine, question)
    engine.run()
    expected = oracle(question[0], **question[1])
    assert engine.answers[rid].info["denoise_forwards"] == expected.forwards


def test_nothing_is_generated_where_nothing_is_asked(engine):
    for prompt in ([], [5] * 100):
        rid = engine.submit(prompt, max_new_tokens=0)
        engine.run()
        assert engine.answers[rid].finish == {"type": "length", "length": 0}
        assert engine.answers[rid].ids == []
