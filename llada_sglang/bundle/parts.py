"""Splitting a set of wheels into parts of a given size, with a manifest and checksums.

The wheels in a row are one stream of bytes; part i holds bytes [i, i + 1) x part_size of it.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from llada_sglang.bundle import install
from llada_sglang.bundle.install import FORMAT, MANIFEST, SUMS, BundleError

INSTALLER = "install.py"
_PART = "part-{:04d}"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of a size such as `60MiB`, `1.5GB` or `1048576`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"must be a size such as 60MiB or 1.5GB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def write(
    wheels: Sequence[Path],
    directory: Path,
    *,
    part_size: int,
    version: str,
    target: dict[str, str | None],
    requirements: Sequence[str],
    pip: str,
    cuda: str | None = None,
) -> tuple[dict[str, Any], int]:
    """Write a bundle; return its manifest and how many parts had to be written.

    wheels: in the order of the stream. part_size: bytes. The rest goes into the manifest as it is
    (`install.read_manifest` describes it). A part that is there and right is left alone; parts of
    an earlier, longer bundle are removed.
    """
    if part_size < 1:
        raise BundleError(f"part_size must be at least 1 byte, got {part_size}.")
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(wheel.stat().st_size for wheel in wheels)
    parts, written = [], 0
    for index in range(-(-total // part_size)):
        start, end = index * part_size, min(total, (index + 1) * part_size)
        digest = sha256()
        for chunk in _stream(wheels, start, end):
            digest.update(chunk)
        name = _PART.format(index + 1)
        entry = {"name": name, "size": end - start, "sha256": digest.hexdigest()}
        if not install.is_right(str(directory / name), entry):
            _write_part(directory / name, _stream(wheels, start, end))
            written += 1
        parts.append(entry)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "target": target,
        "cuda": cuda,
        "requirements": list(requirements),
        "pip": pip,
        "part_size": part_size,
        "total_bytes": total,
        "installed_bytes": sum(_unpacked(wheel) for wheel in wheels),
        "files": [_entry(wheel) for wheel in wheels],
        "parts": parts,
    }
    named = {part["name"] for part in parts}
    for file in directory.glob("part-*"):
        if file.name not in named:
            file.unlink()
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(install.__file__, directory / INSTALLER)
    _write_sums(directory, parts)
    return manifest, written


def _entry(file: Path) -> dict[str, Any]:
    return {
        "name": file.name,
        "size": file.stat().st_size,
        "sha256": install.sha256_of(str(file)),
    }


def _stream(wheels: Sequence[Path], start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end) of all wheels in a row."""
    begin = 0
    for wheel in wheels:
        size = wheel.stat().st_size
        low, high = max(start, begin), min(end, begin + size)
        if low < high:
            with wheel.open("rb") as file:
                file.seek(low - begin)
                yield from install.pieces(file, high - low)
        begin += size


def _write_part(path: Path, chunks: Iterator[bytes]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as out:
        for chunk in chunks:
            out.write(chunk)
    partial.replace(path)


def _unpacked(wheel: Path) -> int:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile:
        raise BundleError(f"{wheel} is no whole wheel. Delete it and collect again.") from None


def _write_sums(directory: Path, parts: Sequence[dict[str, Any]]) -> None:
    """SHA256SUMS of everything else in the bundle, as `sha256sum --check` reads it."""
    sums = {part["name"]: part["sha256"] for part in parts}
    for name in (MANIFEST, INSTALLER):
        sums[name] = install.sha256_of(str(directory / name))
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (directory / SUMS).write_text("".join(lines), encoding="utf-8")
