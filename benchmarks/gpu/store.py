"""What was measured, one file per unit: a run that is cut off goes on where it was."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import report


def write_atomically(path: Path, text: str) -> None:
    """Write a file that others see whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class Store:
    """The units of one directory. Several processes may save into it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, name: str, result: dict[str, Any]) -> None:
        """Keep a unit, with the time and the commit."""
        stamp = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} {report.commit()}"
        write_atomically(self._file(name), json.dumps({**result, "measured": stamp}))

    def read(self) -> dict[str, dict[str, Any]]:
        """All units by name. An unreadable one is reported, set aside and thereby not there."""
        found = {}
        for file in sorted(self._directory.glob("unit-*.json")):
            name = file.stem.removeprefix("unit-")
            try:
                content = json.loads(file.read_text())
                if not isinstance(content, dict):
                    raise ValueError(f"{type(content).__name__} instead of an object")
            except (OSError, ValueError) as error:
                aside = file.with_suffix(".broken")
                print(f"{name} is unreadable, see {aside}: {error}", file=sys.stderr, flush=True)
                file.replace(aside)
                continue
            found[name] = content
        return found

    def forget(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"unit-{name}.json"
