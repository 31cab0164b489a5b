"""What the commands print: dimmed text, indented streams, and progress while something is slow."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from llada_sglang import env

_FRAMES = "|/-\\"
_CLEAR_LINE = "\r\x1b[K"
_CONTROL = (*range(0x20), *range(0x7F, 0xA0))  # C0, DEL and C1
_NO_CONTROL = {code: None for code in _CONTROL if chr(code) not in "\n\t"}


def colour_wanted(stream: TextIO) -> bool:
    """Whether to write escape sequences: only to a terminal, and not where NO_COLOR is set."""
    return stream.isatty() and not env.no_color()


def dim(text: str, stream: TextIO) -> str:
    """`text` in faint type where `stream` takes colours, else as it is."""
    return f"\x1b[2m{text}\x1b[22m" if colour_wanted(stream) else text


def bold(text: str, stream: TextIO) -> str:
    """`text` in bold type where `stream` takes colours, else as it is."""
    return f"\x1b[1m{text}\x1b[22m" if colour_wanted(stream) else text


def table(rows: list[tuple[str, ...]], indent: str = "  ") -> str:
    """Rows of cells as aligned columns, two spaces apart; the last column is as wide as it is."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append((indent + "  ".join([*cells, row[-1]])).rstrip())
    return "\n".join(lines)


class IndentedWriter:
    """Writes text as it arrives, each of its lines behind `indent`.

    Control characters are left out: a model's text must not steer the terminal.
    """

    def __init__(self, stream: TextIO, indent: str = "") -> None:
        self._stream = stream
        self._indent = indent
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Write a piece of text, which may hold any part of any number of lines."""
        for index, line in enumerate(text.translate(_NO_CONTROL).split("\n")):
            if index:
                self._stream.write("\n")
                self._at_line_start = True
            if line:
                self._stream.write(self._indent + line if self._at_line_start else line)
                self._at_line_start = False
        self._stream.flush()

    def end(self) -> None:
        """End the last line, if it was not."""
        if not self._at_line_start:
            self._stream.write("\n")
            self._at_line_start = True
        self._stream.flush()


class Progress:
    """Says what is being waited for, and for how long, until its block is left.

    On a terminal: one line with a spinner, erased afterwards. Elsewhere: a line every
    `line_seconds`. Silent for the first `after` seconds.
    """

    def __init__(
        self,
        what: str,
        stream: TextIO | None = None,
        *,
        after: float = 2.0,
        line_seconds: float = 10.0,
    ) -> None:
        self._what = what
        self._stage = ""
        self._stream = sys.stderr if stream is None else stream
        self._after = after
        self._line_seconds = line_seconds
        self._live = self._stream.isatty()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def stage(self, text: str) -> None:
        """Name the part that is running now."""
        self._stage = text

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Erase the line and show nothing more. Idempotent."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        started = time.monotonic()
        if self._done.wait(self._after):
            return
        frame = 0
        while True:
            seconds = time.monotonic() - started
            stage = f": {self._stage}" if self._stage else ""
            line = f"{self._what}, {seconds:.0f} s{stage}"
            if self._live:
                mark = _FRAMES[frame % len(_FRAMES)]
                self._stream.write(f"{_CLEAR_LINE}{mark} {line}")
                self._stream.flush()
                frame += 1
            elif seconds >= max(self._after, frame * self._line_seconds):
                print(line, file=self._stream, flush=True)
                frame = int(seconds // self._line_seconds) + 1
            if self._done.wait(0.1):
                break
        if self._live:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
