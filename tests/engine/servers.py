"""Start real servers for tests: free port, log file, wait with progress, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server", "--model-path")
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve", "--model-path")
READY_SECONDS = 900
STOP_SECONDS = 30


class ServerFailedError(RuntimeError):
    """The server process ended before it was ready. The message ends with its log."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What to start: equal specs can share one server."""

    model: str
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = LAUNCH_SERVER
    environment: tuple[tuple[str, str], ...] = ()

    def with_environment(self, environment: Mapping[str, str]) -> ServerSpec:
        """The same server with more environment variables."""
        merged = {**dict(self.environment), **environment}
        return ServerSpec(self.model, self.flags, self.command, tuple(sorted(merged.items())))


@dataclass(slots=True)
class Server:
    """A server that answers on `url`."""

    spec: ServerSpec
    port: int
    log_path: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything all its processes have printed so far."""
        return self.log_path.read_text("utf-8", errors="replace")

    def post(self, path: str, body: Mapping[str, Any], seconds: float = 300) -> Any:
        """POST JSON, return the parsed answer. Raises HTTPError for a status >= 400."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.load(answer)

    def get(self, path: str, seconds: float = 60) -> bytes:
        """GET, return the body. Raises HTTPError for a status >= 400."""
        with urllib.request.urlopen(self.url + path, timeout=seconds) as answer:
            return bytes(answer.read())

    def generate(
        self,
        input_ids: list[int],
        *,
        max_new_tokens: int = 32,
        sampling: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """One greedy /generate request over token ids; returns its parsed answer."""
        parameters = {"temperature": 0, "max_new_tokens": max_new_tokens, **(sampling or {})}
        body = {"input_ids": input_ids, "sampling_params": parameters, **fields}
        answer: dict[str, Any] = self.post("/generate", body)
        return answer

    def processes(self) -> list[psutil.Process]:
        """The processes of this server that are alive."""
        return _session_processes(self.process.pid)


@contextmanager
def serve(
    spec: ServerSpec, log_path: Path, *, ready_seconds: float = READY_SECONDS
) -> Iterator[Server]:
    """Run the server of `spec` for the length of the block; wait until it is ready.

    Raises ServerFailedError where it ends by itself, TimeoutError after `ready_seconds`. No process
    of it is alive afterwards.
    """
    port = free_port()
    process = _start(spec, ("--port", str(port)), log_path)
    server = Server(spec, port, log_path, process)
    try:
        _wait_ready(server, ready_seconds)
        yield server
    finally:
        _stop(process)


def run_to_exit(spec: ServerSpec, log_path: Path, seconds: float = READY_SECONDS) -> int:
    """Run a server that is expected to refuse to start; return its exit status.

    Raises AssertionError where a process of it is left behind, TimeoutError where it stays up.
    """
    process = _start(spec, ("--port", str(free_port())), log_path)
    try:
        status = process.wait(timeout=seconds)
        deadline = time.monotonic() + STOP_SECONDS
        while _session_processes(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = _session_processes(process.pid)
        assert not left, f"processes left behind: {left}"
        return status
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"still running after {seconds:.0f} s:\n{_tail(log_path)}") from None
    finally:
        _stop(process)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerPool:
    """Keeps one server alive at a time and hands it to every test that asks for its spec."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._running: tuple[Server, Any] | None = None
        self._started = 0

    def get(self, spec: ServerSpec) -> Server:
        """Return a ready server for `spec`, the running one if it is of the same spec."""
        if self._running is not None:
            server = self._running[0]
            if server.spec == spec and server.process.poll() is None:
                return server
        self.close()
        self._started += 1
        context = serve(spec, self._log_directory / f"server-{self._started}.log")
        self._running = (context.__enter__(), context)
        return self._running[0]

    def close(self) -> None:
        """Stop the running server, if there is one."""
        if self._running is not None:
            context = self._running[1]
            self._running = None
            context.__exit__(None, None, None)


def _start(spec: ServerSpec, flags: tuple[str, ...], log_path: Path) -> subprocess.Popen[bytes]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LLADA_SGLANG_")}
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [*spec.command, spec.model, *flags, *spec.flags],
            cwd=log_path.parent,  # not the repository: what is installed is tested
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, **dict(spec.environment)},
            start_new_session=True,
        )


def _wait_ready(server: Server, seconds: float) -> None:
    started = time.monotonic()
    shown = started
    while True:
        if server.process.poll() is not None:
            raise ServerFailedError(
                f"the server ended with status {server.process.returncode}:\n"
                f"{_tail(server.log_path)}"
            )
        try:
            server.get("/health_generate", seconds=30)
            return
        except (OSError, urllib.error.URLError):
            pass
        now = time.monotonic()
        if now - started > seconds:
            raise TimeoutError(f"not ready after {seconds:.0f} s:\n{_tail(server.log_path)}")
        if now - shown > 10:
            shown = now
            last = _tail(server.log_path, 1).strip()[:100]
            print(f"waiting for the server, {now - started:.0f} s: {last}", file=sys.stderr)
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process of its session, then reap it."""
    members = _session_processes(process.pid)
    if process.poll() is None:
        process.terminate()
    _, alive = psutil.wait_procs(members, timeout=STOP_SECONDS)
    for member in alive:
        member.send_signal(signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    process.wait(timeout=STOP_SECONDS)


def _session_processes(session: int) -> list[psutil.Process]:
    found = []
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == session and candidate.status() != "zombie":
                found.append(candidate)
        except (OSError, psutil.Error):
            continue
    return found


def _tail(path: Path, lines: int = 60) -> str:
    return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-lines:])
