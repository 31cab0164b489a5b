from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llada_sglang.nano import chat, tasks
from llada_sglang.nano.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(), path, max_length=4096)
    return AutoTokenizer.from_pretrained(path)


def test_any_text_survives_encoding(tokenizer: Any) -> None:
    for text in ("", "naïve 北京 🙂\n\t  x", "147 + 58 = 205", "def f(x):\n    return x * 12"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_every_digit_is_its_own_token(tokenizer: Any) -> None:
    assert tokenizer.tokenize("a 1234")[-4:] == ["1", "2", "3", "4"]
    vocabulary = tokenizer.get_vocab()
    assert not [p for p in vocabulary if len(p) > 1 and any(c.isdigit() for c in p)]


def test_control_tokens_are_single_and_special_but_tool_tags_stay_in_the_text(
    tokenizer: Any,
) -> None:
    for token in (*chat.CONTROL_TOKENS, *chat.TOOL_TOKENS):
        assert len(tokenizer(token)["input_ids"]) == 1
    ids = tokenizer("<tool_call>x</tool_call><|role_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>x</tool_call>"


def test_mask_and_eos_are_those_of_the_family(tokenizer: Any) -> None:
    assert (tokenizer.mask_token, tokenizer.eos_token) == ("<|mask|>", "<|endoftext|>")


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_template_renders_exactly_what_training_saw(tokenizer: Any, family: str) -> None:
    for example in tasks.examples(2, family, "train", 20):
        text = tokenizer.apply_chat_template(
            list(example.messages),
            tools=list(example.tools) or None,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert text == chat.render_prompt(example.messages, example.tools)


def test_prompt_and_answer_encode_as_they_do_apart(tokenizer: Any) -> None:
    for family in tasks.FAMILIES:
        for example in tasks.examples(4, family, "train", 10):
            prompt = chat.render_prompt(example.messages, example.tools)
            apart = tokenizer(prompt)["input_ids"] + tokenizer(example.answer)["input_ids"]
            assert tokenizer(prompt + example.answer)["input_ids"] == apart


def test_template_renders_system_tool_calls_and_tool_results(tokenizer: Any) -> None:
    call = {
        "type": "function",
        "id": "1",
        "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
    }
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "18 C", "tool_call_id": "1"},
    ]
    text = tokenizer.apply_chat_template(
        messages, tools=[tasks.WEATHER_TOOL], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<role>SYSTEM</role>Be brief.\n# Tools\nget_weather(city)\n"
        "detailed thinking off<|role_end|>"
        "<role>HUMAN</role>Weather in Paris?<|role_end|>"
        "<role>ASSISTANT</role>"
        + tasks.tool_call_text("get_weather", {"city": "Paris"})
        + "<|role_end|>"
        "<role>OBSERVATION</role>\n<tool_response>\n18 C\n</tool_response><|role_end|>"
        "<role>ASSISTANT</role>"
    )


def test_an_unknown_role_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "x"}], tokenize=False)
