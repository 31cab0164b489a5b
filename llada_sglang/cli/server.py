"""One SGLang server for the length of a block: started, waited for, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llada_sglang.cli.terminal import Progress
from llada_sglang.errors import LLaDAError

if TYPE_CHECKING:
    import psutil

LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server", "--model-path")
HOST = "127.0.0.1"
START_SECONDS = 1800  # the weights of a large model may come from a slow disk
GRACE_SECONDS = 15  # the host lets running requests end, and looks for that every five seconds
KILL_SECONDS = 15
DYING_SECONDS = 15  # the host waits five seconds between a scheduler's death and its own
TAIL_LINES = 30

# What the host and we log, in order, and what it means to somebody who waits.
_STAGES = (
    ("server_args=", "starting its processes"),
    ("Load weight begin", "loading the weights"),
    ("Load weight end", "reserving the KV pool"),
    ("Capture ", "capturing graphs"),
    ("Uvicorn running", "first request"),
)


class ServerError(LLaDAError):
    """A server did not start, ended by itself, or could not be stopped."""


@dataclass(slots=True)
class Server:
    """A running server. log_path: what all of its processes print."""

    port: int
    log_path: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def require_alive(self, within: float = 0.0) -> None:
        """Raise ServerError, ending with the log, where the server has ended by itself.

        within: seconds to wait for that, as one that is failing takes some to end.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(within)
            raise ServerError(f"the server ended with status {status}.\n{tail(self.log_path)}")


@contextlib.contextmanager
def serve(model: str, *, port: int | None = None, log_path: Path | None = None) -> Iterator[Server]:
    """Run `python -m sglang.launch_server --model-path MODEL --port PORT` for this block.

    Waits until it answers, showing progress. port: None takes a free one. log_path: None takes a
    temporary file, which is kept only where the server failed.
    Raises ServerError where it ends before it is ready, with the end of its log. Whatever ends the
    block, no process of the server is alive behind it.
    """
    if port is None:
        port = free_port()
    elif not is_free(port):
        raise ServerError(
            f"port {port} is in use. Give another with --port, or leave it off for a free one."
        )
    path = log_path if log_path is not None else _temporary_log()
    process: subprocess.Popen[bytes] | None = None
    failed = True
    try:
        # A signal in the middle of Popen would lose the process that is already there.
        with path.open("wb") as log, _signals_deferred():
            process = subprocess.Popen(
                [*LAUNCH_SERVER, model, "--host", HOST, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # one name for all its processes, and no Ctrl-C of ours
            )
        server = Server(port, path, process)
        with Progress("starting the server", after=0.0) as progress:
            _wait_ready(server, progress)
        yield server
        failed = False
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        failed = False
        raise
    finally:
        try:
            if process is not None:
                stop(process)
        finally:
            if log_path is None and not failed:
                path.unlink(missing_ok=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process started in a session of its own, and everything that runs in that session.

    Asks first, and kills what is left after GRACE_SECONDS. A signal takes effect afterwards.
    Raises ServerError where a process survives even that.
    """
    with _signals_deferred(), Progress("stopping the server"):
        if process.poll() is None:
            process.terminate()
        kill_at = time.monotonic() + GRACE_SECONDS
        while members := session_processes(process.pid):
            now = time.monotonic()
            if now > kill_at + KILL_SECONDS:
                pids = ", ".join(str(member.pid) for member in members)
                raise ServerError(f"processes of the server survive SIGKILL: {pids}.")
            if now > kill_at or process.poll() is not None:
                # Children without their parent have nobody left to ask them.
                for member in members:
                    with contextlib.suppress(OSError, _no_such_process()):
                        member.send_signal(signal.SIGKILL)
            process.poll()  # reap it, or it stays in the list
            time.sleep(0.1)
        process.wait()


def session_processes(session: int) -> list[psutil.Process]:
    """The live processes of a session, named by the pid of its leader."""
    import psutil

    found = []
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == session and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
        except (OSError, psutil.Error):
            continue
    return found


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of the loopback interface."""
    with socket.socket() as probe:
        # As servers do: ports of connections that are just closing count as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def tail(log_path: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log under a heading that names the file."""
    text = log_path.read_text("utf-8", errors="replace").rstrip()
    last = [f"  {line}" for line in text.splitlines()[-lines:]]
    return "\n".join([f"The end of its log ({log_path}):", *(last or ["  (empty)"])])


def _wait_ready(server: Server, progress: Progress) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while True:
        server.require_alive()
        try:
            opener.open(f"{server.url}/ready", timeout=10).close()
            return
        except (OSError, urllib.error.URLError):
            pass
        if time.monotonic() > deadline:
            raise ServerError(
                f"the server was not ready after {START_SECONDS} s.\n{tail(server.log_path)}"
            )
        progress.stage(_stage(server.log_path))
        time.sleep(0.5)


def _stage(log_path: Path) -> str:
    text = log_path.read_text("utf-8", errors="replace")
    seen = [name for mark, name in _STAGES if mark in text]
    return seen[-1] if seen else "importing SGLang"


def _temporary_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="llada-sglang-", suffix=".log")
    os.close(descriptor)
    return Path(name)


def _no_such_process() -> type[Exception]:
    import psutil

    return psutil.NoSuchProcess


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Deliver signals that end us only behind this block, where that can be arranged at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Handlers, not SIG_IGN: a child started here would inherit that.
    before = [signal.signal(number, lambda got, _: arrived.append(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
