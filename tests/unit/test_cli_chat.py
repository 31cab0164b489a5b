"""`llada-sglang chat` and its client, against a server that gives scripted answers."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llada_sglang.cli import chat
from llada_sglang.cli.answers import Answer, AnswerError
from llada_sglang.cli.client import Client
from llada_sglang.nano import tasks


class Script(ThreadingHTTPServer):
    """Answers each chat completion with the next of `streams`, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.streams: list[list[dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.refusal: tuple[int, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self._reply(200, "application/json", json.dumps({"data": [{"id": "nano"}]}))

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.refusal is not None:
            status, text = self.server.refusal
            self._reply(status, "application/json", text)
            return
        chunks = [f"data: {json.dumps(chunk)}\n\n" for chunk in self.server.streams.pop(0)]
        self._reply(200, "text/event-stream", "".join([*chunks, "data: [DONE]\n\n"]))

    def _reply(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def piece(text: str | None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return {"id": "a", "object": "chat.completion.chunk", "choices": [choice]}


def usage(tokens: int = 8, **counters: int) -> dict[str, Any]:
    whole = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return {"id": "a", "choices": [], "usage": {**whole, **counters}}


def ask(script: Script, *chunks: dict[str, Any], **options: Any) -> tuple[Answer, list[str]]:
    script.streams.append(list(chunks))
    pieces: list[str] = []
    messages = [{"role": "user", "content": "hi"}]
    answer = Client(script.url).ask(messages, max_tokens=5, on_text=pieces.append, **options)
    return answer, pieces


def test_each_piece_of_text_is_handed_on_once(script: Script) -> None:
    answer, pieces = ask(script, piece(""), piece("2, 9"), piece(", 17"), piece(None, "stop"))
    assert pieces == ["2, 9", ", 17"]
    assert (answer.text, answer.finish) == ("2, 9, 17", "stop")


def test_tokens_and_forwards_come_from_the_usage(script: Script) -> None:
    answer, _ = ask(script, piece("a", "stop"), usage(8, denoise_forwards=4))
    assert (answer.tokens, answer.forwards, answer.tokens_per_forward) == (8, 4, 2.0)


def test_a_server_that_counts_no_forwards_is_not_credited_with_any(script: Script) -> None:
    answer, _ = ask(script, piece("a", "stop"), usage(8))
    assert answer.forwards is None
    assert answer.tokens_per_forward is None


def test_decoding_parameters_are_sent_only_when_given(script: Script) -> None:
    ask(script, piece("a", "stop"))
    ask(script, piece("a", "stop"), decoding={"threshold": 0.5})
    plain, tuned = script.asked
    assert "custom_params" not in plain
    assert (plain["temperature"], plain["max_tokens"], plain["stream"]) == (0, 5, True)
    assert tuned == {**plain, "custom_params": {"threshold": 0.5}}


def test_a_parsed_tool_call_reads_as_the_model_wrote_it(script: Script) -> None:
    parts = [("get_weather", ""), (None, '{"city":'), (None, ' "Oslo"}')]
    chunks = [
        piece(None, tool_calls=[{"index": 0, "function": {"name": name, "arguments": arguments}}])
        for name, arguments in parts
    ]
    tools = (tasks.WEATHER_TOOL,)
    answer, pieces = ask(script, *chunks, piece(None, "tool_calls"), tools=tools)
    assert answer.text == tasks.tool_call_text("get_weather", {"city": "Oslo"})
    assert pieces == [answer.text]
    assert script.asked[0]["tools"] == [tasks.WEATHER_TOOL]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (json.dumps({"error": {"message": "too long"}}), "refused the request: too long"),
        (json.dumps({"message": "too long", "object": "error"}), "refused the request: too long"),
        ("no json", "refused the request: status 400"),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_reason(
    script: Script, body: str, reason: str
) -> None:
    script.refusal = (400, body)
    with pytest.raises(AnswerError, match=reason):
        ask(script)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([piece("a")], "broke the answer off"),
        ([piece("a", "abort")], "broke the answer off"),
        ([{"error": {"message": "gone"}}], "refused the request: gone"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(
    script: Script, chunks: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(AnswerError, match=reason):
        ask(script, *chunks)


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AnswerError, match=r"no answer from http://127\.0\.0\.1:1: .*refused"):
        Client("http://127.0.0.1:1/v1/").model()


def converse(
    script: Script, lines: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[list[str]]:
    """Chat with these input lines; return the contents of each conversation the server was sent."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    settings = {"model": None, "max_tokens": 64, "threshold": None, **options}
    assert chat.run(url=script.url, **settings) == 0
    return [[message["content"] for message in body["messages"]] for body in script.asked]


def test_a_chat_sends_its_whole_history_until_it_is_reset(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = [piece("one", "stop"), usage(8, denoise_forwards=2)]
    two = [piece("two", "stop"), usage(8, denoise_forwards=8)]
    script.streams = [one, two, one]
    sent = converse(script, "a\n\nb\n/reset\nc\n/quit\nnever sent\n", monkeypatch)
    assert sent == [["a"], ["a", "one", "b"], ["c"]]
    out = capsys.readouterr().out
    assert out.startswith(f"nano on {script.url}")
    assert out.count("one\n") == 2
    assert out.count("tokens/s  4.0 tokens/forward") == 2


def test_a_chat_ends_with_its_input(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    assert converse(script, "", monkeypatch) == []


def test_an_unknown_command_is_not_sent_to_the_model(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert converse(script, "/help\n", monkeypatch) == []
    assert "commands: /reset, /quit" in capsys.readouterr().out


def test_the_threshold_of_a_chat_is_sent_with_every_turn(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.streams = [[piece("one", "stop")]] * 2
    converse(script, "a\nb\n", monkeypatch, threshold=0.5)
    assert [body["custom_params"] for body in script.asked] == [{"threshold": 0.5}] * 2


def test_a_refused_turn_is_forgotten_and_the_chat_goes_on(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.streams = [[{"error": {"message": "no"}}], [piece("two", "stop")]]
    assert converse(script, "a\nb\n", monkeypatch) == [["a"], ["b"]]
    assert "llada-sglang: the server refused the request: no" in capsys.readouterr().err


def test_ctrl_c_leaves_a_chat_cleanly(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "talk", interrupted)
    assert converse(script, "a\n", monkeypatch) == []


def test_an_answer_cut_short_is_marked(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.streams = [[piece("one", "length"), usage()]]
    converse(script, "a\n", monkeypatch)
    assert "cut at --max-tokens" in capsys.readouterr().out
