"""A field of an OpenAI body means what the native parameter means that the engine is tested by."""

from __future__ import annotations

import json
from typing import Any

import pytest
from servers import Server

from llada_sglang.nano.chat import render_prompt

# Nothing nano knows: an answer it is sure of shows no field.
MESSAGES = [{"role": "user", "content": "Why is zqx, or 7 of it?"}]
PROMPT = render_prompt(MESSAGES)
HOT = {"temperature": 2.0, "seed": 5}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
UNSEEN = {"ignore_eos", "min_tokens", "min_p", "presence_penalty"}
"""Fields that need not change this short answer."""

NAMES = {"seed": "sampling_seed", "min_tokens": "min_new_tokens", "max_tokens": "max_new_tokens"}

FIELDS: list[dict[str, Any]] = [
    {"max_tokens": 5},
    HOT,
    {**HOT, "top_p": 0.6},
    {**HOT, "top_k": 3},
    {**HOT, "min_p": 0.2},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 2.0},
    {"logit_bias": {"300": 100.0}},
    {"stop": [" "]},
    {"stop": [" "], "no_stop_trim": True},
    {"stop_regex": "[a-z]{3}"},
    {"stop_token_ids": [761], "skip_special_tokens": False, "no_stop_trim": True},
    {"ignore_eos": True},
    {"ignore_eos": False, "min_tokens": 60},
    {"regex": "[a-c]{3,5}"},
    {"ebnf": 'root ::= "yes" | "no"'},
    {"custom_params": {"gen_length": 4}},
]


def native(server: Server, params: dict[str, Any], **fields: Any) -> dict[str, Any]:
    named = {NAMES.get(name, name): value for name, value in params.items()}
    length = {} if "gen_length" in params.get("custom_params", {}) else {"max_new_tokens": 64}
    sampling = {**length, **named}
    answer = server.post("/generate", {"text": PROMPT, "sampling_params": sampling, **fields})
    assert isinstance(answer, dict)
    return answer


def completion(server: Server, body: dict[str, Any]) -> Any:
    whole = {"model": "nano", "prompt": PROMPT, "max_tokens": 64, **body}
    return server.post("/v1/completions", whole)["choices"]


def chat(server: Server, body: dict[str, Any]) -> Any:
    whole = {"model": "nano", "messages": MESSAGES, "max_tokens": 64, **body}
    return server.post("/v1/chat/completions", whole)["choices"]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "+".join(fields))
def test_sampling_fields_mean_what_the_native_ones_mean(
    nano_server: Server, fields: dict[str, Any]
) -> None:
    expected = native(nano_server, fields)["text"]
    assert completion(nano_server, fields)[0]["text"] == expected
    assert chat(nano_server, fields)[0]["message"]["content"] == expected
    renamed = {"max_completion_tokens" if k == "max_tokens" else k: v for k, v in fields.items()}
    assert chat(nano_server, renamed)[0]["message"]["content"] == expected
    if not UNSEEN & set(fields):
        assert expected != native(nano_server, {})["text"], "the field shows in the text"


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_a_response_format_is_its_schema(
    nano_server: Server, given: dict[str, Any], schema: dict[str, Any]
) -> None:
    expected = native(nano_server, {"json_schema": json.dumps(schema)})["text"]
    assert completion(nano_server, {"response_format": given})[0]["text"] == expected
    assert chat(nano_server, {"response_format": given})[0]["message"]["content"] == expected
    if schema is SCHEMA:
        assert json.loads(expected)["a"] in ("x", "y")


def test_log_probabilities_are_the_native_ones(nano_server: Server) -> None:
    given = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
    info = native(nano_server, {}, **given)["meta_info"]
    values = [value for value, *_ in info["output_token_logprobs"]]
    (of_chat,) = chat(nano_server, {"logprobs": True, "top_logprobs": 2})
    content = of_chat["logprobs"]["content"]
    assert [token["logprob"] for token in content] == pytest.approx(values)
    assert [len(token["top_logprobs"]) for token in content] == [2] * len(values)
    (done,) = completion(nano_server, {"logprobs": 2})
    assert done["logprobs"]["token_logprobs"] == pytest.approx(values)
    flat = {"logprobs": True, "top_logprobs": 2, "return_meta_info": True}
    flat |= {"return_flat_raw_output_top_logprobs": True, "return_flat_raw_top_logprobs_b64": False}
    (of_chat,) = chat(nano_server, flat)
    assert of_chat["meta_info"]["output_top_logprobs_shape"] == [len(values), 2]


def test_several_samples_are_drawn_apart(nano_server: Server) -> None:
    body = {"n": 3, "temperature": 3.0}
    assert len({choice["text"] for choice in completion(nano_server, body)}) > 1
    assert len({choice["message"]["content"] for choice in chat(nano_server, body)}) > 1


def test_an_echo_repeats_the_prompt(nano_server: Server) -> None:
    (choice,) = completion(nano_server, {"echo": True})
    assert choice["text"] == PROMPT + native(nano_server, {})["text"]


def test_a_response_means_what_a_chat_means(nano_server: Server) -> None:
    model = json.loads(nano_server.get("/v1/models"))["data"][0]["id"]
    asked = MESSAGES[-1]["content"]

    def response(**fields: Any) -> dict[str, Any]:
        answer = nano_server.post("/v1/responses", {"model": model, "input": asked, **fields})
        assert isinstance(answer, dict)
        return answer

    def text(**fields: Any) -> str:
        (message,) = response(**fields)["output"]
        return str(message["content"][0]["text"])

    assert text() == native(nano_server, {})["text"]
    assert text(stop=" ") == native(nano_server, {"stop": " "})["text"]
    for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
        expected = native(nano_server, {name: 2.0, "max_tokens": 62})["text"]
        assert text(**{name: 2.0, "max_output_tokens": 64}) == expected
    for extra in ({"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}):
        assert response(temperature=2.0, max_output_tokens=64, **extra)["status"]
    cut = response(max_output_tokens=10)
    assert cut["usage"]["output_tokens"] == 8, "the host keeps two tokens back"
    form = {"type": "json_schema", "name": "a", "schema": SCHEMA}
    assert json.loads(text(text={"format": form}))["a"] in ("x", "y")
