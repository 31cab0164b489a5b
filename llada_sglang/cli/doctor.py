"""`llada-sglang doctor`: prints what `inspection` finds out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from llada_sglang.cli import families, terminal
from llada_sglang.cli.inspection import Checkpoint, Device, Finding, PatchState, Report, inspect

_MIB, _GIB = 1 << 20, 1 << 30


def run(*, model: str | None, as_json: bool) -> int:
    """Print the report; return 1 where something serious is wrong, else 0."""
    with terminal.Progress("looking at the installation"):
        report = inspect(model)
    print(json.dumps(as_dict(report), indent=2) if as_json else as_text(report))
    return 0 if report.healthy else 1


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain JSON values, with the families we know and `healthy`."""
    values = asdict(report)
    if report.host is not None:
        values["host"] |= {"supported": report.host.supported}
    return {
        "healthy": report.healthy,
        **values,
        "families": [asdict(family) for family in families.FAMILIES],
    }


def as_text(report: Report) -> str:
    """The report for a terminal, the findings last."""
    sections = [
        ("installed", terminal.table(_packages(report))),
        ("device", f"  {_device(report.device)}"),
        (_patch_title(report), terminal.table(_patches(report.patches))),
        ("checkpoint families", terminal.table(_families())),
    ]
    if report.checkpoint is not None:
        title = f"checkpoint {report.checkpoint.path}"
        sections.append((title, terminal.table(_checkpoint(report.checkpoint))))
    if report.findings:
        sections.append(("findings", "\n".join(_finding(f) for f in report.findings)))
    parts = [f"{terminal.bold(title, sys.stdout)}\n{body}" for title, body in sections if body]
    parts.append("Everything is in order." if report.healthy else "Something is wrong: see above.")
    return "\n\n".join(parts)


def _packages(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, version in report.packages.items():
        note = ""
        if name == "sglang" and report.host is not None:
            state = "supported" if report.host.supported else "not supported"
            note = f"{state} (tested: {', '.join(report.host.tested) or 'none'})"
        rows.append((name, version or "missing", note))
    return rows


def _device(device: Device | None) -> str:
    if device is None:
        return "unknown"
    parts = [device.kind, *device.names]
    if device.memory_bytes:
        parts.append(_size(device.memory_bytes))
    return ", ".join(parts)


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"


def _patch_title(report: Report) -> str:
    broken = sum(patch.problem is not None for patch in report.patches)
    state = f"{broken} cannot be applied" if broken else "all can be applied"
    return (
        f"changes to SGLang, where it serves a LLaDA2 model: {len(report.patches)}, {state} "
        f"({report.used_symbols} more symbols used as they are)"
    )


def _patches(patches: list[PatchState]) -> list[tuple[str, ...]]:
    return [
        (patch.kind, patch.target.removeprefix("sglang.srt."), patch.problem or "ready")
        for patch in patches
    ]


def _families() -> list[tuple[str, ...]]:
    return [
        (family.name, "supported" if family.supported else "not supported", family.decoding)
        for family in families.FAMILIES
    ]


def _checkpoint(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    size = f", {_size(checkpoint.weight_bytes)}" if checkpoint.weight_bytes else ""
    return [
        ("family", checkpoint.family),
        ("parameters", f"{checkpoint.parameters:,}{size}"),
        ("vocabulary", f"{checkpoint.vocab_size}"),
        ("block size", f"{checkpoint.block_size}"),
        ("policy", checkpoint.policy),
        ("mask id", f"{checkpoint.mask_id}"),
        ("EOS ids", ", ".join(map(str, checkpoint.eos_ids))),
        ("KV cache", f"{checkpoint.kv_bytes_per_token / 1024:g} KiB per token"),
        ("serve it", f"python -m sglang.launch_server --model-path {checkpoint.path}"),
    ]


def _finding(finding: Finding) -> str:
    mark = "WRONG" if finding.serious else "note "
    return f"  {mark}  {finding.what}" + (f"\n         {finding.mend}" if finding.mend else "")
