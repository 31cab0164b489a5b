"""What every request passes on its way in, for our models, and for others untouched."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from fastapi import HTTPException
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

from llada_sglang.errors import RequestError
from llada_sglang.serving import admission, http, refusals

CHUNKS = object()
"""What the host's own function returns."""


def manager(architecture: str = "LLaDA2MoeModelLM") -> SimpleNamespace:
    config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]))
    return SimpleNamespace(model_config=config)


def admit(obj: Any, architecture: str = "LLaDA2MoeModelLM") -> Any:
    return admission.admit(lambda *_: CHUNKS, manager(architecture), obj, None)


VALUES = {
    "return_hidden_states": "last",
    "sampling_logprobs_mode": "selected",
    "image_data": ["a.png"],
    "watermark": {"enabled": True},
    "mm_hashes": [["a"], ["b"]],
    "session_params": {"id": "a"},
}


@pytest.mark.parametrize("refusal", refusals.GENERATE, ids=lambda refusal: refusal.name)
def test_a_field_that_means_nothing_here_is_refused_by_name(refusal: refusals.Refusal) -> None:
    default = refusal.default
    value = VALUES.get(refusal.name, True if default is False else 7)
    for given in (value, [None, value]):
        with pytest.raises(RequestError) as raised:
            admit(GenerateReqInput(text="a", **{refusal.name: given}))
        message = f"{refusal.name} is not served: {refusal.reason}. Leave it out."
        assert str(raised.value) == message
    for neutral in (None, [], [None, None], default, [default, None]):
        assert admit(GenerateReqInput(text="a", **{refusal.name: neutral})) is CHUNKS


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"beam_width": 2}, "beam_width"),
        ({"watermark": {"key": "x"}}, "watermark"),
        ({"temprature": 1}, "temprature"),
        ({"gen_length": 3, "max_new_tokens": 4}, "gen_length"),
    ],
)
def test_a_sampling_parameter_that_means_nothing_here_is_refused(params: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        admit(GenerateReqInput(text="a", sampling_params=params))
    with pytest.raises(RequestError, match=named):
        admit(GenerateReqInput(text=["a", "b"], sampling_params=[{}, params]))


def test_published_names_are_taken_from_a_program_too() -> None:
    obj = GenerateReqInput(
        text="a",
        sampling_params={
            "gen_length": 64,
            "block_length": 32,
            "temperature": None,
        },
    )
    assert admit(obj) is CHUNKS
    assert obj.sampling_params == {
        "max_new_tokens": 64,
        "custom_params": {"block_length": 32},
    }
    batch = GenerateReqInput(input_ids=[[1], [2]], sampling_params=[{"gen_length": 1}, {"n": None}])
    assert admit(batch) is CHUNKS
    assert batch.sampling_params == [{"max_new_tokens": 1}, {}]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ({"text": "a"}, [{}], "one mapping for one prompt"),
        ({"input_ids": [1, 2]}, [{}, {}], "one mapping for one prompt"),
        ({}, [{}], "one mapping for one prompt"),
        ({"text": ["a", "b"]}, [{}], "one mapping, or 2, one per prompt; got 1"),
        ({"text": ["a", "b"]}, [{}, None], "a mapping of names to values, got None"),
        ({"text": "a"}, "greedy", "a mapping of names to values, got 'greedy'"),
    ],
)
def test_parameters_must_fit_the_prompts(prompt: Any, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        admit(GenerateReqInput(**prompt, sampling_params=params))


def test_embeddings_scores_and_sessions_are_refused() -> None:
    with pytest.raises(RequestError, match="embeddings are not served"):
        admit(EmbeddingReqInput(text="a"))
    with pytest.raises(RequestError, match="scores are not served"):
        admission.refuse_scores(lambda *_: CHUNKS, manager(), "query", ["item"])
    with pytest.raises(RequestError, match="sessions are not served"):
        admission.refuse_sessions(lambda *_: CHUNKS, manager(), "request")


def test_other_models_are_left_alone() -> None:
    obj = GenerateReqInput(text="a", image_data="a.png", sampling_params={"temperature": None})
    assert admit(obj, "Qwen2ForCausalLM") is CHUNKS
    assert obj.sampling_params == {"temperature": None}
    assert admit(EmbeddingReqInput(text="a"), "Qwen2ForCausalLM") is CHUNKS
    other = manager("Qwen2ForCausalLM")
    for hook in (admission.refuse_scores, admission.refuse_sessions):
        assert hook(lambda *given, **named: (given, named), other, 1, a=2) == ((other, 1), {"a": 2})


class Request:
    """As much of the host's request as its `json` needs."""

    def __init__(self, route: str, body: Any, architecture: str = "LLaDA2MoeModelLM") -> None:
        self.scope = {"route": SimpleNamespace(name=route)}
        completion = SimpleNamespace(tokenizer_manager=manager(architecture))
        state = SimpleNamespace(openai_serving_completion=completion)
        self.app = SimpleNamespace(state=state)
        self.text = json.dumps(body)

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = json.loads(self.text)
        return self._json


def read(request: Request) -> Any:
    return asyncio.run(http.read_json(Request.json, request))


MESSAGES = [{"role": "user", "content": "a"}]


def test_the_published_body_reaches_the_host_in_its_own_form() -> None:
    request = Request("generate_request", {"prompt": "a", "max_new_tokens": 500})
    expected = {"text": "a", "sampling_params": {"max_new_tokens": 500}}
    assert read(request) == expected
    assert read(request) == expected, "the host reads the body twice"


@pytest.mark.parametrize(
    ("route", "body", "named"),
    [
        ("generate_request", {"prompt": "a", "text": "b"}, "prompt and text"),
        ("generate_request", {"text": "a", "xyzzy": 1}, "xyzzy"),
        ("openai_v1_completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("openai_v1_completions", {"prompt": "a", "best_of": 3}, "best_of"),
        ("openai_v1_completions", {"prompt": "a", "best_of": 3, "n": 2}, "best_of"),
        ("openai_v1_completions", {"prompt": "a", "session_params": {"id": "a"}}, "session_params"),
        (
            "openai_v1_completions",
            {"prompt": "a", "return_spec_tokens_details": True},
            "return_spec",
        ),
        ("openai_v1_completions", {"prompt": "a", "steps": 5}, "steps is a decoding parameter"),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "functions": []}, "functions"),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "modalities": ["audio"]},
            "modalities",
        ),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "thinking": {}}, None),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "thinking": {"type": "on"}},
            "thinking",
        ),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "task": "query"}, "task"),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "min_dynamic_patch": 1},
            "min_dynamic",
        ),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "session_params": {"id": 1}},
            "session",
        ),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "return_spec_tokens_details": True},
            "return_spec_tokens_details",
        ),
        ("sagemaker_chat_completions", {"messages": MESSAGES, "xyzzy": 1}, "xyzzy"),
        ("v1_responses_request", {"input": "a", "max_tool_calls": 1}, "max_tool_calls"),
        ("v1_responses_request", {"input": "a", "top_logprobs": 1}, "top_logprobs"),
        ("v1_responses_request", {"input": "a", "conversation": "x"}, "conversation"),
        ("vertex_generate", {"instances": [{"text": "a"}], "parameters": {"xyzzy": 1}}, "xyzzy"),
        ("vertex_generate", {"instances": [{"txt": "a"}]}, "txt"),
        ("vertex_generate", {"instances": ["a"]}, "unknown key"),
        ("vertex_generate", {"instances": [], "parameters": {"prompt": "a"}}, "prompts belong"),
    ],
)
def test_a_body_that_cannot_mean_what_it_says_is_a_400(
    route: str, body: Any, named: str | None
) -> None:
    if named is None:
        assert read(Request(route, body)) == body
        return
    with pytest.raises(HTTPException) as raised:
        read(Request(route, body))
    assert raised.value.status_code == 400
    assert named in raised.value.detail


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (
            "openai_v1_completions",
            {"prompt": "a", "best_of": 2, "n": 2, "suffix": None, "user": "u"},
        ),
        (
            "openai_v1_chat_completions",
            {"messages": MESSAGES, "store": True, "modalities": ["text"]},
        ),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
        ("openai_v1_chat_completions", {"messages": MESSAGES, "reasoning": {"effort": "low"}}),
        (
            "v1_responses_request",
            {"input": "a", "top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        ),
        ("vertex_generate", {"instances": [{"text": "a"}], "parameters": {"stream": False}}),
        ("vertex_generate", {"instances": 5}),
        ("openai_v1_embeddings", {"anything": 1}),
        ("generate_request", [1, 2]),
        ("generate_request", "text"),
    ],
)
def test_any_other_body_passes_unchanged(route: str, body: Any) -> None:
    assert read(Request(route, body)) == body


def test_the_bodies_of_other_models_pass_unchanged() -> None:
    for route in http.rewrites():
        body = {"prompt": "a", "xyzzy": 1, "temperature": None}
        assert read(Request(route, body, "Qwen2ForCausalLM")) == body


def test_every_route_that_is_rewritten_is_one_of_the_hosts() -> None:
    from sglang.srt.entrypoints.http_server import app

    assert set(http.rewrites()) <= {getattr(route, "name", "") for route in app.routes}


def test_the_hosts_own_state_is_no_parameter() -> None:
    for name in ("stop_strs", "stop_regex_strs", "stop_str_max_len", "is_normalized"):
        with pytest.raises(RequestError, match=f"unknown sampling parameter '{name}'"):
            admit(GenerateReqInput(text="a", sampling_params={name: 1}))
    obj = GenerateReqInput(text="a", sampling_params={"ebnf": "a", "ebnf_full_assistant": True})
    assert admit(obj) is CHUNKS
