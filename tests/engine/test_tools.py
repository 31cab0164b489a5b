"""Tool calls and reasoning end to end, through the openai client: streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from servers import Server

from llada_sglang.nano import tasks

NAMED = {"type": "function", "function": {"name": "get_weather"}}
ASKED = tasks.examples(3, "tool", "eval", 4)


@pytest.fixture
def client(nano_server: Server) -> OpenAI:
    return OpenAI(base_url=nano_server.url + "/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: OpenAI, asked: tasks.Example, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="nano",
        messages=list(asked.messages),  # type: ignore[arg-type]
        tools=list(asked.tools),  # type: ignore[arg-type]
        max_tokens=96,
        **fields,
    )


def expected(asked: tasks.Example) -> list[tuple[str, Any]]:
    body = asked.answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    call = json.loads(body)
    return [(call["name"], call["arguments"])]


def whole(answer: Any) -> tuple[str, list[tuple[str, Any]], str]:
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    assert len({call.id for call in calls}) == len(calls)
    read = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    return choice.message.content or "", read, choice.finish_reason


def streamed(chunks: Any) -> tuple[str, list[tuple[str, Any]], str]:
    text, calls, reason = "", {}, ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                name = call.function.name or name
                calls[call.index] = (name, arguments + (call.function.arguments or ""))
    read = [(name, json.loads(arguments)) for _, (name, arguments) in sorted(calls.items())]
    return text, read, reason


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED], ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_model_calls_its_tool(client: OpenAI, choice: Any, stream: bool) -> None:
    for asked in ASKED:
        fields = {} if choice is None else {"tool_choice": choice}
        answer = ask(client, asked, stream=stream, **fields)
        text, calls, reason = streamed(answer) if stream else whole(answer)
        assert calls == expected(asked)
        assert text == ""
        assert reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_without_a_choice_of_tools_the_text_is_left_as_it_is(client: OpenAI, stream: bool) -> None:
    answer = ask(client, ASKED[0], tool_choice="none", stream=stream)
    text, calls, reason = streamed(answer) if stream else whole(answer)
    assert (text, calls, reason) == (ASKED[0].answer, [], "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_that_calls_no_tool_is_an_answer(client: OpenAI, stream: bool) -> None:
    (asked,) = tasks.examples(3, "add", "eval", 1)
    with_tools = tasks.Example("add", asked.messages, asked.answer, ASKED[0].tools)
    answer = ask(client, with_tools, tool_choice="auto", stream=stream)
    text, calls, reason = streamed(answer) if stream else whole(answer)
    assert (calls, reason) == ([], "stop")
    assert text


def test_a_strict_tool_is_called_by_its_schema(client: OpenAI) -> None:
    """What it is called with is the model's own matter: nano never saw a text forced on it."""
    (tool,) = ASKED[0].tools
    strict = {**tool, "function": {**tool["function"], "strict": True}}
    asked = tasks.Example("tool", ASKED[0].messages, ASKED[0].answer, (strict,))
    for choice in ("auto", "required"):
        _, calls, reason = whole(ask(client, asked, tool_choice=choice))
        ((name, arguments),) = calls
        assert (name, list(arguments)) == ("get_weather", ["city"])
        assert isinstance(arguments["city"], str)
        assert reason == "tool_calls"


OTHER = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"at": {}}}},
}


def test_a_named_tool_is_the_one_that_is_called(client: OpenAI) -> None:
    both = tasks.Example("tool", ASKED[0].messages, ASKED[0].answer, (*ASKED[0].tools, OTHER))
    _, calls, _ = whole(ask(client, both, tool_choice=NAMED))
    assert [name for name, _ in calls] == ["get_weather"] * len(calls)
    named = {"type": "function", "function": {"name": "get_time"}}
    started = {
        call.function.name
        for chunk in ask(client, both, tool_choice=named, stream=True)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
        if call.function.name
    }
    assert started == {"get_time"}, "nano does not know it and need not come to its end"


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=str)
def test_a_single_call_may_be_asked_for(client: OpenAI, choice: Any) -> None:
    answer = ask(client, ASKED[0], tool_choice=choice, parallel_tool_calls=False)
    assert whole(answer) == ("", expected(ASKED[0]), "tool_calls")


def test_several_samples_each_call_their_tool(client: OpenAI) -> None:
    answer = ask(client, ASKED[0], n=2)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == expected(ASKED[0])[0]


def test_a_call_and_its_result_can_be_sent_back(client: OpenAI) -> None:
    first = ask(client, ASKED[0]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"sky": "clear"}'}
    messages: list[Any] = [*ASKED[0].messages, first.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(
        model="nano", messages=messages, tools=list(ASKED[0].tools), max_tokens=32
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_responses_interface_calls_tools_too(client: OpenAI) -> None:
    (tool,) = ASKED[0].tools
    response = client.responses.create(
        model=client.models.list().data[0].id,
        input=ASKED[0].messages[-1]["content"],
        tools=[{"type": "function", **tool["function"]}],
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == expected(ASKED[0])[0]
