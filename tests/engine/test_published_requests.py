"""Requests as LLaDA users write them, and what is refused, on every way into a server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from openai import OpenAI
from servers import Server

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

QUESTION, NEXT = tasks.examples(3, "count", "eval", 2)
PROMPT = render_prompt(QUESTION.messages)
CHAT = {"model": "nano", "messages": list(QUESTION.messages), "max_tokens": 64}


@pytest.fixture
def client(nano_server: Server) -> OpenAI:
    return OpenAI(base_url=nano_server.url + "/v1", api_key="none", max_retries=0, timeout=300)


def refused(server: Server, path: str, body: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(path, body)
    return caught.value.code, caught.value.read().decode()


def test_the_published_example_works_as_it_stands(nano_server: Server) -> None:
    answer = nano_server.post("/generate", {"prompt": PROMPT, "max_new_tokens": 500})
    assert answer["text"] == QUESTION.answer
    own = {"text": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 500}}
    assert nano_server.post("/generate", own)["output_ids"] == answer["output_ids"]


def test_the_arguments_of_the_published_generate_work(nano_server: Server) -> None:
    body = {"prompt": PROMPT, "gen_length": 64, "block_length": 32, "temperature": 0.0}
    careful = nano_server.post("/generate", {**body, "threshold": 1.0, "steps": 32})
    quick = nano_server.post("/generate", {**body, "threshold": 0.1, "eos_early_stop": True})
    assert careful["meta_info"]["denoise_forwards"] > quick["meta_info"]["denoise_forwards"]
    cut = nano_server.post("/generate", {**body, "gen_length": 5})
    assert cut["meta_info"]["completion_tokens"] == 5


def test_prompts_may_be_several_and_of_token_ids(nano_server: Server) -> None:
    texts = [PROMPT, render_prompt(NEXT.messages)]
    answers = nano_server.post("/generate", {"prompt": texts, "gen_length": 128})
    assert [answer["text"] for answer in answers] == [QUESTION.answer, NEXT.answer]
    ids = nano_server.post("/tokenize", {"model": "nano", "prompt": texts})["tokens"]
    again = nano_server.post("/generate", {"prompt": ids, "gen_length": 128})
    assert [answer["text"] for answer in again] == [QUESTION.answer, NEXT.answer]
    one = nano_server.post("/generate", {"prompt": ids[0], "gen_length": 128})
    assert one["text"] == QUESTION.answer


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": "a", "text": "b"}, ["prompt and text"]),
        ({"prompt": "a", "block_length": 16}, ["block_length must be 32", "16"]),
        ({"prompt": "a", "gen_length": 5, "max_new_tokens": 6}, ["gen_length", "max_new_tokens"]),
        ({"prompt": "a", "threshold": 1.7}, ["threshold must be a number in (0, 1], got 1.7"]),
        ({"prompt": "a", "max_tokens": 6}, ["max_tokens", "max_new_tokens"]),
        ({"prompt": {}}, ["prompt must be"]),
        ({"text": "a", "sampling_params": [{}]}, ["sampling_params must be one mapping"]),
        ({"text": "a", "image_data": "a.png"}, ["image_data"]),
        ({"text": "a", "session_params": {"id": "a"}}, ["session_params"]),
        ({"text": "a", "bootstrap_room": 1}, ["bootstrap_room"]),
        ({"text": "a", "lora_path": "a"}, ["lora_path"]),
        ({"text": "a", "return_hidden_states": True}, ["return_hidden_states"]),
        ({"text": "a", "custom_logit_processor": "a"}, ["custom_logit_processor"]),
        ({"text": "a", "watermark": {"enabled": True}}, ["watermark"]),
        ({"text": "a", "sampling_params": {"beam_width": 2}}, ["beam_width"]),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 0}, ["logprob_start_len"]),
    ],
)
def test_a_native_request_that_cannot_be_meant_is_a_400(
    nano_server: Server, body: dict[str, Any], named: list[str]
) -> None:
    status, message = refused(nano_server, "/generate", body)
    assert status == 400, message
    for text in named:
        assert text in message


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "a", "threshold": 0.5}, "custom_params"),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ("/v1/chat/completions", {**CHAT, "functions": []}, "functions"),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {**CHAT, "model": "nano:adapter"}, "lora_path"),
        ("/v1/responses", {"input": "a", "max_tool_calls": 1}, "max_tool_calls"),
        ("/v1/embeddings", {"model": "nano", "input": "a"}, "embeddings are not served"),
        ("/v1/classify", {"model": "nano", "input": "a"}, "embeddings are not served"),
        ("/encode", {"text": "a"}, "embeddings are not served"),
        ("/classify", {"text": "a"}, "embeddings are not served"),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}, "not served"),
        (
            "/v1/score",
            {"model": "nano", "query": "a", "items": ["b"], "label_token_ids": [5]},
            "scores are not served",
        ),
        ("/open_session", {"capacity_of_str_len": 100}, "sessions are not served"),
        ("/vertex_generate", {"instances": [{"text": "a"}], "parameters": {"x": 1}}, "'x'"),
    ],
)
def test_an_interface_that_is_not_served_says_so(
    nano_server: Server, path: str, body: dict[str, Any], named: str
) -> None:
    status, message = refused(nano_server, path, body)
    assert status == 400, message
    assert named in message


def test_an_image_in_a_chat_is_refused(nano_server: Server) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    body = {**CHAT, "messages": [{"role": "user", "content": content}]}
    status, message = refused(nano_server, "/v1/chat/completions", body)
    assert status == 400, message
    assert "image_url" in message


def test_without_a_temperature_every_interface_is_greedy(
    nano_server: Server, client: OpenAI
) -> None:
    """What is sampled at the host's default of 1 differs from time to time; this must not."""
    prompt = "zqx"
    fixed = {"ignore_eos": True, "max_new_tokens": 64}
    want = nano_server.post(
        "/generate", {"text": prompt, "sampling_params": {**fixed, "temperature": 0}}
    )["text"]
    for params in ({}, {"temperature": None}):
        body = {"text": prompt, "sampling_params": {**fixed, **params}}
        assert nano_server.post("/generate", body)["text"] == want
        completion = {"model": "nano", "prompt": prompt, "max_tokens": 64, "ignore_eos": True}
        answer = nano_server.post("/v1/completions", {**completion, **params})
        assert answer["choices"][0]["text"] == want
    hot = {"text": prompt, "sampling_params": {**fixed, "temperature": 5.0}}
    texts = {nano_server.post("/generate", hot)["text"] for _ in range(3)}
    assert len(texts) > 1, "a temperature that is given is honoured"

    messages: Any = list(QUESTION.messages)
    chats = {
        client.chat.completions.create(model="nano", messages=messages).choices[0].message.content
        for _ in range(3)
    }
    assert chats == {QUESTION.answer}
    model = client.models.list().data[0].id
    response = client.responses.create(model=model, input=messages[-1]["content"])
    assert response.output_text == QUESTION.answer
    ollama = {"model": "nano", "messages": messages, "stream": False, "options": {"seed": 1}}
    assert nano_server.post("/api/chat", ollama)["message"]["content"] == QUESTION.answer
    anthropic = {"model": "nano", "messages": messages, "max_tokens": 128}
    said = nano_server.post("/v1/messages", anthropic)["content"]
    assert said == [{"type": "text", "text": QUESTION.answer}]
    told = json.loads(nano_server.get("/model_info"))["preferred_sampling_params"]
    assert told == {"temperature": 0.0}


def test_cached_blocks_are_kept_apart_by_salt_and_key(nano_server: Server) -> None:
    prompt = list(range(100, 200))
    nano_server.generate(prompt)
    for separate in ({"cache_salt": "mine"}, {"extra_key": "mine"}):
        first = nano_server.generate(prompt, **separate)
        again = nano_server.generate(prompt, **separate)
        assert first["meta_info"]["cached_tokens"] == 0
        assert again["meta_info"]["cached_tokens"] == 96


def test_what_else_the_host_can_tell_of_an_answer(nano_server: Server) -> None:
    native = nano_server.post("/generate", {"text": PROMPT, "return_prompt_token_ids": True})
    ids = native["prompt_token_ids"]
    body = {
        **CHAT,
        "return_token_ids": True,
        "return_meta_info": True,
        "return_input_ids_in_sglext": True,
        "return_output_ids_in_sglext": True,
        "rid": "mine",
        "routed_dp_rank": 0,
    }
    answer = nano_server.post("/v1/chat/completions", body)
    choice = answer["choices"][0]
    assert answer["id"] == choice["meta_info"]["id"] == "mine"
    assert choice["prompt_token_ids"] == answer["sglext"]["input_ids"] == ids
    assert answer["sglext"]["output_ids"] == [choice["response_token_ids"]]
    assert choice["meta_info"]["denoise_forwards"] > 0
    status, message = refused(nano_server, "/v1/chat/completions", {**body, "routed_dp_rank": 3})
    assert status == 400
    assert "routed_dp_rank" in message


def test_an_answer_that_was_begun_is_continued(nano_server: Server) -> None:
    begun = QUESTION.answer.rsplit(", ", 3)[0]
    messages = [*QUESTION.messages, {"role": "assistant", "content": begun}]
    body = {**CHAT, "messages": messages, "continue_final_message": True}
    answer = nano_server.post("/v1/chat/completions", body)
    assert begun + answer["choices"][0]["message"]["content"] == QUESTION.answer


def test_special_tokens_are_shown_on_request(nano_server: Server) -> None:
    body = {**CHAT, "skip_special_tokens": False, "no_stop_trim": True}
    answer = nano_server.post("/v1/chat/completions", body)
    content = answer["choices"][0]["message"]["content"]
    assert content.startswith(QUESTION.answer + "<|role_end|>")


def test_a_chat_may_bring_its_own_token_ids(nano_server: Server) -> None:
    ids = nano_server.post("/tokenize", {"model": "nano", "prompt": PROMPT})["tokens"]
    other = [{"role": "user", "content": "Something else."}]
    body = {**CHAT, "messages": other, "input_ids": ids}
    answer = nano_server.post("/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == QUESTION.answer


def test_a_stream_interval_joins_chunks(nano_server: Server) -> None:
    def chunks(interval: int) -> int:
        params = {"max_new_tokens": 128, "ignore_eos": True, "stream_interval": interval}
        body = {"input_ids": list(range(40, 72)), "stream": True, "sampling_params": params}
        request = urllib.request.Request(
            nano_server.url + "/generate",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return sum(line.startswith(b"data: {") for line in answer)

    assert chunks(1) > chunks(100)
