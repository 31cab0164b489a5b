"""A bundle is collected from local wheels and installed for real, with the network off."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import handmade_wheels as made
import pytest

from llada_sglang import __version__, cli
from llada_sglang.bundle import collect, install
from llada_sglang.bundle.collect import Index
from llada_sglang.bundle.install import BundleError
from llada_sglang.bundle.target import PYTHONS, Target

HERE = "{}.{}".format(*sys.version_info[:2])
MACHINE = platform.machine()
NO_INDEX = Index(("--no-index",))
NOWHERE = "http://127.0.0.1:9/none"

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or HERE not in PYTHONS, reason="bundles are for Linux"
)


def _target() -> Target:
    return Target(HERE, MACHINE, 34)


def _offline(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run without an index, and without a network where the system lets us have none."""
    environment = {**os.environ, "PIP_INDEX_URL": NOWHERE, "PIP_FIND_LINKS": ""}
    cut = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*cut, "true"], capture_output=True).returncode:
        cut = []
    return subprocess.run([*cut, *command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this package, built from the working tree."""
    return collect.build_own_wheel(tmp_path_factory.mktemp("own"), NO_INDEX)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Local wheels: a stand-in for SGLang, what it needs, and pip."""
    store = tmp_path / "index"
    made.make_wheel(store, "sglang", "0.5.23", needs=["tiny>=1", "absent; sys_platform == 'win32'"])
    made.make_wheel(store, "tiny", "1.5", filler=1 << 16)
    made.make_wheel(store, "tiny", "0.9")
    shutil.copy(made.pip_wheel(), store)
    return Index(("--no-index", f"--find-links={store}"))


def _bundle(directory: Path, index: Index, *more: str) -> int:
    options = [option for given in index.options for option in given.split("=", 1)]
    return cli.main(["bundle", str(directory), "--part-size", "1MiB", *options, *more])


def test_a_bundle_installs_with_the_network_off(
    tmp_path: Path, index: Index, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bundle(tmp_path, index, "--wheel", str(own)) == 0
    said = capsys.readouterr().out
    assert "4 wheels" in said
    assert f"llada-sglang {__version__} for Python {HERE} on {MACHINE}" in said

    host = tmp_path / "host"
    shutil.move(tmp_path / "bundle", host)
    shutil.rmtree(tmp_path / "wheels")
    shutil.rmtree(tmp_path / "index")
    venv = tmp_path / "venv"
    done = _offline([sys.executable, str(host / "install.py"), "--venv", str(venv)])
    assert done.returncode == 0, done.stderr
    assert not (host / "wheels").exists()
    asked = _offline([str(venv / "bin/llada-sglang"), "--version"])
    assert asked.stdout == f"llada-sglang {__version__}\n"
    found = _offline([str(venv / "bin/python"), "-c", "import tiny; print(tiny.VERSION)"])
    assert found.stdout == "1.5\n"

    again = _offline([sys.executable, str(host / "install.py"), "--venv", str(venv)])
    assert again.returncode == 0, again.stderr
    (host / "part-0001").unlink()
    refused = _offline([sys.executable, str(host / "install.py"), "--venv", str(venv)])
    assert refused.returncode == 1
    assert "parts are missing: part-0001" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_nvcc_comes_in_the_version_of_the_libraries_and_can_be_linked_with(
    tmp_path: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else pins nvcc, and the newest refuses the headers of torch's libraries."""
    store, root = tmp_path / "index", "nvidia/cu13"
    needs = ["nvidia-cuda-nvcc==13.0.*; extra == 'nvcc'", "nvidia-cuda-runtime==13.0.96"]
    extras = ["nvcc", "cccl", "cublas", "curand"]
    made.make_wheel(store, "cuda_toolkit", "13.0.3", needs=needs, extras=extras)
    for version in ("13.5.37", "13.0.88"):
        made.make_wheel(store, "nvidia_cuda_nvcc", version, holds=[f"{root}/bin/nvcc"])
    libraries = [f"{root}/lib/libcudart.so.13", f"{root}/lib/libcudart_static.a"]
    made.make_wheel(store, "nvidia_cuda_runtime", "13.0.96", holds=libraries)
    torch = ["sglang>=0.5", "cuda-toolkit==13.0.3", "nvidia-cuda-nvcc"]
    own = made.make_wheel(tmp_path / "own", "llada_sglang", "9.9", needs=torch)
    assert _bundle(tmp_path, index, "--wheel", str(own)) == 0
    assert ", CUDA 13.0 and its nvcc\n" in capsys.readouterr().out
    manifest = install.read_manifest(str(tmp_path / "bundle"))
    assert "nvidia-cuda-nvcc==13.0.88" in manifest["requirements"]

    venv = tmp_path / "venv"
    command = [sys.executable, str(tmp_path / "bundle/install.py"), "--venv", str(venv)]
    for _ in range(2):
        done = _offline(command)
        assert done.returncode == 0, done.stderr
        toolkit = venv / f"lib/python{HERE}/site-packages" / root
        assert f"next: export CUDA_HOME={toolkit}\n" in done.stdout
        assert (toolkit / "lib64/libcudart.so").resolve() == toolkit / "lib/libcudart.so.13"


def test_a_second_collection_downloads_and_writes_nothing(
    tmp_path: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    own = made.make_wheel(tmp_path / "own", "llada_sglang", "9.9", needs=["sglang>=0.5"])
    assert _bundle(tmp_path, index, "--wheel", str(own)) == 0
    store = tmp_path / "wheels" / _target().name
    half = next(store.glob("tiny*"))
    whole = half.read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    before = {file.name: file.stat().st_mtime_ns for file in store.glob("*.whl") if file != half}
    capsys.readouterr()
    assert _bundle(tmp_path, index, "--wheel", str(own)) == 0
    assert " 0 of them written now" in capsys.readouterr().out
    assert half.read_bytes() == whole
    assert all((store / name).stat().st_mtime_ns == at for name, at in before.items())


def test_a_package_that_cannot_be_had_is_named(
    tmp_path: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    own = made.make_wheel(tmp_path / "own", "llada_sglang", "9.9", needs=["nowhere-to-be-found"])
    assert _bundle(tmp_path, index, "--wheel", str(own)) == 1
    complaint = capsys.readouterr().err
    assert "nowhere-to-be-found" in complaint
    assert "Traceback" not in complaint


def test_a_package_without_a_wheel_is_built_where_it_runs_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    built = []

    def build(pin: str, into: Path, target: Target, index: Index) -> None:
        built.append(pin)
        made.make_wheel(into, *pin.split("=="))

    monkeypatch.setattr(collect, "_build", build)
    made.make_wheel(tmp_path / "index", "tiny", "1.5")
    index = Index(("--no-index", f"--find-links={tmp_path / 'index'}"))
    found = collect.download(["source==2.0", "tiny==1.5"], store, _target(), index)
    assert built == ["source==2.0"]
    assert [wheel.name for wheel in found] == [
        "source-2.0-py3-none-any.whl",
        "tiny-1.5-py3-none-any.whl",
    ]


def test_pip_resolves_where_there_is_no_uv_and_only_for_itself(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_uv", lambda: None)
    assert collect.resolve(["sglang"], _target(), index) == ["sglang==0.5.23", "tiny==1.5"]
    other = Target(next(version for version in PYTHONS if version != HERE), MACHINE, 34)
    with pytest.raises(BundleError, match="needs uv: pip install uv"):
        collect.resolve(["sglang"], other, index)


def test_the_own_wheel_is_the_same_every_time(tmp_path: Path, own: Path) -> None:
    again = collect.build_own_wheel(tmp_path, NO_INDEX)
    assert install.sha256_of(str(again)) == install.sha256_of(str(own))
    name, version, needed = collect.requirements_of(own)
    assert (name, version) == ("llada-sglang", __version__)
    assert [need.split(">")[0].split("<")[0] for need in needed] == ["sglang"]


def test_the_tags_of_a_target_are_every_older_glibc() -> None:
    tags = Target("3.12", "x86_64", 34).platform_tags
    assert tags[0] == "manylinux_2_34_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux_2_35_x86_64" not in tags
    needs = Target("3.12", "x86_64", 40).needs(
        ["a-1-cp312-cp312-manylinux2014_x86_64.manylinux_2_28_x86_64.whl", "b-1-py3-none-any.whl"]
    )
    assert needs["glibc"] == "2.17"


@pytest.mark.parametrize(
    ("python", "machine", "glibc", "complaint"),
    [
        ("3.10", "x86_64", 34, "must be one of 3.11, 3.12, 3.13, got '3.10'"),
        ("3.12", "sparc", 34, "must be one of x86_64, aarch64, got 'sparc'"),
        ("3.12", "x86_64", 5, r"in \[2.17, 2.50\], got 2.5"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    python: str, machine: str, glibc: int, complaint: str
) -> None:
    with pytest.raises(BundleError, match=complaint):
        Target(python, machine, glibc)


def test_a_toolkit_is_required_only_where_wheels_make_one() -> None:
    wanted = "cuda-toolkit[nvcc,cccl,cublas,curand]==13.0.3.0"
    assert collect.toolkit(["cuda-tile==1.7", "cuda-toolkit==13.0.3.0"]) == wanted
    assert collect.toolkit(["cuda-toolkit==12.9.1"]) is None
    assert collect.toolkit(["torch==2.9", "nvidia-cuda-runtime-cu12==12.8.90"]) is None


def test_the_cuda_version_is_that_of_the_runtime_library() -> None:
    assert collect.cuda_version(["torch==2.9", "nvidia-cuda-runtime==13.0.96"]) == "13.0"
    assert collect.cuda_version(["nvidia-cuda-runtime-cu12==12.8.90"]) == "12.8"
    assert collect.cuda_version(["torch==2.9"]) is None
