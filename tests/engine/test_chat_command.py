"""`llada-sglang chat` with a server that is there already."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from servers import Server

COMMAND = (sys.executable, "-m", "llada_sglang.cli")
SECONDS = 900


def chat(server: Server, typed: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command with a server, and everything typed at once. Runs in `folder`."""
    return subprocess.run(
        [*COMMAND, "chat", "--url", server.url],
        input=typed,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_a_chat_with_a_running_server_remembers_what_was_said(
    nano_server: Server, tmp_path: Path
) -> None:
    done = chat(nano_server, "Count from 3 to 9.\nAgain.\n/quit\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3, 4, 5, 6, 7, 8, 9\n") == 2, done.stdout
    assert len(re.findall(r"[\d.]+ tokens/s  [\d.]+ tokens/forward", done.stdout)) == 2


def test_a_chat_whose_turn_is_refused_goes_on(nano_server: Server, tmp_path: Path) -> None:
    done = chat(nano_server, "word " * 20000 + "\nCount from 3 to 9.\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "llada-sglang: " in done.stderr
    assert "3, 4, 5, 6, 7, 8, 9\n" in done.stdout
