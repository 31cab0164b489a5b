"""Where a text ends, what that costs, and what a stream shows on the way."""

from __future__ import annotations

from typing import Any

import pytest
from inprocess import InProcessEngine
from oracle import Oracle

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

COUNT = "Count from 64 to 93."


def prompt_of(engine: InProcessEngine, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return list(engine.tokenizer.encode(render_prompt(messages)))


def finish(engine: InProcessEngine, rid: str) -> dict[str, Any]:
    found = engine.answers[rid].finish
    assert found is not None
    return found


def text_of(engine: InProcessEngine, rid: str) -> str:
    return str(engine.tokenizer.decode(engine.answers[rid].ids))


@pytest.fixture(scope="module")
def whole(engine: InProcessEngine, oracle: Oracle) -> tuple[list[int], str]:
    """A long greedy text, its ids and its words."""
    ids = list(oracle(prompt_of(engine, COUNT), max_new_tokens=200, threshold=1.0).output_ids)
    return ids, str(engine.tokenizer.decode(ids))


def test_a_stop_string_ends_denoising_at_once(
    engine: InProcessEngine, whole: tuple[list[int], str]
) -> None:
    prompt = prompt_of(engine, COUNT)
    # One token per step, so that every step behind the stop would show.
    slow = {"max_new_tokens": 200, "custom_params": {"threshold": 1.0, "trace": True}}
    free = engine.submit(prompt, **slow)
    stopped = engine.submit(prompt, stop=", 66", **slow)
    engine.run()
    answer = engine.answers[stopped]
    assert finish(engine, stopped) == {"type": "stop", "matched": ", 66"}
    assert whole[1].startswith(text_of(engine, stopped))
    assert ", 66" in text_of(engine, stopped)
    assert ", 67" not in text_of(engine, stopped)
    steps = answer.traces["unmask_step"]
    assert answer.info["denoise_forwards"] == max(steps) + 1
    assert answer.info["denoise_forwards"] < engine.answers[free].info["denoise_forwards"]


def test_a_stop_string_across_a_block_boundary(
    engine: InProcessEngine, whole: tuple[list[int], str]
) -> None:
    prompt = prompt_of(engine, COUNT)
    ids, _ = whole
    edge = 32 - len(prompt) % 32
    stop = engine.tokenizer.decode(ids[edge - 2 : edge + 2])
    rid = engine.submit(prompt, max_new_tokens=200, stop=stop, custom_params={"threshold": 1.0})
    engine.run()
    assert finish(engine, rid)["matched"] == stop
    assert engine.answers[rid].ids == ids[: edge + 2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_regex(engine: InProcessEngine, whole: tuple[list[int], str], stream: bool) -> None:
    prompt = prompt_of(engine, COUNT)
    rid = engine.submit(
        prompt,
        max_new_tokens=200,
        stop_regex=r"7\d, 7\d",
        stream=stream,
        custom_params={"threshold": 1.0},
    )
    engine.run()
    assert finish(engine, rid)["type"] == "stop"
    text = text_of(engine, rid)
    assert whole[1].startswith(text)
    assert "70, 71" in text
    assert "72" not in text


def test_several_stop_ids_and_the_first_wins(
    engine: InProcessEngine, whole: tuple[list[int], str]
) -> None:
    prompt = prompt_of(engine, COUNT)
    ids, _ = whole
    for place in (3, 20, 40):
        first = ids.index(ids[place])
        rid = engine.submit(
            prompt,
            max_new_tokens=200,
            stop_token_ids=[ids[place], ids[-3]],
            custom_params={"threshold": 1.0},
        )
        engine.run()
        end = min(first, ids.index(ids[-3]))
        assert engine.answers[rid].ids == ids[: end + 1]
        assert finish(engine, rid) == {"type": "stop", "matched": ids[end]}


def test_a_stream_has_one_chunk_per_block_and_no_empty_one(
    engine: InProcessEngine, oracle: Oracle
) -> None:
    (example,) = tasks.examples(5, tasks.FAMILIES[3], "eval", 1)
    prompt = list(engine.tokenizer.encode(render_prompt(example.messages)))
    rid = engine.submit(prompt, max_new_tokens=150, ignore_eos=True, stream=True)
    engine.run()
    answer = engine.answers[rid]
    assert answer.ids == list(oracle(prompt, max_new_tokens=150, ignore_eos=True).output_ids)
    blocks = -(-(len(prompt) + 150) // 32) - len(prompt) // 32
    assert len(answer.chunks) == blocks
    assert all(answer.chunks)


def test_stream_interval_groups_blocks(engine: InProcessEngine) -> None:
    prompt = prompt_of(engine, COUNT)
    rid = engine.submit(
        prompt, max_new_tokens=256, ignore_eos=True, stream=True, stream_interval=64
    )
    engine.run()
    chunks = engine.answers[rid].chunks
    assert sum(map(len, chunks)) == 256
    assert all(len(chunk) >= 64 for chunk in chunks[1:-1])


def test_denoise_streams_show_provisional_blocks_beside_the_final_text(
    engine: InProcessEngine, oracle: Oracle
) -> None:
    prompt = prompt_of(engine, COUNT)
    rid = engine.submit(
        prompt,
        max_new_tokens=80,
        stream=True,
        custom_params={"stream_mode": "denoise", "threshold": 1.0},
    )
    engine.run()
    answer = engine.answers[rid]
    expected = oracle(prompt, max_new_tokens=80, threshold=1.0)
    assert answer.ids == list(expected.output_ids)
    shown = answer.traces["provisional"]
    assert shown
    final = prompt + answer.ids
    for state in shown:
        assert state["position"] % 32 == 0
        assert len(state["token_ids"]) == 32
        start = state["position"]
        # The policy never takes back, so what is shown unmasked is what comes.
        for offset, token in enumerate(state["token_ids"]):
            if token is not None and start + offset < len(final):
                assert token == final[start + offset]
        assert (None in state["token_ids"]) == ("<|mask|>" in state["text"])
    steps = [state["step"] for state in shown]
    assert steps[0] == 1
    plain = engine.submit(prompt, max_new_tokens=80, custom_params={"stream_mode": "denoise"})
    engine.run()
    assert "provisional" not in engine.answers[plain].traces
