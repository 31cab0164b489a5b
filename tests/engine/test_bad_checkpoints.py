"""A broken checkpoint ends the launch with one clear line, before any process is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import ServerSpec, run_to_exit


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _other_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": ["LLaDAModelLM"], "model_type": "llada"}
    (directory / "config.json").write_text(json.dumps(config))


def _no_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


def _no_checkpoint(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_truncate, "CheckpointError: {0}/model.safetensors is truncated"),
        (_other_architecture, "CheckpointError: {0} has architectures ['LLaDAModelLM']"),
        (_no_tokenizer, "CheckpointError: {0} has no tokenizer"),
        (_no_checkpoint, "config.json"),
    ],
)
def test_the_launch_ends_with_the_reason(
    edit: Callable[[Path], None], message: str, random_llada2: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(random_llada2, tmp_path / "checkpoint"))
    edit(directory)
    log = tmp_path / "log"
    assert run_to_exit(ServerSpec(str(directory)), log) != 0
    lines = log.read_text().splitlines()
    assert any(message.format(directory) in line for line in lines), "\n".join(lines[-20:])
    assert "Scheduler hit an exception" not in log.read_text()
