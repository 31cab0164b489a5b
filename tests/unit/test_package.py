"""What is installed is complete, light to import, and keeps to its own rules."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llada_sglang import env
from llada_sglang.errors import LaunchConfigError

PACKAGE = Path(__file__).resolve().parents[2] / "llada_sglang"
MODULES = sorted(file for file in PACKAGE.rglob("*.py") if "patches" not in file.parts)

BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel_names(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of a wheel built from a copy of the tree, offline."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(repository / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "llada_sglang", copy / "llada_sglang", True, ignore=ignored)
    shutil.copytree(repository / "patches", copy / "patches", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(copy)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(copy / done.stdout.split()[-1]) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module_and_data_file(
    repository: Path, wheel_names: list[str]
) -> None:
    files = [
        str(file.relative_to(repository))
        for folder in (repository / "llada_sglang", repository / "llada_sglang" / "patches")
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert sorted(set(files) - set(wheel_names)) == []


@pytest.mark.parametrize(
    "name",
    [
        "llada_sglang/patches/__init__.py",
        "llada_sglang/patches/scheduler.py",
        "llada_sglang/nano/checkpoint/config.json",
        "llada_sglang/nano/checkpoint/model.safetensors",
        "llada_sglang/nano/checkpoint/tokenizer.json",
        "llada_sglang/nano/checkpoint/chat_template.jinja",
        "llada_sglang/nano/checkpoint_edit/model.safetensors",
        "llada_sglang/nano/checkpoint_levenshtein/model.safetensors",
        "llada_sglang/nano/checkpoint_lookahead/model.safetensors",
        "llada_sglang/py.typed",
    ],
)
def test_the_wheel_ships_the_ledger_and_the_nano_checkpoints(
    wheel_names: list[str], name: str
) -> None:
    assert name in wheel_names


def test_the_wheel_ships_nothing_else(wheel_names: list[str]) -> None:
    roots = {name.split("/")[0] for name in wheel_names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"llada_sglang"}


@pytest.mark.parametrize("group", ["sglang.srt.plugins", "sglang.srt.platforms"])
def test_the_host_finds_us_under_one_name(group: str) -> None:
    ours = [entry for entry in entry_points(group=group) if entry.name == "llada_sglang"]
    assert len(ours) == 1
    assert callable(ours[0].load())


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import json, sys, llada_sglang; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "sglang", "transformers", "numpy", "safetensors", "triton"}


def imported(file: Path) -> set[str]:
    """The top-level packages a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["decoding", "kernels", "reference", "nano"])
def test_the_pure_packages_do_not_import_the_host(folder: str) -> None:
    offenders = [str(f) for f in (PACKAGE / folder).rglob("*.py") if "sglang" in imported(f)]
    assert offenders == []


def test_only_env_touches_the_environment() -> None:
    def touches(file: Path) -> bool:
        tree = ast.parse(file.read_text("utf-8"))
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        return bool((attributes | names) & {"environ", "getenv", "putenv"})

    assert [file.name for file in MODULES if touches(file)] == ["env.py"]


def test_an_unknown_variable_of_ours_is_an_error() -> None:
    with pytest.raises(LaunchConfigError, match=r"unknown environment variable LLADA_SGLANG_ACTVE"):
        env.load({"LLADA_SGLANG_ACTVE": "1"})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_a_variable_is_a_yes_or_a_no(text: str, value: bool) -> None:
    assert env.load({"LLADA_SGLANG_CHECK_INTEGRITY": text}).check_integrity is value
    with pytest.raises(LaunchConfigError, match="LLADA_SGLANG_CHECK_INTEGRITY must be 0 or 1"):
        env.load({"LLADA_SGLANG_CHECK_INTEGRITY": "maybe"})


def test_children_of_another_model_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_EXTERNAL_MODEL_PACKAGE", raising=False)
    monkeypatch.delenv("LLADA_SGLANG_ACTIVE", raising=False)
    monkeypatch.setattr(env, "_set_here", {})  # what other tests left
    before = dict(os.environ)
    env.set_active(True)
    assert env.is_active()
    assert os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] == "llada_sglang.models"
    env.set_active(False)
    assert dict(os.environ) == before


def test_a_model_package_the_user_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLADA_SGLANG_ACTIVE", raising=False)
    monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", "theirs")
    env.set_active(True)
    env.set_active(False)
    assert os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] == "theirs"


def test_makefile_and_ci_write_no_registry_address(repository: Path) -> None:
    for name in ("Makefile", "pyproject.toml", ".ci/run", ".pre-commit-config.yaml"):
        text = (repository / name).read_text("utf-8")
        assert "://" not in text
        assert "index-url" not in text
