"""Directories for PYTHONPATH that change what is installed, without touching the installation."""

from __future__ import annotations

import shutil
from pathlib import Path

import llada_sglang

PACKAGE = Path(llada_sglang.__file__).parent


def our_package(directory: Path) -> Path:
    """Copy our package into `directory`, where it wins over the installed one."""
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    return Path(shutil.copytree(PACKAGE, directory / PACKAGE.name, ignore=ignored))


def corrupt_fingerprint(directory: Path, target: str) -> None:
    """Let our package believe it was tested with another source of `target`."""
    from llada_sglang.compat.fingerprint import fingerprint

    package = our_package(directory)
    known = fingerprint(target)
    changed = 0
    for file in (package / "patches").glob("*.py"):
        text = file.read_text("utf-8")
        changed += text.count(known)
        file.write_text(text.replace(known, "sha256:" + "0" * 64), "utf-8")
    assert changed == 1


def expect_symbol(directory: Path, target: str) -> None:
    """Let our package depend on a symbol that the host does not have."""
    (our_package(directory) / "patches" / "gone.py").write_text(
        "from llada_sglang.compat.ledger import Kind, Patch\n"
        f'PATCHES = (Patch(target="{target}", kind=Kind.USE, why="a test",\n'
        '    fingerprints={"0.5.23": "sha256:any"}),)\n'
    )


def host_version(directory: Path, version: str) -> None:
    """Let the installed host call itself another version."""
    distribution(directory, "sglang", version, "")


def distribution(directory: Path, name: str, version: str, entry_points: str) -> None:
    """Make a distribution with these entry points appear installed."""
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    info.joinpath("entry_points.txt").write_text(entry_points)


def plain_cpu_platform(directory: Path) -> None:
    """Install a plugin `plain_cpu`: the least that lets the unchanged host run on a CPU."""
    distribution(
        directory, "plain_cpu", "1.0", "[sglang.srt.platforms]\nplain_cpu = plain_cpu:activate\n"
    )
    (directory / "plain_cpu.py").write_text(
        """
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


def activate():
    return "plain_cpu:PlainCpu"


class PlainCpu(CpuDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self):
        return "torch_native"

    def get_dispatch_key_name(self):
        return "native"
"""
    )


def rival_scheduler(directory: Path) -> None:
    """Install a plugin `rival` that replaces the host's scheduler after every other plugin."""
    distribution(directory, "zz_rival", "1.0", "[sglang.srt.plugins]\nrival = rival:register\n")
    (directory / "rival.py").write_text(
        """
from sglang.srt.plugins.hook_registry import HookRegistry, HookType


def register():
    from sglang.srt.managers.scheduler import Scheduler

    class Rival(Scheduler):
        pass

    apply = HookRegistry.apply_hooks.__func__

    def apply_ours_last(cls):
        HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", Rival, HookType.REPLACE)
        apply(cls)

    HookRegistry.apply_hooks = classmethod(apply_ours_last)
"""
    )
