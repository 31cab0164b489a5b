"""Measurements kept between runs, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engines import REPOSITORY

FOLDER = REPOSITORY / "build" / "measurements"


class Part:
    """One section of a report as a JSON file under build/measurements.

    arguments: what the numbers depend on; a file that was written with others counts as absent.
    content: what was measured so far, empty at first; `save` writes it.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], *, folder: Path = FOLDER, again: bool = False
    ) -> None:
        self.path = folder / f"{name}.json"
        self._arguments = json.loads(json.dumps(arguments))
        self.content: dict[str, Any] = {}
        self.when = self.load = ""
        if again or not self.path.is_file():
            return
        found = json.loads(self.path.read_text())
        if found["arguments"] == self._arguments:
            self.content = found["content"]
            self.when, self.load = found["when"], found["load"]

    def save(self) -> None:
        """Write it at once or not at all, with the time, the commit and the load of the machine."""
        self.when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, commit {_commit()}"
        self.load = f"{psutil.getloadavg()[0]:.1f}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(
            json.dumps(
                {
                    "arguments": self._arguments,
                    "when": self.when,
                    "load": self.load,
                    "content": self.content,
                }
            )
        )
        unfinished.replace(self.path)


def stoppable() -> None:
    """Let SIGTERM end a measurement as Ctrl-C does, its servers with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
