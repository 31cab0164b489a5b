"""Whatever happens to the server or to us, it is said once and nothing is left running.

A small program stands in for SGLang here, so that every way to fail can be had in no time;
`tests/engine/test_cli_commands.py` has the same with the real one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llada_sglang.cli import server

# Takes the arguments of the real one, has a child that ignores SIGTERM, answers /ready.
STAND_IN = """
import http.server, pathlib, signal, subprocess, sys
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
pathlib.Path("pids").write_text(f"{child.pid}")
print("arguments", sys.argv[1:], flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DYING = """
import sys
print("Traceback: CheckpointError: the reason", flush=True)
sys.exit(3)
"""
RUN = """
import sys, pathlib, signal
# Where the tests run in the background of a script, Ctrl-C is inherited as ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from llada_sglang import cli
from llada_sglang.cli import server
server.LAUNCH_SERVER = (sys.executable, sys.argv[1])
cli._leave_on_signals()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
with server.serve("model"):
    pathlib.Path("up").touch()
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes `serve` start this program instead of SGLang, in a directory of its own."""

    def use(program: str) -> None:
        script = tmp_path / "program.py"
        script.write_text(program)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(server, "LAUNCH_SERVER", (sys.executable, str(script)))
        monkeypatch.setattr(server, "GRACE_SECONDS", 0.5)

    return use


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def child_of_stand_in(directory: Path) -> int:
    return int((directory / "pids").read_text())


def test_a_signal_while_the_server_is_being_started_does_not_lose_it(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process exists before Popen has returned it."""
    stand_in(STAND_IN)
    real, made = subprocess.Popen, []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        made.append(real(*arguments, **options))  # type: ignore[call-overload]
        signal.raise_signal(signal.SIGINT)
        return made[0]

    monkeypatch.setattr(server.subprocess, "Popen", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.serve("m").__enter__()
    finally:
        signal.signal(signal.SIGINT, before)
    assert made[0].poll() is not None
    assert server.session_processes(made[0].pid) == []


def test_nothing_is_left_behind_the_block(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(STAND_IN)
    log = tmp_path / "log"
    with server.serve("a model", log_path=log) as running:
        running.require_alive()
        members = [member.pid for member in server.session_processes(running.process.pid)]
        assert running.process.pid in members
        assert child_of_stand_in(tmp_path) in members
        assert "'a model', '--host', '127.0.0.1', '--port'" in log.read_text()
        port = running.port
    assert not any(alive(pid) for pid in members)
    assert server.is_free(port)


def test_nothing_is_left_behind_an_error(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(STAND_IN)
    running = server.serve("m", log_path=tmp_path / "log")
    running.__enter__()
    child = child_of_stand_in(tmp_path)
    assert alive(child)
    error = RuntimeError("ours")
    assert not running.__exit__(RuntimeError, error, None)
    assert not alive(child)


def test_a_server_that_ends_by_itself_is_told_with_the_end_of_its_log(
    stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(DYING)
    log = tmp_path / "log"
    with (
        pytest.raises(server.ServerError, match="ended with status 3") as error,
        server.serve("m", log_path=log),
    ):
        pytest.fail("it never was ready")
    assert "Traceback: CheckpointError: the reason" in str(error.value)
    assert str(log) in str(error.value)


def test_a_server_that_is_killed_is_noticed_and_its_children_ended(
    stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(STAND_IN)
    with server.serve("m") as running:
        child = child_of_stand_in(tmp_path)
        running.process.kill()
        running.process.wait()
        with pytest.raises(server.ServerError, match="ended with status -9"):
            running.require_alive()
        assert alive(child)
    assert not alive(child)


def test_the_log_is_kept_only_after_a_failure(
    stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setattr(server.tempfile, "tempdir", str(logs))
    stand_in(STAND_IN)
    with server.serve("m"):
        assert len(list(logs.iterdir())) == 1
    with pytest.raises(KeyboardInterrupt), server.serve("m"):
        raise KeyboardInterrupt
    assert list(logs.iterdir()) == []
    stand_in(DYING)
    with pytest.raises(server.ServerError) as error, server.serve("m"):
        pass
    (log,) = logs.iterdir()
    assert str(log) in str(error.value)


def test_a_busy_port_is_refused_before_anything_starts(
    stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(STAND_IN)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(server.ServerError, match=f"port {port} is in use"):
            server.serve("m", port=port).__enter__()
    assert not (tmp_path / "pids").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_command_ends_the_server_too(number: int, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(STAND_IN)
    command = subprocess.Popen(
        [sys.executable, "-c", RUN, str(script)], cwd=tmp_path, stderr=subprocess.PIPE
    )
    while not (tmp_path / "up").exists():
        assert command.poll() is None, command.stderr
        time.sleep(0.05)
    child = child_of_stand_in(tmp_path)
    assert alive(child)
    os.kill(command.pid, number)
    try:
        command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode != 0
    assert not alive(child)
