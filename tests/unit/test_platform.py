"""Device detection and the CPU platform."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from types import SimpleNamespace

import pytest
import sglang  # noqa: F401  the host imports our platform while it is imported itself
import torch

from llada_sglang.platform import cpu
from llada_sglang.platform.detect import accelerator


@pytest.fixture(autouse=True)
def fresh_detection() -> None:
    accelerator.cache_clear()


def test_cuda_and_rocm_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert accelerator() == "cuda"
    accelerator.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert accelerator() == "rocm"


def test_other_devices_are_found_and_a_plain_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert accelerator() == "xpu"
    accelerator.cache_clear()
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert accelerator() is None


def test_the_cpu_platform_stands_aside_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    from llada_sglang import plugin

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert plugin.platform() is None


@pytest.mark.parametrize(
    ("command", "child", "left_out"),
    [("sglang.launch_server", False, True), ("program", True, True), ("program", False, False)],
)
def test_the_hosts_own_processes_leave_flashinfer_out(
    monkeypatch: pytest.MonkeyPatch, command: str, child: bool, left_out: bool
) -> None:
    """The host takes a package that cannot be imported for one that is not installed."""
    from llada_sglang import plugin

    for name in [n for n in sys.modules if n.split(".")[0] == "flashinfer"]:
        monkeypatch.delitem(sys.modules, name)
    main = SimpleNamespace(__spec__=SimpleNamespace(name=command), __file__="main.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if child else None)
    assert plugin.platform() == "llada_sglang.platform.cpu:CpuPlatform"
    assert ("flashinfer" in sys.modules) == left_out
    if left_out:
        assert importlib.util.find_spec("flashinfer") is None
        with pytest.raises(ImportError):
            importlib.import_module("flashinfer")
        del sys.modules["flashinfer"]


def test_the_device_is_text_where_the_host_wants_text() -> None:
    """The host's utils.get_device() is declared to return str and splits what it gets."""
    platform = cpu.CpuPlatform()
    assert platform.get_device(None) == "cpu"
    assert platform.get_device(0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("cores", "ranks", "groups"),
    [
        ([0, 1], 2, "0|1"),
        ([0, 1, 2, 3, 4], 2, "0,1|2,3"),
        ([3, 5], 3, "3|5|3"),
    ],
)
def test_ranks_get_cores_of_their_own(cores: list[int], ranks: int, groups: str) -> None:
    assert cpu.bind_groups(cores, ranks) == groups


def test_several_ranks_start_on_one_numa_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host refuses more ranks than NUMA nodes unless the cores are bound."""
    for name in ("SGLANG_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(cpu, "_usable_cores", lambda: [0, 1, 2, 3])
    args = SimpleNamespace(tp_size=2, pp_size=1, dp_size=1)
    cpu.CpuPlatform().apply_server_args_defaults(args)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_an_arm_server_without_sgl_kernel_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the host binds threads with sgl_kernel whether or not it is installed."""
    from sglang.srt.distributed import bootstrap

    if hasattr(torch.ops.sgl_kernel, "init_cpu_threads_env"):
        pytest.skip("sgl_kernel is installed")
    monkeypatch.setattr(bootstrap, "_is_cpu_arm64", True)
    cpu.CpuPlatform().init_backend()
    bootstrap._init_cpu_threads_env(local_omp_cpuid=None)
