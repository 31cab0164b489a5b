"""Processes that end in limited time, and with the one that started them.

`python guard.py PARENT COMMAND...` runs COMMAND and kills all of its session when process PARENT
ends, be it by SIGKILL, which leaves nobody else to do it. The host binds its own children to their
parent too, but only once they have started. Elsewhere than on Linux the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def guarded(command: Sequence[str]) -> tuple[str, ...]:
    """The command line of `command`, bound to this process.

    Start it from the main thread, in a session of its own.
    """
    # Isolated: modules beside this file have names of the standard library.
    return (sys.executable, "-I", __file__, str(os.getpid()), *command)


def leave_on_signals() -> None:
    """Turn a request to stop into SystemExit, so that what runs is stopped on the way out."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        for each in STOPPING:  # a second one would cut the stopping short
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in STOPPING:
        signal.signal(each, leave)


def run(
    command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str], seconds: float
) -> None:
    """Run a command to its end. Raises RuntimeError where it fails or takes too long."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            guarded(command),
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: object = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = f"nothing within {seconds:.0f} s"
        finally:
            _kill_session(process)
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {status}:\n{tail}")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End what the process has started too; memory of the device is free only without it."""
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(ProcessLookupError):  # nobody is left
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.1)


def main() -> None:
    parent, *command = sys.argv[1:]
    if os.getpgrp() != os.getpid():
        raise SystemExit("the guard is to be started in a session of its own: it kills all of it")
    signal.signal(signal.SIGHUP, lambda *_: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
        if os.getppid() != int(parent):  # it ended before that
            raise SystemExit(f"process {parent} is gone")
    running = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: running.terminate())
    status = running.wait()
    raise SystemExit(128 - status if status < 0 else status)


if __name__ == "__main__":
    main()
