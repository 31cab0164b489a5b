"""What the commands print: exact streams, colours only where wanted, progress that goes away."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sglang.cli import terminal


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(pieces: list[str], indent: str = "  ") -> str:
    stream = io.StringIO()
    writer = terminal.IndentedWriter(stream, indent)
    for piece in pieces:
        writer.write(piece)
    writer.end()
    return stream.getvalue()


def test_every_line_is_indented_and_the_last_one_ended() -> None:
    assert written(["def f(x):\n", "    ret", "urn x"]) == "  def f(x):\n      return x\n"
    assert written(["a\n\nb\n"]) == "  a\n\n  b\n"
    assert written([]) == ""


@given(st.text(alphabet="ab \n\t\x1b\x07", max_size=40), st.data())
def test_how_a_text_is_cut_into_pieces_does_not_show(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert written(pieces) == written([text])


def test_a_text_cannot_steer_the_terminal() -> None:
    assert written(["a\x1b[2Jb\x9b1mc\rd\te"], indent="") == "a[2Jb1mcd\te\n"


@pytest.mark.parametrize("styled", [terminal.dim, terminal.bold])
def test_colours_only_on_a_terminal_and_not_against_no_color(
    styled: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(styled)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("text", io.StringIO()) == "text"
    assert styled("text", Terminal()) != "text"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("text", Terminal()) == "text"


def test_a_table_aligns_all_columns_but_the_last() -> None:
    rows = [("a", "1", "x y"), ("long", "22", "")]
    assert terminal.table(rows) == "  a     1   x y\n  long  22"


def test_progress_says_nothing_about_what_is_quick() -> None:
    for stream in (io.StringIO(), Terminal()):
        with terminal.Progress("waiting", stream, after=60):
            pass
        assert stream.getvalue() == ""


def test_progress_prints_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = terminal.Progress("waiting", stream, after=0.0, line_seconds=60)
    progress.stage("loading")
    with progress:
        progress.stop()
        progress.stop()
    assert stream.getvalue() in ("", "waiting, 0 s: loading\n")


def test_progress_leaves_an_empty_line_on_a_terminal() -> None:
    stream = Terminal()
    progress = terminal.Progress("waiting", stream, after=0.0)
    with progress:
        while "waiting" not in stream.getvalue():
            pass
    last = stream.getvalue().split("\r")[-1]
    assert last == "\x1b[K"


def test_progress_ends_with_its_block_also_on_an_error() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError), terminal.Progress("waiting", stream, after=0.0) as progress:
        raise RuntimeError
    size = len(stream.getvalue())
    progress.stop()
    assert len(stream.getvalue()) == size
