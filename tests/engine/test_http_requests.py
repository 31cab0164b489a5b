"""What clients see over HTTP: streams, stops, refusals, floods, disconnects, nonsense."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from oracle import alive_and_exact
from servers import Server

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt


@pytest.fixture
def client(nano_server: Server) -> OpenAI:
    return OpenAI(base_url=nano_server.url + "/v1", api_key="none", max_retries=0, timeout=300)


def example(family: str, seed: int = 3) -> tasks.Example:
    (drawn,) = tasks.examples(seed, family, "eval", 1)
    return drawn


def stream(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All chunks of a native stream."""
    import urllib.request

    request = urllib.request.Request(
        server.url + "/generate",
        json.dumps(body | {"stream": True}).encode(),
        {"Content-Type": "application/json"},
    )
    chunks = []
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            text = line.decode().strip()
            if text.startswith("data:") and text != "data: [DONE]":
                chunks.append(json.loads(text.removeprefix("data:")))
    return chunks


def refusal(server: Server, body: dict[str, Any], path: str = "/generate") -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(path, body)
    return caught.value.code, caught.value.read().decode()


def test_chat_completions_through_the_openai_client(client: OpenAI) -> None:
    asked = example("json")
    answer = client.chat.completions.create(
        model="nano", messages=list(asked.messages), temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content is not None
    streamed = client.chat.completions.create(
        model="nano",
        messages=list(asked.messages),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(streamed)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_decoding_parameters_go_through_every_door(nano_server, client, oracle) -> None:
    """A lower threshold takes fewer forwards, natively and through the openai client."""
    prompt = list(range(40, 75))
    forwards = []
    for threshold in (1.0, 0.05):
        params = {"threshold": threshold}
        answer = nano_server.generate(
            prompt, max_new_tokens=64, sampling={"custom_params": params, "ignore_eos": True}
        )
        expected = oracle(prompt, max_new_tokens=64, ignore_eos=True, **params)
        assert tuple(answer["output_ids"]) == expected.output_ids
        assert answer["meta_info"]["denoise_forwards"] == expected.forwards
        assert answer["meta_info"]["tokens_per_forward"] == pytest.approx(
            64 / expected.forwards, abs=1e-3
        )
        forwards.append(expected.forwards)
    assert forwards[0] > forwards[1]
    done = client.completions.create(
        model="nano",
        prompt="What is 1 + 1?",
        temperature=0,
        max_tokens=32,
        extra_body={"custom_params": {"threshold": 0.05}},
    )
    assert done.usage.completion_tokens >= 1


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"custom_params": {"threshold": 1.7}}, "threshold must be a number in (0, 1], got 1.7"),
        ({"custom_params": {"treshold": 0.5}}, "treshold"),
        ({"custom_params": {"steps": 0}}, "steps"),
        ({"custom_params": {"trace": 1}}, "trace must be true or false, got 1"),
        ({"custom_params": {"stream_mode": "fast"}}, "stream_mode"),
        ({"custom_params": {"policy": "best"}}, "policy must be one of credit, edit"),
        ({"custom_params": {"block_length": 16}}, "block_length must be 32"),
        ({"custom_params": {"gen_length": "x"}}, "gen_length"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"regex": "("}, "regex"),
        ({"json_schema": "{"}, "json"),
        ({"logit_bias": {"10000000": 1.0}}, "10000000"),
        ({"beam_width": 4}, "beam_width"),
        ({"stop_token_ids": [10**7]}, "10000000"),
    ],
)
def test_what_is_not_served_is_a_400_that_names_it(nano_server, sampling, named) -> None:
    body = {"text": "hello", "sampling_params": {"temperature": 0, "max_new_tokens": 8} | sampling}
    status, message = refusal(nano_server, body)
    assert status == 400, message
    assert named in message


@pytest.mark.parametrize(
    "body",
    [
        {"input_ids": [1, 2, 10**7]},
        {"input_ids": [-5]},
        {"text": "a", "return_logprob": True, "logprob_start_len": 0},
        {"text": "a", "return_logprob": True, "token_ids_logprob": [10**7]},
        {"text": "a", "return_hidden_states": True},
        {"text": "a b c " * 5000},
        {"text": "a", "sampling_params": {"max_new_tokens": -1}},
        {"text": "a", "sampling_params": {"custom_params": [1]}},
        {"text": "a", "sampling_params": {"custom_params": {"threshold": None}}},
        {"text": 5},
        {},
    ],
)
def test_nonsense_is_refused_and_hurts_nobody(nano_server, oracle, body) -> None:
    status, _ = refusal(nano_server, body)
    assert 400 <= status < 500
    alive_and_exact(nano_server, oracle)


def test_a_stream_brings_every_token_once_and_no_empty_chunk(nano_server, oracle) -> None:
    prompt = list(range(40, 75))
    body = {
        "input_ids": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 100, "ignore_eos": True},
    }
    chunks = stream(nano_server, body)
    lengths = [len(chunk["output_ids"]) for chunk in chunks]
    expected = oracle(prompt, max_new_tokens=100, ignore_eos=True)
    whole = nano_server.post("/generate", body)
    assert tuple(whole["output_ids"]) == expected.output_ids
    assert chunks[-1]["text"] == whole["text"]
    assert chunks[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 100}
    assert chunks[-1]["meta_info"]["denoise_forwards"] == expected.forwards
    assert all(lengths), "no chunk without new tokens"
    # 35 tokens of prompt: blocks of 29, 32, 32 and 7 tokens. A slow reader gets some together.
    assert len(chunks) <= 4


def test_stop_strings_and_token_ids_cut_the_text(nano_server) -> None:
    (asked,) = tasks.examples(3, "count", "eval", 1)
    prompt = {"text": render_prompt(asked.messages)}
    sampling = {"temperature": 0, "max_new_tokens": 60}

    def answer(**extra: Any) -> dict[str, Any]:
        reply = nano_server.post("/generate", {**prompt, "sampling_params": {**sampling, **extra}})
        assert isinstance(reply, dict)
        return reply

    plain = answer()
    text, ids = plain["text"], plain["output_ids"]
    at = max(ids.index(i) for i in ids[:-1])  # not the EOS it ends with
    stopped = answer(stop_token_ids=[ids[at]])
    assert stopped["output_ids"] == ids[: at + 1]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": ids[at]}

    word = text[len(text) // 2 : len(text) // 2 + 4]
    cut = answer(stop=[word])
    assert cut["text"] == text[: text.index(word)]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": word}


@pytest.mark.parametrize("length", [0, 1, 5, 31, 32, 33, 64])
def test_max_new_tokens_is_exact_and_only_cuts(nano_server, length) -> None:
    prompt = list(range(40, 75))
    sampling = {"ignore_eos": True}
    long = nano_server.generate(prompt, max_new_tokens=64, sampling=sampling)["output_ids"]
    short = nano_server.generate(prompt, max_new_tokens=length, sampling=sampling)
    assert short["output_ids"] == long[:length]
    assert short["meta_info"]["completion_tokens"] == length


def test_several_answers_to_one_prompt(nano_server) -> None:
    body = {
        "text": "What is 12 + 13?",
        "sampling_params": {"temperature": 0, "max_new_tokens": 24, "n": 3},
    }
    answers = nano_server.post("/generate", body)
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 1
    assert len(answers) == 3


def test_a_flood_is_answered_whole(nano_server, oracle) -> None:
    prompts = [[*range(40, 60 + i % 30)] for i in range(80)]
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda p: nano_server.generate(p, max_new_tokens=24), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = oracle(prompt, max_new_tokens=24).output_ids
        assert tuple(answer["output_ids"]) == expected


def test_clients_that_hang_up_free_what_they_held(nano_server, oracle) -> None:
    body = json.dumps(
        {
            "text": "hello",
            "stream": True,
            "sampling_params": {"temperature": 0, "max_new_tokens": 2000, "ignore_eos": True},
        }
    )
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    sockets = []
    for _ in range(6):
        connection = socket.create_connection(("127.0.0.1", nano_server.port))
        connection.sendall(head.encode())
        sockets.append(connection)
    for connection in sockets:
        connection.recv(64)
        connection.close()
    alive_and_exact(nano_server, oracle)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (load,) = json.loads(nano_server.get("/v1/loads"))["loads"]
        if load["num_running_reqs"] == 0 and load["num_used_tokens"] == 0:
            return
        time.sleep(0.5)
    raise AssertionError(f"still held: {load}")


def test_aborting_by_id_ends_the_request(nano_server, oracle) -> None:
    done: dict[str, Any] = {}

    def long_request() -> None:
        done.update(
            nano_server.post(
                "/generate",
                {
                    "text": "hello",
                    "rid": "victim",
                    "sampling_params": {
                        "temperature": 0,
                        "max_new_tokens": 3000,
                        "ignore_eos": True,
                        "custom_params": {"threshold": 1.0},
                    },
                },
            )
        )

    thread = threading.Thread(target=long_request)
    thread.start()
    time.sleep(1.5)
    with pytest.raises(json.JSONDecodeError):
        nano_server.post("/abort_request", {"rid": "victim"})  # answers with an empty body
    thread.join(60)
    assert done["meta_info"]["finish_reason"]["type"] == "abort"
    alive_and_exact(nano_server, oracle)


def test_the_cache_can_be_flushed_and_the_server_says_it_is_healthy(nano_server) -> None:
    nano_server.generate(list(range(40, 140)))
    time.sleep(0.5)
    assert b"flushed" in nano_server.get("/flush_cache").lower()
    assert nano_server.get("/health_generate") == b""
    again = nano_server.generate(list(range(40, 140)))
    assert again["meta_info"]["cached_tokens"] == 0
    hit = nano_server.generate(list(range(40, 140)))
    assert hit["meta_info"]["cached_tokens"] == 96


def test_weights_are_updated_under_running_requests(nano_server, oracle, nano) -> None:
    prompt = list(range(40, 75))
    slow = {
        "input_ids": prompt,
        "sampling_params": {
            "max_new_tokens": 300,
            "ignore_eos": True,
            "custom_params": {"threshold": 1.0},
        },
    }
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(nano_server.post, "/generate", slow) for _ in range(3)]
        time.sleep(0.3)
        done = nano_server.post("/update_weights_from_disk", {"model_path": str(nano)})
        assert done["success"], done
        answers = [one.result(timeout=300) for one in running]
    # The same weights again: nothing but the time of the update may show.
    expected = oracle(prompt, max_new_tokens=300, ignore_eos=True, threshold=1.0)
    for answer in answers:
        assert tuple(answer["output_ids"]) == expected.output_ids
    alive_and_exact(nano_server, oracle)
