"""Tool calls and reasoning: which parser a checkpoint gets, and what ours reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.parser.reasoning_parser import ReasoningParser

from llada_sglang.nano import tasks
from llada_sglang.serving import parsers, reasoning, tool_calls

JSON_TOOLS = '{{- \'<tool_call>\\n{"name": "\' + name }}'
XML_TOOLS = "<tool_call>{{ name }}<arg_key>"
THINKING = "{%- if '</think>' in content %}{{ '<think>' }}"
TOOLS = [
    Tool.model_validate(tasks.WEATHER_TOOL),
    Tool.model_validate({"type": "function", "function": {"name": "stop", "parameters": {}}}),
]


def arguments(model: Path, **changes: Any) -> SimpleNamespace:
    values = {
        "model_path": str(model),
        "tokenizer_path": None,
        "revision": None,
        "chat_template": None,
        "tool_call_parser": None,
        "reasoning_parser": None,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", {}),
        (JSON_TOOLS, {"tool_call_parser": "llada2"}),
        (XML_TOOLS, {"tool_call_parser": "ling3"}),
        (JSON_TOOLS + THINKING, {"tool_call_parser": "llada2", "reasoning_parser": "llada2"}),
    ],
)
def test_the_chat_template_decides(tmp_path: Path, template: str, expected: Any) -> None:
    assert parsers.choose(arguments(tmp_path)) == {}, "no template, no parser"
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": template}))
    assert parsers.choose(arguments(tmp_path)) == expected
    named = [{"name": "default", "template": template}, {"name": "x", "template": "-"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert parsers.choose(arguments(tmp_path)) == expected
    (tmp_path / "chat_template.jinja").write_text("{{ none }}")
    assert parsers.choose(arguments(tmp_path)) == {}, "the file of its own wins"
    given = tmp_path / "given.jinja"
    given.write_text(template)
    assert parsers.choose(arguments(tmp_path, chat_template=str(given))) == expected
    assert parsers.choose(arguments(tmp_path, chat_template="chatml")) == {}


def test_a_parser_the_user_gave_always_wins(nano: Path) -> None:
    assert parsers.choose(arguments(nano)) == {"tool_call_parser": "llada2"}
    assert parsers.choose(arguments(nano, tool_call_parser="pythonic")) == {}


def test_the_parsers_are_found_by_the_host() -> None:
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    reasoning.register()
    tool_calls.register()
    assert ReasoningParser.DetectorMap["llada2"] is reasoning.OpenedReasoning
    assert FunctionCallParser.ToolCallParserEnum["llada2"] is tool_calls.BlockToolCalls


@pytest.mark.parametrize("force", [None, True, False])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("2", "", "2"),
        ("<think>1 + 1</think>2", "1 + 1", "2"),
        ("<think>cut", "cut", ""),
        ("<think>a<tool_call>b", "a", "<tool_call>b"),
    ],
)
def test_reasoning_is_what_the_text_itself_opens(
    text: str, thought: str, answer: str, force: bool | None
) -> None:
    reasoning.register()
    parser = ReasoningParser("llada2", stream_reasoning=True, force_reasoning=force)
    assert parser.parse_non_stream(text) == (thought, answer)
    assert parser.detector.reasoning_default is None, "no request is taken to require it"
    parser = ReasoningParser("llada2", stream_reasoning=True, force_reasoning=force)
    pieces = [parser.parse_stream_chunk(letter) for letter in text]
    pieces.append(parser.parse_stream_end())
    assert "".join(piece or "" for piece, _ in pieces) == thought
    assert "".join(piece or "" for _, piece in pieces) == answer


CALLS = [
    ("get_weather", {"city": "Tampere"}),
    ("get_weather", {"city": 'a "quoted" \\ {name}\nünï'}),
    ("stop", {}),
]


def streamed(chunks: list[str]) -> tuple[str, list[tuple[str, str]]]:
    detector = tool_calls.BlockToolCalls()
    text, names, values = "", {}, {}
    for chunk in chunks:
        result = detector.parse_streaming_increment(chunk, TOOLS)
        text += result.normal_text
        for call in result.calls:
            if call.name:
                names[call.tool_index] = call.name
            values[call.tool_index] = values.get(call.tool_index, "") + call.parameters
    return text, [(names[i], values[i]) for i in sorted(names)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("before", ["", "Let me see.\n"])
@settings(deadline=None)
@given(data=st.data())
def test_a_stream_of_tool_calls_is_read_whatever_its_chunks(
    count: int, before: str, data: st.DataObject
) -> None:
    text = before + "\n".join(tasks.tool_call_text(*call) for call in CALLS[:count])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=6)))
    ends = [*cuts, len(text)]
    chunks = [text[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    said, calls = streamed(chunks)
    assert [(name, json.loads(value)) for name, value in calls] == CALLS[:count]
    assert said.strip() == before.strip()


def test_a_text_without_tool_calls_streams_as_it_is() -> None:
    assert streamed(["no ", "<tool", " call", " here"]) == ("no <tool call here", [])


def test_a_required_call_begins_as_the_template_writes_it() -> None:
    info = tool_calls.BlockToolCalls().structure_info()("get_weather")
    call = tasks.tool_call_text("get_weather", {"city": "Oslo"})
    assert call == info.begin + '{"city": "Oslo"}' + info.end
    assert call.startswith(info.trigger)


def accepts(tag: Any, text: str) -> bool:
    """Whether a text is one of the grammar's, as the host's own backend compiles it."""
    import xgrammar

    vocabulary = [bytes([i]) for i in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    grammar = xgrammar.GrammarCompiler(info).compile_structural_tag(tag)
    matcher = xgrammar.GrammarMatcher(grammar)
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


def test_the_grammar_of_a_choice_holds_calls_to_it() -> None:
    from sglang.srt.entrypoints.openai.protocol import ToolChoice, ToolChoiceFuncName

    detector = tool_calls.BlockToolCalls()
    named = ToolChoice(type="function", function=ToolChoiceFuncName(name="stop"))
    weather, stop = (tasks.tool_call_text(*call) for call in (CALLS[0], CALLS[2]))
    both = f"{weather}\n{stop}"

    def tag(choice: Any, parallel: bool) -> Any:
        return detector.get_structural_tag(TOOLS, choice, False, parallel)

    assert [accepts(tag("required", True), t) for t in (weather, both, "no", "")] == [1, 1, 0, 0]
    assert [accepts(tag("required", False), t) for t in (weather, both)] == [True, False]
    assert [accepts(tag(named, False), t) for t in (stop, weather)] == [True, False]
    assert [accepts(tag("auto", True), t) for t in ("no", "a " + both)] == [True, True]
    alone = detector.get_auto_tool_call_structural_tag(TOOLS, False, False)
    assert [accepts(alone, t) for t in ("no", "a " + weather, both)] == [True, True, False]
    assert detector.get_auto_tool_call_structural_tag(TOOLS, False, True) is None
    strict = TOOLS[0].model_copy(deep=True)
    strict.function.strict = True
    held = detector.get_structural_tag([strict], "required", False, True)
    assert [accepts(held, t) for t in (weather, weather.replace("city", "town"))] == [True, False]
