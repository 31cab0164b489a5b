"""What `llada-sglang doctor` finds out: facts, then findings with the way to mend them."""

from __future__ import annotations

import importlib.metadata
import os
import platform as machine
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llada_sglang import __version__, env
from llada_sglang.cli import families, toolkit
from llada_sglang.cli.launch import NANO, PLUGIN, plugin_left_out
from llada_sglang.compat import HostReport, Kind, inspect_host, load_ledger
from llada_sglang.errors import LaunchConfigError, LLaDAError

ENTRY_POINT_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")
PACKAGES = ("sglang", "torch", "transformers", "flashinfer-python", "triton", "openai")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, or worth knowing.

    mend: the way out, empty where `what` says it. serious: LLaDA2 cannot be served as things are.
    """

    what: str
    mend: str = ""
    serious: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """What the host will compute on. kind: `cpu`, or an accelerator as torch names it."""

    kind: str
    names: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class PatchState:
    """One change to the host. problem: why it cannot be applied, None where it can."""

    target: str
    kind: str
    how: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A LLaDA2 checkpoint that can be read; bytes are 0 where its weights are not here."""

    path: str
    family: str
    mask_id: int
    eos_ids: tuple[int, ...]
    block_size: int
    policy: str
    vocab_size: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(slots=True)
class Report:
    """Everything `doctor` prints. A part that could not be found out is None or missing."""

    packages: dict[str, str | None] = field(default_factory=dict)
    host: HostReport | None = None
    device: Device | None = None
    patches: list[PatchState] = field(default_factory=list)
    used_symbols: int = 0
    checkpoint: Checkpoint | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(finding.serious for finding in self.findings)


def inspect(model: str | None) -> Report:
    """Look at the installation and, if given, at a checkpoint. Imports torch, not sglang."""
    report = Report()
    report.packages = {"llada-sglang": __version__, "python": machine.python_version()}
    report.packages |= {name: _version(name) for name in PACKAGES}
    for step in STEPS:
        report.findings.extend(step(report))
    report.findings.extend(_inspect_bundled())
    if model is not None:
        report.findings.extend(_inspect_checkpoint(report, model))
    return report


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _inspect_host(report: Report) -> Iterator[Finding]:
    if report.packages["sglang"] is None:
        yield Finding("SGLang is not installed.", 'pip install "sglang==0.5.23"')
        return
    host = inspect_host()
    report.host = host
    problems = {problem.target: problem.reason for problem in host.problems}
    ledger = load_ledger()
    report.patches = [
        PatchState(patch.target, patch.kind.value, patch.how, problems.get(patch.target))
        for patch in ledger
        if patch.kind is not Kind.USE
    ]
    report.used_symbols = len(ledger) - len(report.patches)
    if host.problems:
        listed = "; ".join(f"{target}: {reason}" for target, reason in problems.items())
        yield Finding(
            f"SGLang {host.installed} is not a version we know, or it was changed: {listed}.",
            f'pip install --force-reinstall "sglang=={host.tested[-1]}"',
        )
    elif not host.tested_version:
        yield Finding(
            f"SGLang {host.installed} is untested (tested: {', '.join(host.tested)}), though every "
            f"symbol we depend on is unchanged. It will start, with a warning.",
            f'To be safe: pip install "sglang=={host.tested[-1]}"',
            serious=False,
        )


def _inspect_plugin(report: Report) -> Iterator[Finding]:
    for group in ENTRY_POINT_GROUPS:
        names = [entry.name for entry in importlib.metadata.entry_points(group=group)]
        if PLUGIN not in names:
            yield Finding(
                f"SGLang does not find us: no entry point {PLUGIN!r} in {group}.",
                "Install the package (pip install llada-sglang, or pip install -e . in its source)"
                " into the environment SGLang runs in; being on PYTHONPATH is not enough.",
            )
    if reason := plugin_left_out():
        yield Finding(reason)
    try:
        settings = env.load()
    except LaunchConfigError as error:
        yield Finding(str(error), "Unset or correct it.")
    else:
        if settings.active:
            yield Finding(
                f"{env.PREFIX}ACTIVE is set. A launching server sets it for its children; set by "
                f"hand it makes us touch the processes of other models.",
                f"unset {env.PREFIX}ACTIVE",
                serious=False,
            )


def _inspect_device(report: Report) -> Iterator[Finding]:
    try:
        import torch

        from llada_sglang.platform.detect import accelerator

        kind = accelerator()
    except (ImportError, OSError) as error:
        yield Finding(f"torch cannot be imported: {error}.", "pip install --force-reinstall torch")
        return
    if kind in ("cuda", "rocm"):
        count = torch.cuda.device_count()
        devices = [torch.cuda.get_device_properties(index) for index in range(count)]
        names = tuple(device.name for device in devices)
        report.device = Device(kind, names, sum(device.total_memory for device in devices))
    elif kind is not None:
        report.device = Device(kind, (), 0)
        yield Finding(
            f"The device is {kind}. LLaDA2 is served on CUDA devices and CPUs; others are untried.",
            "Go on at your own risk.",
            serious=False,
        )
    else:
        import psutil

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        names = (f"{machine.machine()}, {cores} cores",)
        report.device = Device("cpu", names, psutil.virtual_memory().total)
        if Path("/dev/nvidia0").exists():
            yield Finding(
                f"There is an NVIDIA device, but torch {torch.__version__} does not see it; the "
                f"CPU would be used.",
                "Unset CUDA_VISIBLE_DEVICES, or install a torch build and a driver that match.",
                serious=False,
            )


def _inspect_packages(report: Report) -> Iterator[Finding]:
    if report.packages["transformers"] is None:
        yield Finding("transformers is not installed.", "pip install transformers")
    if report.packages["triton"] is None:
        # sglang.srt.models.llada2 imports it at its top, on every device.
        yield Finding("triton is not installed; SGLang's LLaDA2 needs it.", "pip install triton")
    on_cuda = report.device is not None and report.device.kind == "cuda"
    if on_cuda and report.packages["flashinfer-python"] is None:
        yield Finding(
            "flashinfer is not installed; it is the attention backend on CUDA.",
            "Reinstall SGLang with its dependencies, which pin its version.",
        )
    if report.packages["openai"] is None:
        yield Finding(
            "openai is not installed; `llada-sglang demo` needs it.",
            'pip install "openai>=2"',
            serious=False,
        )


def _inspect_toolkit(report: Report) -> Iterator[Finding]:
    if report.device is not None and report.device.kind == "cuda":
        yield from (Finding(what, mend) for what, mend in toolkit.missing())


STEPS = (_inspect_host, _inspect_plugin, _inspect_device, _inspect_packages, _inspect_toolkit)


def _inspect_bundled() -> Iterator[Finding]:
    from llada_sglang.validation import validate

    try:
        validate(NANO)
    except LLaDAError as error:
        yield Finding(
            f"The checkpoint of this package is not whole, so `llada-sglang demo` needs --model: "
            f"{error}",
            "Install the package again.",
            serious=False,
        )


def _inspect_checkpoint(report: Report, model: str) -> Iterator[Finding]:
    from llada_sglang.checkpoint import is_llada2, read_config
    from llada_sglang.serving import memory
    from llada_sglang.validation import validate
    from llada_sglang.weights import parameter_count, weight_shapes

    try:
        config = read_config(model)
        if not is_llada2(config):
            yield Finding(
                f"{model} is no LLaDA2 checkpoint: its architectures are "
                f"{config.get('architectures')!r}.",
                "SGLang serves it, if it can, as if this package were not installed.",
            )
            return
        family = validate(model)
    except LLaDAError as error:
        yield Finding(str(error))
        return
    directory = Path(model)
    element_bytes = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype")) else 2
    weight_bytes = memory.weight_bytes(directory) if directory.is_dir() else 0
    report.checkpoint = Checkpoint(
        path=model,
        family=families.describe(config),
        mask_id=family.mask_id,
        eos_ids=family.eos_ids,
        block_size=family.block_size,
        policy=family.policy,
        vocab_size=family.vocab_size,
        parameters=parameter_count(weight_shapes(config)),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=memory.kv_bytes_per_token(config, element_bytes),
    )
    if directory.is_dir() and not _has_chat_template(directory):
        yield Finding(
            "The checkpoint has no chat template, so chat completions are refused.",
            "Copy chat_template.jinja of the original, or launch with --chat-template.",
            serious=False,
        )
    if report.device is not None and 0 < report.device.memory_bytes < weight_bytes:
        yield Finding(
            f"The weights take {weight_bytes // _MIB} MiB, {report.device.kind} has "
            f"{report.device.memory_bytes // _MIB} MiB.",
            "Use more devices (--tp-size), a quantised or a smaller checkpoint.",
        )


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    settings = directory / "tokenizer_config.json"
    return settings.is_file() and '"chat_template"' in settings.read_text("utf-8")
