"""A bundle is split, joined and verified exactly, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import handmade_wheels as made
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llada_sglang.bundle import install, parts
from llada_sglang.bundle.install import BundleError

PART = 1000


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three wheels, one of them over several parts."""
    store = tmp_path / "store"
    wheels = [
        made.make_wheel(store, "first"),
        made.make_wheel(store, "second", filler=4096),
        made.make_wheel(store, "third"),
    ]
    made.write_bundle(tmp_path / "bundle", wheels, part_size=PART)
    return tmp_path / "bundle"


def _joined(bundle: Path, into: Path) -> dict[str, bytes]:
    into.mkdir(exist_ok=True)
    install.join(str(bundle), install.read_manifest(str(bundle)), str(into))
    return {file.name: file.read_bytes() for file in into.iterdir()}


def _store(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (bundle.parent / "store").iterdir()}


def test_wheels_come_out_of_the_parts_as_they_went_in(bundle: Path, tmp_path: Path) -> None:
    assert _joined(bundle, tmp_path / "out") == _store(bundle)
    assert all(file.stat().st_size <= PART for file in bundle.glob("part-*"))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), part_size=st.integers(1, 40))
def test_any_sizes_split_and_join(
    sizes: list[int], part_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("split")
    files = []
    for index, size in enumerate(sizes):
        files.append(root / f"file{index}")
        files[-1].write_bytes(bytes(range(index, index + size)))
    stream = b"".join(file.read_bytes() for file in files)
    written = b"".join(
        b"".join(parts._stream(files, start, min(start + part_size, len(stream))))
        for start in range(0, len(stream), part_size)
    )
    assert written == stream


def test_the_checksums_are_those_sha256sum_reads(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_parts_that_are_right_are_not_written_again(bundle: Path, tmp_path: Path) -> None:
    wheels = sorted((tmp_path / "store").iterdir())
    times = {part.name: part.stat().st_mtime_ns for part in bundle.glob("part-*")}
    (bundle / "part-0002").unlink()
    (bundle / "part-0003").write_bytes(b"x" * PART)
    _, written = made.write_bundle(bundle, wheels, part_size=PART)
    assert written == 2
    changed = {p.name for p in bundle.glob("part-*") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"part-0002", "part-0003"}
    assert _joined(bundle, tmp_path / "out") == _store(bundle)


def test_parts_of_an_earlier_and_longer_bundle_are_removed(bundle: Path, tmp_path: Path) -> None:
    wheels = sorted((tmp_path / "store").iterdir())
    made.write_bundle(bundle, wheels, part_size=10 * PART)
    assert [part.name for part in bundle.glob("part-*")] == ["part-0001"]


def test_wheels_that_are_joined_already_need_no_parts(bundle: Path, tmp_path: Path) -> None:
    before = _joined(bundle, tmp_path / "out")
    for part in bundle.glob("part-*"):
        part.unlink()
    assert _joined(bundle, tmp_path / "out") == before


def test_missing_parts_are_all_named(bundle: Path) -> None:
    for name in ("part-0001", "part-0003"):
        (bundle / name).unlink()
    with pytest.raises(BundleError, match="2 of 8 parts are missing: part-0001, part-0003"):
        install.check_parts(str(bundle), install.read_manifest(str(bundle)))


def test_a_part_cut_short_is_named_with_both_sizes(bundle: Path) -> None:
    (bundle / "part-0002").write_bytes(b"x" * 10)
    with pytest.raises(BundleError, match=r"incomplete: part-0002 \(10 bytes, not 1000\)"):
        install.check_parts(str(bundle), install.read_manifest(str(bundle)))


def test_a_flipped_bit_stops_the_join_and_leaves_no_wheel(bundle: Path, tmp_path: Path) -> None:
    part = bundle / "part-0003"
    data = bytearray(part.read_bytes())
    data[500] ^= 1
    part.write_bytes(data)
    with pytest.raises(BundleError, match="part-0003 is corrupted"):
        _joined(bundle, tmp_path / "out")
    assert not list((tmp_path / "out").glob("second*"))


def test_a_manifest_that_was_changed_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].pop()
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not the one SHA256SUMS lists"):
        install.read_manifest(str(bundle))
    path.write_text("{")
    with pytest.raises(BundleError, match="corrupted"):
        install.read_manifest(str(bundle))
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        install.read_manifest(str(bundle))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"python": "3.12"}, "for cpython 3.12 on Linux x86_64, exe is cpython 3.11"),
        ({"machine": "aarch64"}, "Linux aarch64, exe is cpython 3.11 on Linux x86_64"),
        ({"glibc": "2.99"}, "needs glibc 2.99 or newer, this system has 2.36"),
    ],
)
def test_another_python_or_platform_is_refused(change: dict[str, str], complaint: str) -> None:
    facts = made.HOST | {"glibc": "2.36"}
    install.check_target(made.HOST | {"glibc": "2.36"}, facts, "exe")
    with pytest.raises(BundleError, match=complaint):
        install.check_target(facts | change, facts, "exe")


def test_a_musl_system_is_refused() -> None:
    facts: dict[str, Any] = made.HOST | {"glibc": None}
    with pytest.raises(BundleError, match="this system has another C library"):
        install.check_target(made.HOST | {"glibc": "2.17"}, facts, "exe")


def test_a_disk_too_small_is_told_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    manifest = install.read_manifest(str(bundle))
    manifest["installed_bytes"] = 10**18
    with pytest.raises(BundleError, match=r"1000000000\.0 GB are needed at"):
        install._check_space(manifest, str(tmp_path), str(tmp_path / "venv" / "lib"))


def test_a_directory_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    options = argparse.Namespace(venv=str(tmp_path), python=None)
    with pytest.raises(BundleError, match="neither empty nor a virtual environment"):
        install._interpreter(options)


@pytest.mark.parametrize(
    ("text", "size"), [("60MiB", 60 << 20), ("1.5GB", 1500000000), ("7", 7), ("2 gib", 2 << 30)]
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parts.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "5 parsecs"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="60MiB"):
        parts.parse_size(text)
