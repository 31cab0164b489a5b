"""The client of `llada-sglang chat`, against a server that gives scripted answers."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llada_sglang.cli import chat
from llada_sglang.cli.answers import AnswerError
from llada_sglang.cli.native import NativeClient


class Script(ThreadingHTTPServer):
    """Answers /generate with the next of `streams`, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.streams: list[list[dict[str, Any]]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: tuple[int, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"data": [{"id": "nano"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.server.refusal is not None:
            self._reply(*self.server.refusal)
        elif self.path == "/tokenize":
            self._reply(200, json.dumps({"tokens": [len(body["messages"])]}))
        else:
            chunks = [f"data: {json.dumps(chunk)}\n\n" for chunk in self.server.streams.pop(0)]
            self._reply(200, "".join([*chunks, "data: [DONE]\n\n"]))

    def _reply(self, status: int, text: str) -> None:
        self.send_response(status)
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


def chunk(text: str, finish: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    return {"text": text, "meta_info": {"finish_reason": finish, "completion_tokens": 8, **meta}}


STOP = {"type": "stop", "matched": 1}


def ask(client: NativeClient, **decoding: Any) -> tuple[Any, list[str]]:
    pieces: list[str] = []
    messages = [{"role": "user", "content": "hi"}]
    answer = client.ask(messages, max_tokens=5, decoding=decoding, on_text=pieces.append)
    return answer, pieces


def test_the_new_part_of_each_chunk_is_handed_on_once(script: Script) -> None:
    script.streams = [[chunk(""), chunk("2, 9"), chunk("2, 9"), chunk("2, 9, 17", STOP)]]
    answer, pieces = ask(NativeClient(script.url))
    assert pieces == ["2, 9", ", 17"]
    assert (answer.text, answer.tokens, answer.finish) == ("2, 9, 17", 8, "stop")
    assert answer.forwards is None
    assert answer.tokens_per_forward is None


def test_the_counters_of_the_last_chunk_are_the_answers(script: Script) -> None:
    script.streams = [[chunk("a", denoise_forwards=1), chunk("ab", STOP, denoise_forwards=4)]]
    answer, _ = ask(NativeClient(script.url))
    assert answer.forwards == 4
    assert answer.tokens_per_forward == 2.0


def test_decoding_parameters_are_sent_only_when_given(script: Script) -> None:
    script.streams = [[chunk("a", STOP)]] * 2
    client = NativeClient(script.url + "/v1/")
    ask(client)
    ask(client, threshold=0.5)
    plain, tuned = (body["sampling_params"] for path, body in script.asked if path == "/generate")
    assert plain == {"temperature": 0, "max_new_tokens": 5}
    assert tuned == {**plain, "custom_params": {"threshold": 0.5}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (json.dumps({"error": {"message": "too long"}}), "400: too long"),
        (json.dumps({"message": "too long", "object": "error"}), "400: too long"),
        ("no json", "400: no json"),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_reason(
    script: Script, body: str, reason: str
) -> None:
    script.refusal = (400, body)
    with pytest.raises(AnswerError, match=reason):
        ask(NativeClient(script.url))


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk("a")], "closed the connection in the middle"),
        ([{"error": {"message": "gone"}}], "stopped the answer: gone"),
        ([chunk("a", {"type": "abort", "message": "too big"})], "stopped the answer: too big"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(
    script: Script, chunks: list[dict[str, Any]], reason: str
) -> None:
    script.streams = [chunks]
    with pytest.raises(AnswerError, match=reason):
        ask(NativeClient(script.url))


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AnswerError, match=r"no answer from http://127\.0\.0\.1:1: "):
        NativeClient("http://127.0.0.1:1").model()


def converse(
    script: Script, lines: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[list[str]]:
    """Chat with these input lines; return the contents of each conversation the server was sent."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    settings = {"model": None, "max_tokens": 64, "threshold": None, **options}
    assert chat.run(url=script.url, **settings) == 0
    return [
        [message["content"] for message in body["messages"]]
        for path, body in script.asked
        if path == "/tokenize"
    ]


def test_a_chat_sends_its_whole_history_until_it_is_reset(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.streams = [[chunk("one", STOP, denoise_forwards=2)], [chunk("two", STOP)]] * 2
    sent = converse(script, "a\n\nb\n/reset\nc\n/quit\nnever sent\n", monkeypatch)
    assert sent == [["a"], ["a", "one", "b"], ["c"]]
    out = capsys.readouterr().out
    assert out.count("one\n") == 2
    assert "tokens/s  4.0 tokens/forward" in out


def test_a_chat_ends_with_its_input(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    assert converse(script, "", monkeypatch) == []


def test_a_refused_turn_is_forgotten_and_the_chat_goes_on(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.streams = [[chunk("x", {"type": "abort", "message": "no"})], [chunk("two", STOP)]]
    assert converse(script, "a\nb\n", monkeypatch) == [["a"], ["b"]]
    assert "llada-sglang: the server stopped the answer: no" in capsys.readouterr().err


def test_ctrl_c_leaves_a_chat_cleanly(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "talk", interrupted)
    assert converse(script, "a\n", monkeypatch) == []


def test_an_answer_cut_short_is_marked(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.streams = [[chunk("one", {"type": "length", "length": 8})]]
    converse(script, "a\n", monkeypatch)
    assert "cut at --max-tokens" in capsys.readouterr().out
