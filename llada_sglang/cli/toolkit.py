"""What SGLang compiles kernels with on a GPU, found where it looks for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llada_sglang import env

# What the first kernels include; each comes with another part of the toolkit.
_HEADERS = (
    "cuda_runtime_api.h",
    "cuda_fp16.h",
    "crt/host_config.h",
    "nv/target",
    "cublasLt.h",
    "curand_kernel.h",
)
_DRIVER = "$(ldconfig -p | awk '/libcuda.so.1/ {print $NF; exit}')"


def missing() -> Iterator[tuple[str, str]]:
    """What is not there, and how to mend it."""
    named = env.cuda_toolkit()
    nvcc = Path(named or "/usr/local/cuda", "bin", "nvcc")
    if not named and (found := shutil.which("nvcc")):
        nvcc = Path(found)
    root, compiler = nvcc.parent.parent, shutil.which("c++")
    if not nvcc.is_file():
        yield (
            f"There is no CUDA toolkit: {nvcc} does not exist. SGLang compiles kernels with it at "
            f"its start; the libraries that come with torch are not enough.",
            _mend(root),
        )
    else:
        yield from _missing_headers(root)
        yield from _other_version(nvcc, root)
        if compiler:
            yield from _missing_libraries(root, compiler)
    for tool, mend in (("c++", "Install a C++ compiler."), ("ninja", "pip install ninja")):
        if not (shutil.which(tool) or Path(sys.executable).with_name(tool).is_file()):
            yield (
                f"{tool} is not on the PATH; SGLang compiles kernels with it at its start.",
                mend,
            )


def _missing_headers(root: Path) -> Iterator[tuple[str, str]]:
    # CUDA 13 has those of CCCL, nv/target among them, in a directory of their own.
    folders = (root / "include", root / "include" / "cccl")
    absent = [name for name in _HEADERS if not any((path / name).is_file() for path in folders)]
    if absent:
        yield (
            f"The CUDA toolkit in {root} is not whole: {root / 'include'} has no "
            f"{', '.join(absent)}.",
            _mend(root),
        )


def _other_version(nvcc: Path, root: Path) -> Iterator[tuple[str, str]]:
    """The headers refuse the compiler of another version."""
    try:
        text = (root / "include" / "cuda_runtime_api.h").read_text("utf-8", "replace")
    except OSError:
        return  # said already
    if not (match := re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)):
        return
    headers = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
    said = _output([str(nvcc), "--version"])
    release = re.search(r"release (\d+\.\d+)", said)
    if release is None:
        yield f"{nvcc} --version tells no release: {said.strip()[:200]!r}.", _mend(root)
    elif release[1] != headers:
        yield (
            f"{nvcc} is of CUDA {release[1]}, the headers in {root / 'include'} are of {headers}; "
            f"they refuse each other.",
            _mend(root),
        )


def _missing_libraries(root: Path, compiler: str) -> Iterator[tuple[str, str]]:
    """The linker's word: a library may also be in one of its own directories."""
    lib64 = root / "lib64"
    mends = {
        "cudart": "Install the package of the toolkit with cudart for development.",
        "cuda": f'It is the driver\'s: ln -s "{_DRIVER}" {lib64}/libcuda.so',
    }
    for found in root.glob("lib/libcudart.so.*"):  # as the wheels have it
        mends["cudart"] = f"ln -s {found.name} {found.with_name('libcudart.so')}"
        if not lib64.exists():
            mends["cudart"] = f"ln -s lib {lib64}; {mends['cudart']}"
    with tempfile.TemporaryDirectory() as scratch:
        link = [compiler, "-shared", "-x", "c++", "/dev/null", "-o", f"{scratch}/linked"]
        for name, mend in mends.items():
            said = _output([*link, f"-L{lib64}", f"-L{lib64}/stubs", f"-l{name}"])
            if f"-l{name}" in said:
                yield f"Kernels cannot be linked: lib{name}.so is not in {lib64}.", mend


def _mend(root: Path) -> str:
    """How to come from `root` to a whole toolkit of one version."""
    version = "python -c 'import torch; print(torch.version.cuda)'"
    wheels = _of_wheels()
    if wheels and wheels.resolve() == root.resolve():
        return f'pip install "cuda-toolkit[nvcc,cccl,cublas,curand]==$({version}).*"'
    if wheels:
        return f"Set CUDA_HOME to {wheels}, the toolkit in the wheels, and run this again."
    return (
        f"Install the toolkit of the CUDA version that torch was built for ({version}) with all "
        f"its headers, and set CUDA_HOME to it."
    )


def _of_wheels() -> Path | None:
    """The toolkit that nvcc's wheel and those of torch's libraries make up together."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*/bin/nvcc"))
    return found[-1].parent.parent if found else None


def _output(command: list[str]) -> str:
    """What a program says, complaints included."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr
