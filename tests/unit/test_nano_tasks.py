"""Answers are checked by solving the questions again, from their text alone."""

from __future__ import annotations

import ast
import json
import random
import re

import pytest

from llada_sglang.nano import chat, tasks


def solve(question: str) -> str:
    """An independent solver of the nine single-turn families."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    words = question.rstrip(".?").split()
    match words[0]:
        case "What":
            return f"{numbers[0]} + {numbers[1]} = {sum(numbers)}"
        case "Sort:":
            return str(sorted(numbers))[1:-1]
        case "Reverse:":
            return question.removeprefix("Reverse: ")[::-1]
        case "Count":
            return str(list(range(numbers[0], numbers[1] + 1)))[1:-1]
        case "Table":
            rows = [f"{numbers[0]} x {i + 1} = {numbers[0] * (i + 1)}" for i in range(numbers[1])]
            return "\n".join(rows)
        case "JSON:":
            _, _, name, _, age, _, city = question.replace(",", "").split()
            return f'{{"name": "{name}", "age": {age}, "city": "{city}"}}'
        case "Repeat":
            return " ".join(words[1] for _ in range(numbers[0]))
        case "Write":
            sign = {"adds": "+", "subtracts": "-", "multiplies": "*"}[words[3]]
            return f"def f(x):\n    return x {sign} {numbers[0]}"
        case "Weather":
            return (
                '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'
                + words[2]
                + '"}}\n</tool_call>'
            )
    raise AssertionError(question)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_the_answer_is_the_only_right_one(family: str, split: tasks.Split) -> None:
    for example in tasks.examples(3, family, split, 100):
        if family == "again":
            question, answer, again = example.messages
            assert again["content"] == "Again."
            assert example.answer == answer["content"] == solve(question["content"])
        else:
            (question,) = example.messages
            assert example.answer == solve(question["content"])


def test_published_examples_are_in_the_families_word_for_word() -> None:
    assert solve("What is 147 + 58?") == "147 + 58 = 205"
    assert solve("Sort: 9, 41, 17, 2") == "2, 9, 17, 41"
    assert solve("Reverse: k p a z t") == "t z a p k"
    assert solve("Repeat lamp 6 times.") == "lamp lamp lamp lamp lamp lamp"
    assert solve("JSON: name Ada, age 36, city Paris") == json.dumps(
        {"name": "Ada", "age": 36, "city": "Paris"}
    )
    assert {"Ada", "lamp", "Paris"} <= {*tasks.NAMES, *tasks.WORDS, *tasks.CITIES}
    assert (len(set(tasks.NAMES)), len(set(tasks.CITIES)), len(set(tasks.WORDS))) == (30, 30, 40)


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_training_and_evaluation_share_no_prompt(family: str) -> None:
    train, held_out = (
        {str((e.messages, e.tools)) for e in tasks.examples(5, family, split, 2000)}
        for split in ("train", "eval")
    )
    assert len(train) > 0 < len(held_out)
    assert not train & held_out


def test_history_in_training_comes_from_training_prompts() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        example = tasks.draw(rng, "add", "train", history=True)
        assert len(example.messages) == 3
        asked = [m["content"] for m in example.messages if m["role"] == "user"]
        assert not any(map(tasks.is_held_out, asked))


def test_draws_are_a_function_of_the_seed() -> None:
    assert tasks.examples(1, "sort", "eval", 20) == tasks.examples(1, "sort", "eval", 20)
    assert tasks.examples(1, "sort", "eval", 20) != tasks.examples(2, "sort", "eval", 20)


def test_code_answers_are_python_that_does_what_was_asked() -> None:
    for example in tasks.examples(1, "code", "train", 50):
        scope: dict[str, object] = {}
        exec(compile(ast.parse(example.answer), "f", "exec"), scope)
        question = example.messages[0]["content"]
        n = int(re.findall(r"\d+", question)[0])
        expected = {"adds": 7 + n, "subtracts": 7 - n, "multiplies": 7 * n}[question.split()[3]]
        assert scope["f"](7) == expected  # type: ignore[operator]


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one of add, sort"):
        tasks.examples(1, "poem", "train", 1)


def test_tool_calls_read_back_through_the_hosts_parser() -> None:
    detector_module = pytest.importorskip("sglang.srt.function_call.qwen25_detector")
    protocol = pytest.importorskip("sglang.srt.entrypoints.openai.protocol")
    tool = protocol.Tool.model_validate(tasks.WEATHER_TOOL)
    (example,) = tasks.examples(1, "tool", "eval", 1)
    result = detector_module.Qwen25Detector().detect_and_parse(example.answer, [tool])
    (call,) = result.calls
    assert call.name == "get_weather"
    city = example.messages[0]["content"].removeprefix("Weather in ").rstrip("?")
    assert json.loads(call.parameters) == {"city": city}
    assert not result.normal_text


def test_rendered_prompt_ends_where_the_answer_begins() -> None:
    text = chat.render_prompt([{"role": "user", "content": "Hi"}])
    assert text == (
        "<role>SYSTEM</role>detailed thinking off<|role_end|>"
        "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    )
