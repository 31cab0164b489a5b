"""`llada-sglang doctor` says what is wrong and how to mend it, and fails only on what matters."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from llada_sglang import cli
from llada_sglang.cli import doctor, families, inspection, toolkit
from llada_sglang.cli.inspection import Device, Finding, Report
from llada_sglang.compat import HostReport, Problem, load_ledger

MINI = {"architectures": ["LLaDA2MoeModelLM"], "num_hidden_layers": 20, "hidden_size": 2048}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGLANG_PLUGINS", "SGLANG_PLATFORM", "LLADA_SGLANG_ACTIVE"):
        monkeypatch.delenv(name, raising=False)


def findings(step: Iterator[Finding]) -> list[Finding]:
    return list(step)


def inspected() -> Report:
    """A report with every package present, to inspect one part of."""
    return Report(packages=dict.fromkeys(inspection.PACKAGES, "1.0"))


def write_checkpoint(directory: Path, **changes: Any) -> Path:
    """A one-layer LLaDA2 with all its files; `changes` are keys of config.json."""
    import numpy as np

    from llada_sglang.weights import weight_shapes

    config = {
        "architectures": ["LLaDA2MoeModelLM"],
        "vocab_size": 64,
        "hidden_size": 8,
        "intermediate_size": 8,
        "moe_intermediate_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "num_experts": 2,
        "mask_token_id": 63,
        "eos_token_id": [61, 62],
        "torch_dtype": "bfloat16",
        **changes,
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("")
    tensors = {name: np.zeros(shape, np.float16) for name, shape in weight_shapes(config).items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_the_report_of_this_installation_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """The host this runs on is the tested one: nothing serious may be found."""
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for patch in load_ledger():
        if patch.hook:
            assert patch.target.removeprefix("sglang.srt.") in text
    for family in families.FAMILIES:
        assert family.name in text
    assert "Everything is in order." in text


def test_the_json_report_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    assert cli.main(["doctor", "--json", "--model", str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert report["host"]["supported"] is True
    assert {patch["problem"] for patch in report["patches"]} == {None}
    assert report["checkpoint"]["eos_ids"] == [61, 62]
    assert report["checkpoint"]["mask_id"] == 63
    assert report["checkpoint"]["block_size"] == 32
    assert report["checkpoint"]["policy"] == "threshold"
    decoded = {family["name"]: family["decoding"] for family in report["families"]}
    assert decoded["LLaDA2.2-flash"] == "levenshtein"


def test_a_changed_host_is_serious_and_every_symbol_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed, used = "sglang.srt.managers.scheduler:Scheduler", "sglang.srt.plugins:load_plugins"
    host = HostReport("0.5.99", ("0.5.23",), (Problem(changed, "missing"), Problem(used, "odd")))
    monkeypatch.setattr(inspection, "inspect_host", lambda: host)
    report = inspected()
    (finding,) = findings(inspection._inspect_host(report))
    assert finding.serious
    assert f"{changed}: missing" in finding.what
    assert f"{used}: odd" in finding.what
    assert finding.mend == 'pip install --force-reinstall "sglang==0.5.23"'
    assert [p.target for p in report.patches if p.problem] == [changed]
    text = doctor.as_text(report)
    assert "1 cannot be applied" in text
    assert "not supported (tested: 0.5.23)" in text


def test_an_untested_host_of_known_symbols_is_only_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspection, "inspect_host", lambda: HostReport("0.5.99", ("0.5.23",), ()))
    (finding,) = findings(inspection._inspect_host(inspected()))
    assert not finding.serious
    assert "0.5.99 is untested" in finding.what


def test_a_missing_host_is_serious() -> None:
    report = Report(packages={"sglang": None})
    (finding,) = findings(inspection._inspect_host(report))
    assert finding.serious
    assert report.host is None
    report.findings.append(finding)
    assert "Something is wrong" in doctor.as_text(report)


@pytest.mark.parametrize(
    ("name", "value", "said", "serious"),
    [
        ("SGLANG_PLUGINS", "other", "SGLANG_PLUGINS=other leaves llada_sglang out", True),
        ("SGLANG_PLATFORM", "other", "SGLANG_PLATFORM=other", True),
        ("LLADA_SGLANG_ACTVE", "1", "unknown environment variable LLADA_SGLANG_ACTVE", True),
        ("LLADA_SGLANG_ACTIVE", "1", "LLADA_SGLANG_ACTIVE is set", False),
    ],
)
def test_a_variable_that_gets_in_the_way_is_named(
    name: str, value: str, said: str, serious: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(inspection._inspect_plugin(inspected())) == []
    monkeypatch.setenv(name, value)
    (finding,) = findings(inspection._inspect_plugin(inspected()))
    assert said in finding.what
    assert finding.serious is serious


def test_a_package_the_host_cannot_find_is_serious(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    found = findings(inspection._inspect_plugin(inspected()))
    assert [finding.serious for finding in found] == [True, True]
    assert "sglang.srt.platforms" in found[1].what


def test_missing_packages_are_serious_where_serving_needs_them() -> None:
    report = inspected()
    report.device = Device("cuda", ("a GPU",), 1 << 30)
    assert findings(inspection._inspect_packages(report)) == []
    report.packages |= dict.fromkeys(("transformers", "triton", "flashinfer-python", "openai"))
    found = findings(inspection._inspect_packages(report))
    assert [finding.serious for finding in found] == [True, True, True, False]
    report.device = Device("cpu", (), 1 << 30)
    assert len(findings(inspection._inspect_packages(report))) == 3


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole toolkit of CUDA 13.0, as far as its version and its files go."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "toolkit"
    for header in toolkit._HEADERS:
        path = root / "include" / ("cccl" if header.startswith("nv/") else "") / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "include" / "cuda_runtime_api.h").write_text("#define CUDART_VERSION  13000\n")
    for tool in ("c++", "ninja", "nvcc"):
        write_script(root / "bin" / tool, "echo Cuda compilation tools, release 13.0, V13.0.88")
    monkeypatch.setattr(toolkit.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(toolkit, "_of_wheels", lambda: None)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(root))
    return root


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def of_toolkit() -> list[Finding]:
    report = Report(device=Device("cuda", ("a GPU",), 1 << 30))
    return findings(inspection._inspect_toolkit(report))


def test_a_gpu_needs_what_the_host_compiles_with(
    cuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found where the host looks: CUDA_HOME, CUDA_PATH, the PATH, /usr/local/cuda."""
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(cuda / "bin"))
    assert of_toolkit() == []
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    (missing,) = of_toolkit()
    assert missing.serious
    assert str(tmp_path / "elsewhere" / "bin" / "nvcc") in missing.what
    monkeypatch.setenv("CUDA_HOME", str(cuda))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding.what.split()[0] for finding in of_toolkit()] == ["c++", "ninja"]
    assert findings(inspection._inspect_toolkit(Report(device=Device("cpu", (), 1)))) == []


def test_headers_a_toolkit_lacks_are_named(cuda: Path) -> None:
    (cuda / "include" / "cublasLt.h").unlink()
    (cuda / "include" / "cccl" / "nv" / "target").unlink()
    (missing,) = of_toolkit()
    assert missing.serious
    assert f"{cuda / 'include'} has no nv/target, cublasLt.h." in missing.what


def test_an_nvcc_of_another_version_than_its_headers_is_serious(
    cuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(cuda / "bin" / "nvcc", "echo release 13.5, V13.5.37")
    (other,) = of_toolkit()
    assert other.serious
    assert "nvcc is of CUDA 13.5, the headers" in other.what
    assert "Install the toolkit" in other.mend
    monkeypatch.setattr(toolkit, "_of_wheels", lambda: tmp_path / "wheels")
    assert f"Set CUDA_HOME to {tmp_path / 'wheels'}" in of_toolkit()[0].mend
    monkeypatch.setattr(toolkit, "_of_wheels", lambda: cuda)
    assert of_toolkit()[0].mend.startswith('pip install "cuda-toolkit[nvcc,cccl')
    write_script(cuda / "bin" / "nvcc", "echo cannot execute >&2; exit 1")
    (broken,) = of_toolkit()
    assert "tells no release: 'cannot execute'" in broken.what


def test_libraries_without_the_name_a_linker_looks_for_are_named(cuda: Path) -> None:
    """Wheels hold libcudart.so.13 alone, in lib; the way out is followed word by word."""
    complaint = (
        'case "$*" in *-l{0}) test -e {1} || {{ echo cannot find -l{0} >&2; exit 1; }};; esac'
    )
    write_script(cuda / "bin" / "c++", complaint.format("cudart", cuda / "lib64" / "libcudart.so"))
    (cuda / "lib").mkdir()
    (cuda / "lib" / "libcudart.so.13").touch()
    (unlinked,) = of_toolkit()
    assert "libcudart.so is not in" in unlinked.what
    subprocess.run(["sh", "-c", unlinked.mend], check=True)
    assert (cuda / "lib64" / "libcudart.so").resolve() == cuda / "lib" / "libcudart.so.13"
    assert of_toolkit() == []
    write_script(cuda / "bin" / "c++", complaint.format("cuda", cuda / "lib64" / "libcuda.so"))
    (driver,) = of_toolkit()
    assert driver.mend.endswith(f"{cuda / 'lib64' / 'libcuda.so'}")


def test_a_whole_checkpoint_is_described(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    report = Report(device=Device("cpu", (), 1 << 40))
    assert findings(inspection._inspect_checkpoint(report, str(model))) == []
    assert report.checkpoint is not None
    # keys and values, 2 layers, 1 head of 4, 2 bytes
    assert report.checkpoint.kv_bytes_per_token == 2 * 2 * 1 * 4 * 2
    assert report.checkpoint.weight_bytes == (model / "model.safetensors").stat().st_size
    assert f"--model-path {model}" in doctor.as_text(report)


def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path: Path) -> None:
    def found(model: Path, memory: int = 1 << 40) -> list[Finding]:
        report = Report(device=Device("cpu", (), memory))
        return findings(inspection._inspect_checkpoint(report, str(model)))

    (finding,) = found(tmp_path / "absent")
    assert finding.serious
    assert "is no checkpoint" in finding.what

    (finding,) = found(write_checkpoint(tmp_path / "other", architectures=["Qwen2ForCausalLM"]))
    assert finding.serious
    assert "'Qwen2ForCausalLM'" in finding.what

    model = write_checkpoint(tmp_path / "model")
    (finding,) = found(model, memory=1000)
    assert finding.serious
    assert "MiB" in finding.what

    (model / "chat_template.jinja").unlink()
    (finding,) = found(model)
    assert not finding.serious
    assert "no chat template" in finding.what

    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (finding,) = found(model)
    assert finding.serious
    assert "truncated" in finding.what


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "LLaDA2.0, LLaDA2.0-CAP or LLaDA2.1, mini"),
        (
            {"num_hidden_layers": 32, "hidden_size": 4096},
            "LLaDA2.0, LLaDA2.0-CAP or LLaDA2.1, flash",
        ),
        ({"expert_capacity": 48}, "LLaDA2.2 mini"),
        ({"hidden_size": 192}, "LLaDA2 of its own size, 20 layers of width 192"),
    ],
)
def test_a_config_is_named_as_far_as_it_can_be_told(changes: dict[str, int], name: str) -> None:
    assert families.describe({**MINI, **changes}) == name
