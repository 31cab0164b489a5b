"""The `llada-sglang` command line: quick to answer, clear where it is misused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sglang import cli, env
from llada_sglang.cli import launch
from llada_sglang.cli.server import ServerError


def test_the_parser_imports_nothing_heavy() -> None:
    code = "import json, sys, llada_sglang.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "sglang", "transformers", "numpy", "openai", "psutil"}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "chat", "doctor", "roofline", "bundle"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["serve"], "invalid choice: 'serve'"),
        (["demo", "--port", "0"], "in [1, 65535], got '0'"),
        (["demo", "--port", "http"], "in [1, 65535], got 'http'"),
        (["chat", "--max-tokens", "0"], "at least 1, got '0'"),
        (["bundle", "out", "--part-size", "60 parsecs"], "such as 60MiB or 1.5GB"),
        (["bundle", "out", "--part-size", "1KiB"], "at least 1MiB, got '1KiB'"),
        (["chat", "--model", "a", "--url", "http://b"], "not allowed with argument"),
    ],
)
def test_misuse_is_status_2_with_the_reason(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "chat"])
def test_a_directory_that_is_no_checkpoint_is_refused_before_anything_starts(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--model", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"llada-sglang: {tmp_path} is no checkpoint")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_a_threshold_out_of_range_is_refused_with_the_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["chat", "--threshold", "1.7"]) == 1
    assert "threshold must be a number in (0, 1], got 1.7" in capsys.readouterr().err


def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", "localhost"]) == 1
    assert "--url must look like http://127.0.0.1:30000, got 'localhost'" in capsys.readouterr().err


def test_an_environment_that_leaves_the_plugin_out_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    assert "SGLANG_PLUGINS=other leaves llada_sglang out" in str(launch.plugin_left_out())
    monkeypatch.setenv("SGLANG_PLUGINS", "other, llada_sglang")
    assert launch.plugin_left_out() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "other")
    assert "SGLANG_PLATFORM=other" in str(launch.plugin_left_out())
    monkeypatch.setattr(launch, "validate", lambda model: None)
    with pytest.raises(ServerError, match="SGLANG_PLATFORM=other"):
        launch.prepare(str(tmp_path))


@pytest.mark.parametrize(("value", "plain"), [(None, False), ("", False), ("1", True)])
def test_no_color_counts_where_it_is_set_and_not_empty(
    value: str | None, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert env.no_color() is plain
