"""A temperature that is not given is 0 for our models, and the host's for others."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

from llada_sglang.serving import temperature

MESSAGES: list[Any] = [{"role": "user", "content": "a"}]


def model_config(
    architecture: str = "LLaDA2MoeModelLM", defaults: str = "model", **generation: Any
) -> SimpleNamespace:
    return SimpleNamespace(
        hf_config=SimpleNamespace(architectures=[architecture]),
        sampling_defaults=defaults,
        hf_generation_config=SimpleNamespace(to_dict=lambda: generation),
    )


def chat_temperature(request: Any, config: SimpleNamespace) -> float:
    defaults = temperature.chat_defaults(ModelConfig.get_default_sampling_params, config)
    if isinstance(request, ResponsesRequest):
        return float(request.to_sampling_params(None, defaults)["temperature"])
    return float(request.to_sampling_params([], defaults)["temperature"])


@pytest.mark.parametrize("given", [{}, {"temperature": None}])
def test_a_chat_without_temperature_is_greedy(given: dict[str, Any]) -> None:
    chat = ChatCompletionRequest(messages=MESSAGES, **given)
    response = ResponsesRequest(input="a", **given)
    assert chat_temperature(chat, model_config()) == 0.0
    assert chat_temperature(response, model_config()) == 0.0
    assert chat_temperature(chat, model_config(temperature=0.3)) == 0.3, "the checkpoint's wins"
    other = model_config("Qwen2ForCausalLM")
    assert chat_temperature(chat, other) == 1.0
    assert chat_temperature(response, other) == 0.7
    openai = model_config(defaults="openai", temperature=0.3)
    assert chat_temperature(chat, openai) == 1.0, "asked for on the command line"


@pytest.mark.parametrize("given", [0.0, 0.5, 1.0])
def test_a_temperature_that_is_given_is_kept(given: float) -> None:
    chat = ChatCompletionRequest(messages=MESSAGES, temperature=given)
    assert chat_temperature(chat, model_config(temperature=0.3)) == given


def completion(config: SimpleNamespace, **given: Any) -> dict[str, Any]:
    serving = SimpleNamespace(tokenizer_manager=SimpleNamespace(model_config=config))
    return temperature.completion_params(
        # Another test may have hooked it in this process.
        inspect.unwrap(OpenAIServingCompletion._build_sampling_params),
        serving,
        CompletionRequest(prompt="a", **given),
    )


def test_a_completion_leaves_its_temperature_open_where_its_request_does() -> None:
    assert "temperature" not in completion(model_config())
    assert completion(model_config(), temperature=1.0)["temperature"] == 1.0
    assert completion(model_config("Qwen2ForCausalLM"))["temperature"] == 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"temperature": 0.0}),
        ({}, {"temperature": 0.0}),
        ('{"top_p": 0.9}', {"temperature": 0.0, "top_p": 0.9}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ("{", "{"),  # the host says what is wrong with it
        ("[1]", [1]),
    ],
)
def test_the_users_preferred_parameters_win(given: Any, expected: Any) -> None:
    assert temperature.preferred(given, "model") == expected


def test_the_hosts_defaults_can_be_asked_for() -> None:
    assert temperature.preferred(None, "openai") is None
    assert temperature.preferred({"top_p": 0.9}, "openai") == {"top_p": 0.9}
