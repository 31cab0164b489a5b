"""`llada-sglang demo` with the real server and the trained checkpoint."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from servers import ServerPool

from llada_sglang.nano import tasks

COMMAND = (sys.executable, "-m", "llada_sglang.cli")
READY_SECONDS = 900


@dataclass(slots=True)
class Running:
    """A command under test and every process it was seen to start."""

    process: subprocess.Popen[str]
    started: set[psutil.Process] = field(default_factory=set)

    def look(self) -> None:
        """Remember the processes that run now."""
        if self.process.poll() is None:
            self.started |= set(psutil.Process(self.process.pid).children(recursive=True))

    def read_until(self, text: str) -> None:
        """Read its output up to the line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                self.look()
                return
        pytest.fail(f"{text!r} never came; status {self.process.wait()}")

    def finish(self) -> tuple[int, str, str]:
        """Wait for it; return status, the rest of its output, and its errors.

        Fails where a process that it started is still there.
        """
        output, errors = self.process.communicate(timeout=READY_SECONDS)
        left = [p for p in self.started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert left == []
        return self.process.returncode, output, errors


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=directory,  # not the repository: what is installed is tested
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(directory)},  # where the log of a failure is kept
        text=True,
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.terminate()  # which ends its server too
            process.communicate(timeout=60)


def test_the_demo_answers_every_family_and_leaves_nothing_running(
    servers: ServerPool, tmp_path: Path
) -> None:
    servers.close()  # one server at a time
    with running(tmp_path, "demo") as demo:
        demo.read_until("ready after")
        assert len(demo.started) >= 3
        status, output, errors = demo.finish()
    assert status == 0, errors
    for family in tasks.FAMILIES:
        assert re.search(rf"^{family} ", output, re.MULTILINE), output
    figures = r"\d+ tokens  [\d.]+ s  [\d.]+ tokens/s  [\d.]+ tokens/forward"
    assert len(re.findall(rf"^ +{figures}  (?:right|wrong)", output, re.MULTILINE)) == 10, output
    summary = re.search(rf"^10 answers, (\d+) right: {figures}$", output, re.MULTILINE)
    assert summary is not None, output
    assert int(summary[1]) >= 8, output
    assert output.endswith("server  stopped\n")


def test_a_demo_that_is_ended_while_its_server_starts_leaves_nothing_running(
    servers: ServerPool, tmp_path: Path
) -> None:
    servers.close()
    with running(tmp_path, "demo") as demo:
        demo.read_until("model ")
        deadline = time.monotonic() + READY_SECONDS
        while not demo.started and time.monotonic() < deadline:
            time.sleep(0.1)
            demo.look()
        demo.process.send_signal(signal.SIGTERM)
        status, _, _ = demo.finish()
    assert demo.started
    assert status == 128 + signal.SIGTERM


def test_a_demo_whose_scheduler_is_killed_says_so_and_leaves_nothing_running(
    servers: ServerPool, tmp_path: Path
) -> None:
    servers.close()
    with running(tmp_path, "demo") as demo:
        demo.read_until("ready after")
        (scheduler, *_) = [p for p in demo.started if "sglang::scheduler" in " ".join(p.cmdline())]
        scheduler.kill()
        status, _, errors = demo.finish()
    assert status == 1
    assert "llada-sglang: the server ended with status" in errors
    assert "Traceback (most recent call last)" not in errors.split("The end of its log")[0]
