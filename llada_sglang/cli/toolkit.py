"""What SGLang compiles kernels with on a GPU, found where it looks for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from llada_sglang import env


def missing() -> Iterator[tuple[str, str]]:
    """What is not there, and how to mend it."""
    root = env.cuda_toolkit()
    found = shutil.which("nvcc")
    nvcc = Path(root, "bin", "nvcc") if root else Path(found or "/usr/local/cuda/bin/nvcc")
    if not nvcc.is_file():
        yield (
            f"There is no CUDA toolkit: {nvcc} does not exist. SGLang compiles kernels with it at "
            f"its start; the libraries that come with torch are not enough.",
            "Install the toolkit of the CUDA version that torch was built for (python -c 'import "
            "torch; print(torch.version.cuda)') and set CUDA_HOME to it.",
        )
    for tool, mend in (("c++", "Install a C++ compiler."), ("ninja", "pip install ninja")):
        if not (shutil.which(tool) or Path(sys.executable).with_name(tool).is_file()):
            yield (
                f"{tool} is not on the PATH; SGLang compiles kernels with it at its start.",
                mend,
            )
