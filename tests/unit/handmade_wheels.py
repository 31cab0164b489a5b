"""Small wheels, built by hand, and a bundle of them."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llada_sglang.bundle import install, parts

HOST = {"implementation": "cpython", "python": "3.11", "system": "Linux", "machine": "x86_64"}


def make_wheel(
    directory: Path,
    name: str,
    version: str = "1.0",
    *,
    needs: Sequence[str] = (),
    extras: Sequence[str] = (),
    holds: Sequence[str] = (),
    filler: int = 0,
    tag: str = "py3-none-any",
) -> Path:
    """A wheel with one module of its own name.

    holds: other files in it, empty. filler: bytes of incompressible data in it.
    """
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n".encode(),
        f"{name}_data.bin": b"".join(
            hashlib.sha256(f"{name}{index}".encode()).digest() for index in range(filler // 32)
        ),
        f"{info}/METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            + [f"Requires-Dist: {need}" for need in needs]
            + [f"Provides-Extra: {extra}" for extra in extras]
        ).encode()
        + b"\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    files |= dict.fromkeys(holds, b"")
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in files.items():
            archive.writestr(zipfile.ZipInfo(inner), data)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def pip_wheel() -> Path:
    """The wheel of pip that comes with Python; skips the test where it was taken out."""
    spec = importlib.util.find_spec("ensurepip")
    found = sorted(Path(str(spec.origin)).parent.glob("_bundled/pip-*.whl")) if spec else []
    if not found:
        pytest.skip("this Python comes without the wheel of pip")
    return found[0]


def write_bundle(
    directory: Path, wheels: Sequence[Path], *, part_size: int, **changes: Any
) -> tuple[dict[str, Any], int]:
    """A bundle for this interpreter, unless `changes` say otherwise."""
    facts = install.probe(sys.executable)
    settings: dict[str, Any] = {
        "version": "0.1.0",
        "target": {key: facts[key] for key in HOST} | {"glibc": "2.17"},
        "requirements": ["{}=={}".format(*wheel.name.split("-")[:2]) for wheel in wheels],
        "pip": "pip==1.0",
    }
    return parts.write(wheels, directory, part_size=part_size, **(settings | changes))
