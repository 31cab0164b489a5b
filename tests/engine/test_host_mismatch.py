"""A host we do not know serves no LLaDA2 model: the launch stops with one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import overlays
import pytest
from servers import ServerSpec, run_to_exit

from llada_sglang.compat import load_ledger

SYMBOL = "sglang.srt.dllm.config:DllmConfig.from_server_args"

RESOLVE = """
import json, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs
arguments = ServerArgs(model_path=sys.argv[1], device="cpu")
arguments.resolve_once()
from sglang.srt.plugins.hook_registry import HookRegistry
print("STATE", json.dumps({
    "patched": sorted(HookRegistry._patched),
    "ours": sorted(name for name in sys.modules if name.startswith("llada_sglang")),
    "variables": sorted(name for name in os.environ if name.startswith("LLADA_SGLANG")),
    "models": os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE"),
}))
"""


def resolve(model: Path, directory: Path, **environment: str) -> dict[str, Any]:
    """Resolve the arguments of a server as its launching process does; return the state left."""
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, str(model)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("STATE")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    state: dict[str, Any] = json.loads(lines[0].removeprefix("STATE"))
    return state


@pytest.mark.parametrize(
    ("change", "symbol", "version"),
    [
        (partial(overlays.corrupt_fingerprint, target=SYMBOL), SYMBOL, "0.5.23"),
        (
            partial(overlays.expect_symbol, target="sglang.srt.plugins:gone"),
            "sglang.srt.plugins:gone: missing",
            "0.5.23",
        ),
        (
            lambda directory: (
                overlays.corrupt_fingerprint(directory, SYMBOL),
                overlays.host_version(directory, "0.9.9"),
            ),
            SYMBOL,
            "0.9.9",
        ),
    ],
    ids=["changed symbol", "missing symbol", "untested version with a changed symbol"],
)
def test_a_host_we_do_not_know_is_refused(
    change: Callable[[Path], object],
    symbol: str,
    version: str,
    random_llada2: Path,
    tmp_path: Path,
) -> None:
    change(tmp_path)
    spec = ServerSpec(str(random_llada2), environment=(("PYTHONPATH", str(tmp_path)),))
    log = tmp_path / "server.log"
    assert run_to_exit(spec, log) != 0
    text = log.read_text()
    errors = [line for line in text.splitlines() if "HostMismatchError" in line]
    assert len(errors) == 1, text[-3000:]
    assert "Traceback" not in text
    assert f"SGLang {version} is installed" in errors[0]
    assert "tested with 0.5.23" in errors[0]
    assert symbol in errors[0]


def test_another_model_starts_on_a_host_we_do_not_know_and_is_left_alone(
    random_qwen2: Path, tmp_path: Path
) -> None:
    overlays.corrupt_fingerprint(tmp_path, SYMBOL)
    state = resolve(random_qwen2, tmp_path)
    ours = {patch.host_path for patch in load_ledger() if patch.kind.changes_host}
    assert not ours & set(state["patched"]), "other installed plugins may patch, not we"
    assert state["variables"] == []
    assert state["models"] is None


def test_a_plugin_that_takes_our_symbol_stops_the_launch(
    random_llada2: Path, tmp_path: Path
) -> None:
    overlays.rival_scheduler(tmp_path)
    spec = ServerSpec(str(random_llada2), environment=(("PYTHONPATH", str(tmp_path)),))
    log = tmp_path / "server.log"
    assert run_to_exit(spec, log) != 0
    text = log.read_text()
    assert "sglang.srt.managers.scheduler:Scheduler is not llada_sglang's" in text, text[-3000:]
    assert "SGLANG_PLUGINS=llada_sglang" in text


def test_excluded_by_sglang_plugins_nothing_of_ours_is_loaded(
    random_qwen2: Path, tmp_path: Path
) -> None:
    overlays.plain_cpu_platform(tmp_path)
    state = resolve(random_qwen2, tmp_path, SGLANG_PLUGINS="plain_cpu")
    assert state == {"patched": [], "ours": [], "variables": [], "models": None}
