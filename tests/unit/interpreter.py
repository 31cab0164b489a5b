"""Triton's interpreter, for tests of kernels where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def interpreted_results(module: str, out: Path) -> dict[str, Any]:
    """What the fused kernel gives for every case of a module of tests/, by the case's name."""
    return interpreted("interpreted_cases.py", out, module)


def interpreted(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    """What a script of this directory saves at `out`, in a process in which Triton interprets.

    The script's arguments: `out`, the directory of the tests, and those given.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(out), str(HERE.parent), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = torch.load(out)
    return results
