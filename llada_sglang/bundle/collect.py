"""Collecting wheels: resolve once, download exactly those, build what is published as source only.

uv resolves where it is found, as it decides environment markers for the target; pip decides them
for the interpreter it runs on, so it resolves for that one only. pip downloads in both cases.
"""

from __future__ import annotations

import email
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llada_sglang.bundle.install import BundleError
from llada_sglang.bundle.target import Target

PIP = "pip"
_SOURCE = Path(__file__).resolve().parents[2]
_SOURCE_FILES = ("pyproject.toml", "README.md", "LICENSE", "llada_sglang")
_NO_CACHES = shutil.ignore_patterns("__pycache__", ".*")
_UNAVAILABLE = re.compile(r"No matching distribution found for (\S+==\S+)")
_UV_GLIBC = (17, 28, *range(31, 41))
_SETUPTOOLS = 77  # as pyproject.toml


@dataclass(frozen=True, slots=True)
class Index:
    """Where packages come from: options that pip and uv both understand, and their own settings."""

    options: tuple[str, ...] = ()


def build_own_wheel(into: Path, index: Index, source: Path = _SOURCE) -> Path:
    """Build the wheel of this package from its source tree; the same bytes for the same files."""
    if not (source / "pyproject.toml").is_file():
        raise BundleError(
            f"{source} is no source tree, so the wheel of llada-sglang cannot be built. "
            "Give it with --wheel FILE, or run this in a checkout."
        )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "source"
        copy.mkdir()
        for name in _SOURCE_FILES:
            if (source / name).is_dir():
                shutil.copytree(source / name, copy / name, ignore=_NO_CACHES)
            else:
                shutil.copy2(source / name, copy / name)
        newest = max(int(file.stat().st_mtime) for file in copy.rglob("*"))
        command = ["env", f"SOURCE_DATE_EPOCH={newest}", *_pip(), "wheel", "--no-deps", "--quiet"]
        command += ["--wheel-dir", scratch, *index.options, str(copy)]
        command += ["--no-build-isolation"] if _setuptools() >= _SETUPTOOLS else []
        _run(command, "the wheel of llada-sglang cannot be built")
        built = next(Path(scratch).glob("*.whl"))
        into.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(built, into / built.name))


def requirements_of(wheel: Path) -> tuple[str, str, list[str]]:
    """Name, version and requirements without extras of a wheel, from its metadata."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(archive.read(name))
    except (OSError, zipfile.BadZipFile, StopIteration):
        raise BundleError(f"{wheel} is no wheel. Give the file that `pip wheel` wrote.") from None
    needed = metadata.get_all("Requires-Dist") or []
    return metadata["Name"], metadata["Version"], [r for r in needed if "extra ==" not in r]


def resolve(roots: Sequence[str], target: Target, index: Index) -> list[str]:
    """Every package that `roots` need on `target`, as `name==version`, sorted."""
    uv = _uv()
    if uv:
        return _resolve_with_uv(uv, roots, target, index)
    if target.is_this_interpreter():
        return _resolve_with_pip(roots, index)
    raise BundleError(
        f"resolving for Python {target.python} on {target.machine} from another interpreter needs "
        "uv: pip install uv, or run this with that Python on such a machine."
    )


def download(pins: Sequence[str], into: Path, target: Target, index: Index) -> list[Path]:
    """The wheels of `pins`, in that order; what is in `into` already is not fetched again.

    A package published as source only is built if its wheel runs anywhere, or if the target is
    this interpreter. Raises BundleError naming a package that has no wheel.
    """
    into.mkdir(parents=True, exist_ok=True)
    pending = [pin for pin in pins if _find(into, pin) is None]
    while pending:
        lacking = _download_wheels(pending, into, target, index)
        if lacking is None:
            break
        pending.remove(lacking)
        _build(lacking, into, target, index)
    found = {pin: _find(into, pin) for pin in pins}
    if absent := [pin for pin, wheel in found.items() if wheel is None]:
        raise BundleError(f"no wheel was collected for {', '.join(absent)}. Run this again.")
    return [wheel for wheel in found.values() if wheel is not None]


def cuda_version(pins: Sequence[str]) -> str | None:
    """The CUDA version the collected libraries are of, such as `13.0`; None where there are none.

    pins: `name==version`. Told by the runtime library that torch pins.
    """
    for pin in pins:
        name, _, version = pin.partition("==")
        if name.startswith("nvidia-cuda-runtime"):
            return ".".join(version.split(".")[:2])
    return None


def toolkit(pins: Sequence[str]) -> str | None:
    """What to require for an nvcc and headers of the CUDA version of the collected libraries.

    pins: `name==version`. None where torch brings no such libraries, or those of CUDA 12, whose
    wheels do not make one directory. Left to itself the newest nvcc comes, which refuses the
    headers of the version that torch pins.
    """
    for pin in pins:
        name, _, version = pin.partition("==")
        if name == "cuda-toolkit" and int(version.split(".")[0]) >= 13:
            return f"cuda-toolkit[nvcc,cccl,cublas,curand]=={version}"
    return None


def _resolve_with_uv(
    uv: list[str], roots: Sequence[str], target: Target, index: Index
) -> list[str]:
    command = [*uv, "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--color", "never"]
    command += ["--python-version", target.python, "--python-platform"]
    command += [f"{target.machine}-manylinux_2_{_uv_glibc(target)}", *index.options]
    done = _run(command, "the requirements cannot be resolved", text="\n".join(roots))
    lines = [line.split(";")[0].strip() for line in done.splitlines()]
    return sorted(line for line in lines if line and not line.startswith(("#", "-")))


def _resolve_with_pip(roots: Sequence[str], index: Index) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [*_pip(), "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), *index.options, *roots]
        _run(command, "the requirements cannot be resolved")
        chosen = json.loads(report.read_text("utf-8"))["install"]
    entries = [entry["metadata"] for entry in chosen]
    return sorted(f"{_normal(entry['name'])}=={entry['version']}" for entry in entries)


def _download_wheels(pins: Sequence[str], into: Path, target: Target, index: Index) -> str | None:
    """Fetch wheels until all are there (None) or one pin turns out to have none (that pin)."""
    tags = [part for tag in target.platform_tags for part in ("--platform", tag)]
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
    command += ["--quiet", "--dest", str(into), "--implementation", "cp"]
    command += ["--python-version", target.python, *tags, *index.options, *pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lacking = _UNAVAILABLE.search(done.stderr)
    if lacking and lacking[1] in pins:
        return lacking[1]
    raise BundleError(f"the wheels cannot be downloaded:\n{_last(done.stderr)}")


def _build(pin: str, into: Path, target: Target, index: Index) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [*_pip(), "wheel", "--no-deps", "--quiet", "--wheel-dir", scratch]
        reason = f"{pin} has no wheel for {target.name}, and cannot be built from its source"
        _run([*command, *index.options, pin], reason)
        built = next(Path(scratch).glob("*.whl"))
        if not built.name.endswith("-none-any.whl") and not target.is_this_interpreter():
            raise BundleError(
                f"{pin} has no wheel for {target.name}, and {built.name}, built from its source, "
                "runs only here. Run this on a machine like the target."
            )
        shutil.move(built, into / built.name)


def _find(directory: Path, pin: str) -> Path | None:
    """The whole wheel of a pin in a directory, or None; half a wheel is deleted."""
    name, _, version = pin.partition("==")
    for wheel in directory.glob("*.whl"):
        found_name, found_version = wheel.name.split("-")[:2]
        if _normal(found_name) == _normal(name) and _same_version(found_version, version):
            if zipfile.is_zipfile(wheel):
                return wheel
            wheel.unlink()
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _same_version(escaped: str, version: str) -> bool:
    """Whether the version in a file name, where `+` and `-` may be `_`, is `version`."""
    return re.sub(r"[-_+]", "_", escaped) == re.sub(r"[-_+]", "_", version)


def _pip() -> list[str]:
    """pip of this interpreter, else the one that comes with Python."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    bundled = importlib.util.find_spec("ensurepip")
    folder = Path(str(bundled.origin)).parent / "_bundled" if bundled else Path()
    for wheel in sorted(folder.glob("pip-*.whl")):
        return [sys.executable, str(wheel / "pip"), "--disable-pip-version-check"]
    raise BundleError(f"{sys.executable} has no pip. Install it, or use another Python.")


def _uv() -> list[str] | None:
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv") or shutil.which("uv", path=str(_SOURCE / ".tools/bin"))
    return [found] if found else None


def _uv_glibc(target: Target) -> int:
    """The newest glibc uv has a name for, not newer than the target's."""
    return max(minor for minor in _UV_GLIBC if minor <= target.glibc)


def _setuptools() -> int:
    """The major version of this interpreter's setuptools, 0 where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return int(version("setuptools").split(".")[0])
    except (PackageNotFoundError, ValueError):
        return 0


def _run(command: list[str], failure: str, *, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"{failure}:\n{_last(done.stderr)}")
    return done.stdout


def _last(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
