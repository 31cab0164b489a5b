"""Request bodies as LLaDA users write them: what they become, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from llada_sglang.config import parameter_names
from llada_sglang.errors import RequestError
from llada_sglang.serving import bodies

KNOWN = frozenset(f.name for f in fields(GenerateReqInput))
SAMPLING = frozenset(SamplingParams.__struct_fields__)


def generate(body: dict[str, Any]) -> dict[str, Any]:
    before = repr(body)
    after = bodies.generate_body(body, KNOWN, SAMPLING)
    assert repr(body) == before, "the body is not changed in place"
    assert bodies.generate_body(after, KNOWN, SAMPLING) == after, "what is done is not done twice"
    return after


def test_the_published_example_is_a_request() -> None:
    assert generate({"prompt": "Why is the sky blue?", "max_new_tokens": 500}) == {
        "text": "Why is the sky blue?",
        "sampling_params": {"max_new_tokens": 500},
    }


def test_the_arguments_of_the_published_generate_are_taken() -> None:
    body = {
        "prompt": "a",
        "gen_length": 64,
        "block_length": 32,
        "steps": 8,
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 5,
        "threshold": 0.8,
        "eos_early_stop": False,
        "minimal_topk": 2,
    }
    assert generate(body) == {
        "text": "a",
        "sampling_params": {
            "max_new_tokens": 64,
            "temperature": 0.0,
            "top_p": 0.9,
            "top_k": 5,
            "custom_params": {
                "block_length": 32,
                "eos_early_stop": False,
                "minimal_topk": 2,
                "steps": 8,
                "threshold": 0.8,
            },
        },
    }


@pytest.mark.parametrize("body", [{}, {"text": "a"}, {"text": ["a", "b"], "stream": True}])
def test_a_body_of_the_hosts_own_passes_unchanged(body: dict[str, Any]) -> None:
    assert generate(body) == body


def test_a_host_body_with_everything_passes_unchanged() -> None:
    params = {"temperature": 0.7, "stop": ["x"], "custom_params": {"threshold": 0.9}, "n": 2}
    body = {"input_ids": [[1], [2]], "sampling_params": params, "return_logprob": True}
    assert generate(body) == body
    both = {**body, "sampling_params": [params, {}]}
    assert generate(both) == both


@pytest.mark.parametrize("name", sorted(parameter_names()))
@pytest.mark.parametrize("place", ["top", "sampling_params", "custom_params"])
def test_every_decoding_parameter_is_taken_wherever_it_stands(name: str, place: str) -> None:
    value = 1
    body: dict[str, Any] = {"text": "a"}
    if place == "top":
        body[name] = value
    elif place == "sampling_params":
        body["sampling_params"] = {name: value}
    else:
        body["sampling_params"] = {"custom_params": {name: value}}
    assert generate(body)["sampling_params"] == {"custom_params": {name: value}}


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("a", "text"),
        ("", "text"),
        (["a", "b"], "text"),
        ([1, 2, 3], "input_ids"),
        ([[1], [2, 3]], "input_ids"),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_several(prompt: Any, field: str) -> None:
    assert generate({"prompt": prompt}) == {field: prompt}


@pytest.mark.parametrize(
    "prompt", [[], 5, 1.5, True, {"text": "a"}, ["a", 1], [1, [2]], [1.5], [True], [["a"]], [None]]
)
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt must be a text, a list of texts"):
        generate({"prompt": prompt})


def test_a_long_refused_prompt_is_not_repeated_whole() -> None:
    with pytest.raises(RequestError) as raised:
        generate({"prompt": [1.5] * 100_000})
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", ["text", "input_ids", "input_embeds"])
def test_a_request_has_one_prompt(name: str) -> None:
    with pytest.raises(RequestError, match=f"prompt and {name} are both given"):
        generate({"prompt": "a", name: "a"})
    assert generate({"prompt": "a", name: None}) == {name: None, "text": "a"}


def test_one_length_may_be_given_twice_if_it_is_the_same() -> None:
    expected = {"text": "a", "sampling_params": {"max_new_tokens": 64}}
    twice = {"text": "a", "gen_length": 64, "max_new_tokens": 64}
    assert generate(twice) == expected
    assert generate({**twice, "sampling_params": {"max_new_tokens": 64}}) == expected


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"gen_length": 64, "max_new_tokens": 65}, ["gen_length = 64", "max_new_tokens = 65"]),
        (
            {"gen_length": 64, "sampling_params": {"max_new_tokens": 65}},
            ["gen_length = 64", "max_new_tokens = 65"],
        ),
        (
            {"sampling_params": {"max_new_tokens": 65, "custom_params": {"gen_length": 64}}},
            ["gen_length = 64", "max_new_tokens = 65"],
        ),
        (
            {"temperature": 0, "sampling_params": {"temperature": 1.0}},
            ["temperature = 0 ", "temperature = 1.0"],
        ),
        (
            {"threshold": 0.5, "sampling_params": {"threshold": 0.6}},
            ["threshold = 0.5", "threshold = 0.6"],
        ),
        (
            {"threshold": 0.5, "sampling_params": {"custom_params": {"threshold": 0.6}}},
            ["threshold = 0.5", "threshold = 0.6"],
        ),
        (
            {"sampling_params": {"steps": 1, "custom_params": {"steps": 2}}},
            ["steps = 1", "steps = 2"],
        ),
        (
            {"eos_early_stop": True, "sampling_params": {"custom_params": {"eos_early_stop": 1}}},
            ["eos_early_stop = True", "eos_early_stop = 1"],
        ),
        (
            {"sampling_params": {"seed": 1, "sampling_seed": 2}},
            ["seed = 1", "sampling_seed = 2"],
        ),
    ],
)
def test_two_values_of_one_thing_are_refused(body: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(RequestError, match="contradict each other") as raised:
        generate({"text": "a", **body})
    for text in named:
        assert text in str(raised.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("max_tokens", "unknown key 'max_tokens' in the request body; did you mean 'max_new_"),
        ("prompts", "did you mean 'prompt'?"),
        ("treshold", "did you mean 'threshold'?"),
        ("xyzzy", "unknown key 'xyzzy' in the request body; leave it out."),
        ("stop", "stop is a sampling parameter: put it into sampling_params."),
        ("json_schema", "json_schema is a sampling parameter: put it into sampling_params."),
    ],
)
def test_a_key_that_nobody_reads_is_refused(key: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        generate({"text": "a", key: 1})
    assert message in str(raised.value)


def test_a_sampling_parameter_that_nobody_reads_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown sampling parameter 'temprature'; did you mean"):
        generate({"text": "a", "sampling_params": {"temprature": 1}})
    with pytest.raises(RequestError, match="unknown sampling parameter 'choice'"):
        generate({"text": "a", "sampling_params": [{}, {"choice": ["a"]}]})


def test_null_is_a_parameter_that_is_not_given() -> None:
    body = {"prompt": "a", "temperature": None, "threshold": None, "gen_length": None}
    assert generate(body) == {"text": "a"}
    nulls = {"temperature": None, "n": None, "threshold": None, "custom_params": None}
    assert generate({"text": "a", "sampling_params": nulls}) == {"text": "a", "sampling_params": {}}
    unlimited = {"text": "a", "sampling_params": {"max_new_tokens": None}}
    assert generate(unlimited) == unlimited, "the host's null here is no limit, not its default"


def test_the_model_that_a_router_names_is_dropped() -> None:
    assert generate({"model": "llada", "text": "a"}) == {"text": "a"}


def test_what_stands_at_the_top_holds_for_every_prompt_of_a_batch() -> None:
    body = {"prompt": ["a", "b"], "gen_length": 8, "sampling_params": [{"n": 2}, {"n": 2}]}
    assert generate(body)["sampling_params"] == [{"n": 2, "max_new_tokens": 8}] * 2


@pytest.mark.parametrize("params", ["greedy", 5, [5], [["a"]]])
def test_sampling_params_of_another_shape_are_left_for_the_host_to_refuse(params: Any) -> None:
    body = {"text": "a", "sampling_params": params}
    assert generate(body) == body


def test_custom_params_of_another_shape_are_refused() -> None:
    body = {"text": "a", "threshold": 0.5, "sampling_params": {"custom_params": [1]}}
    with pytest.raises(RequestError, match="custom_params must be a mapping"):
        generate(body)


def test_a_seed_is_taken_by_its_openai_name() -> None:
    assert bodies.sampling_params({"seed": 7}, SAMPLING) == {"sampling_seed": 7}


def test_an_openai_body_may_hold_what_the_host_reads_and_what_no_answer_shows() -> None:
    body = {"model": "m", "prompt": "a", "metadata": {}, "temperature": None, "top_p": None}
    after = bodies.openai_body(body, {"model", "prompt", "temperature", "top_p"}, {"metadata"})
    assert after == body
    after = bodies.openai_body(
        body, {"model", "prompt", "temperature", "top_p"}, {"metadata"}, nullable=("temperature",)
    )
    assert after == {"model": "m", "prompt": "a", "metadata": {}, "top_p": None}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "tempreature",
            "unknown key 'tempreature' in the request body; did you mean 'temperature'",
        ),
        ("threshold", "threshold is a decoding parameter: put it into custom_params"),
        ("gen_length", "gen_length is a decoding parameter: put it into custom_params"),
    ],
)
def test_an_openai_body_holds_nothing_that_nobody_reads(key: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        bodies.openai_body({"prompt": "a", key: 1}, {"prompt", "temperature"})
    assert message in str(raised.value)
