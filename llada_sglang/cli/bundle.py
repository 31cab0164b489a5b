"""`llada-sglang bundle`: collects every wheel a host needs and writes them in parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llada_sglang.bundle import collect, parts
from llada_sglang.bundle.install import BundleError
from llada_sglang.bundle.target import Target
from llada_sglang.cli import terminal
from llada_sglang.errors import LLaDAError

_LARGEST_SHOWN = 10


def run(
    *,
    directory: str,
    python: str,
    machine: str,
    glibc: str,
    part_size: int,
    extra: Sequence[str],
    wheel: str | None,
    index_options: Sequence[str],
) -> int:
    """Write a bundle into `directory`/bundle and print its sizes; return 0."""
    try:
        _write(
            Path(directory),
            Target(python, machine, parse_glibc(glibc)),
            part_size=part_size,
            extra=extra,
            wheel=Path(wheel) if wheel else None,
            index=collect.Index(tuple(index_options)),
        )
    except BundleError as error:
        raise LLaDAError(str(error)) from error
    return 0


def parse_glibc(text: str) -> int:
    """The minor version of a glibc 2.x. Raises BundleError."""
    major, _, minor = text.partition(".")
    if major != "2" or not minor.isdigit():
        raise BundleError(f"--glibc must look like 2.34, got {text!r}.")
    return int(minor)


def _write(
    directory: Path,
    target: Target,
    *,
    part_size: int,
    extra: Sequence[str],
    wheel: Path | None,
    index: collect.Index,
) -> None:
    began = time.monotonic()
    with terminal.Progress("making a bundle") as progress:
        progress.stage("building the wheel of llada-sglang")
        store = directory / "wheels" / target.name
        own = wheel or collect.build_own_wheel(store / "own", index)
        name, version, needed = collect.requirements_of(own)
        progress.stage("resolving")
        roots = [*needed, *extra, collect.PIP]
        pins = collect.resolve(roots, target, index)
        if toolkit := collect.toolkit(pins):
            pins = collect.resolve([*roots, toolkit], target, index)
        progress.stage(f"downloading {len(pins)} packages")
        wheels = [*collect.download(pins, store, target, index), own]
        progress.stage("writing parts")
        pip = next(pin for pin in pins if pin.startswith(f"{collect.PIP}=="))
        manifest, written = parts.write(
            wheels,
            directory / "bundle",
            part_size=part_size,
            version=version,
            target=target.needs(wheel.name for wheel in wheels),
            requirements=[*(pin for pin in pins if pin != pip), f"{name}=={version}"],
            pip=pip,
            cuda=collect.cuda_version(pins),
        )
    print(as_text(manifest, directory / "bundle", written))
    print(f"\n{time.monotonic() - began:.0f} s")


def as_text(manifest: dict[str, Any], directory: Path, written: int) -> str:
    """What is in a bundle, its sizes, and what to do with it."""
    target, files = manifest["target"], manifest["files"]
    largest = sorted(files, key=lambda file: -file["size"])[:_LARGEST_SHOWN]
    rows: list[tuple[str, ...]] = [(_megabytes(file["size"]), file["name"]) for file in largest]
    rest = sum(file["size"] for file in files) - sum(file["size"] for file in largest)
    if others := len(files) - len(largest):
        rows.append((_megabytes(rest), f"{others} more"))
    count = len(manifest["parts"])
    cuda = f", CUDA {manifest['cuda']}" if manifest["cuda"] else ""
    nvcc = f"nvidia-cuda-nvcc=={manifest['cuda']}."
    cuda += " and its nvcc" if any(pin.startswith(nvcc) for pin in manifest["requirements"]) else ""
    return (
        f"llada-sglang {manifest['version']} for Python {target['python']} on {target['machine']}, "
        f"glibc {target['glibc']} or newer{cuda}\n"
        f"{terminal.table(rows)}\n"
        f"{len(files)} wheels, {manifest['total_bytes'] / 1e9:.2f} GB, "
        f"{manifest['installed_bytes'] / 1e9:.2f} GB installed\n"
        f"{count} parts of at most {manifest['part_size'] / (1 << 20):g} MiB in {directory}, "
        f"{written} of them written now\n\n"
        f"Copy {directory} to the host, and run there: python3 install.py --venv DIR"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:8.1f} MB"
