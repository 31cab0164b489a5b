"""SGLang on an NVIDIA GPU that is not there: all of its CUDA path but the kernels, on a CPU.

`environment` is what a process is started with to find one H100-like GPU. torch, sgl_kernel, the
host and this package then take the path they take on a GPU: their own allocator, streams, events,
pinned memory, graphs and argument checks, over a CUDA runtime (runtime.c) whose device memory is
the process' own. Kernels do nothing when they are launched; what they compute is computed by torch
on the same memory (device.py, kernels.py), Triton's by its interpreter. Graphs repeat what ran
while they were captured. Waiting for the device where nothing may, and tensors of two devices, are
errors, as there. Not seen here: what kernels really compute, races, and time.

With `gib` the device is that large, whatever the machine has. Nothing is computed then of tensors
of 16 KiB or more, whose pages are never touched: torch's allocator says what fits.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def why_not() -> str | None:
    """Why there can be no simulated GPU on this machine, or None."""
    if shutil.which("cc") is None:
        return "no C compiler"
    if importlib.util.find_spec("triton") is None:
        return "no Triton, and no header of CUDA's types"
    return None


def run(given: dict[str, str], *arguments: str, cwd: Path | None = None) -> str:
    """Run Python with the variables of `environment`, to its end; what it said."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def environment(directory: Path, *, gib: int | None = None) -> dict[str, str]:
    """Build the runtime in `directory`; the variables of a process that finds the GPU.

    gib: memory of the device, which then computes next to nothing; 4.5 GiB where it computes.
    """
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    headers = Path(str(triton.origin)).parent / "backends" / "nvidia" / "include"
    library = directory / "libcuda.so.1"
    flags = ("-O1", "-Wall", "-Werror", "-fPIC", "-shared", f"-Wl,-soname,{library.name}")
    source = HERE / "runtime.c"
    subprocess.run(["cc", *flags, f"-I{headers}", str(source), "-o", str(library)], check=True)
    paths = (str(HERE / "startup"), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    return {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_INTERPRET": "1",
        "TORCHDYNAMO_DISABLE": "1",
        **({"SIMULATED_GPU_GIB": str(gib)} if gib else {}),
    }
