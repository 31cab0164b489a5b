"""`llada-sglang roofline`: prints what `llada_sglang.roofline` computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from llada_sglang.checkpoint import is_llada2, read_config
from llada_sglang.cli import terminal
from llada_sglang.errors import CheckpointError
from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import LINK, Memory, Prediction, Setup, Step, least_tp
from llada_sglang.roofline.shape import BUILT_IN, Shape

TPF = (1.0, 2.0, 3.0, 5.0, 8.0)
PUBLISHED = {gpu.name: gpu.bandwidth for gpu in gpus.GPUS.values()}


def run(
    *,
    model: str,
    gpu: str,
    tp: int,
    rows: int,
    kv_len: int,
    tpf: Sequence[float] | None,
    dtype: str,
    bandwidth: float | None,
    as_json: bool,
) -> int:
    """Print the cost of a step and return 0. bandwidth: in TB/s, instead of the published one."""
    hardware = gpus.find(gpu)
    if bandwidth is not None:
        hardware = replace(hardware, bandwidth=bandwidth * 1e12)
    setup = Setup(read_shape(model), hardware, tp=tp, kv_len=kv_len, dtype=dtype)
    step, memory = setup.step(rows), setup.memory(rows)
    predictions = [setup.predict(rows, value) for value in tpf or TPF if _usable(value, tpf, setup)]
    if as_json:
        print(json.dumps(as_dict(setup, rows, step, memory, predictions), indent=2))
    else:
        print(as_text(model, setup, rows, step, memory, predictions))
    return 0


def read_shape(model: str) -> Shape:
    """The shape of `mini`, `flash`, or the config.json of a directory or hub id."""
    if model in BUILT_IN:
        return Shape.of(BUILT_IN[model])
    try:
        config = read_config(model)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Or name a known shape: {', '.join(BUILT_IN)}.") from None
    if not is_llada2(config):
        raise CheckpointError(
            f"{model} is no LLaDA2 checkpoint: its architectures are "
            f"{config.get('architectures')!r}. Known shapes: {', '.join(BUILT_IN)}."
        )
    return Shape.of(config)


def as_dict(
    setup: Setup, rows: int, step: Step, memory: Memory, predictions: list[Prediction]
) -> dict[str, Any]:
    """Everything as plain JSON values; bytes, operations and seconds, per GPU."""
    totals = ("seconds", "weight_bytes", "core_weight_bytes", "kv_bytes", "flops")
    return {
        "setup": {**asdict(setup), "rows": rows},
        "step": asdict(step) | {name: getattr(step, name) for name in totals},
        "predictions": [asdict(prediction) for prediction in predictions],
        "memory": asdict(memory) | {"fits": memory.fits, "least_tp": least_tp(setup)},
    }


def as_text(
    model: str,
    setup: Setup,
    rows: int,
    step: Step,
    memory: Memory,
    predictions: list[Prediction],
) -> str:
    """The report for a terminal."""
    gpu, shape = setup.gpu, setup.shape
    count = f"{setup.tp} x " if setup.tp > 1 else ""
    each = " (per GPU)" if setup.tp > 1 else ""
    sections = [
        (
            f"{model}, {setup.dtype}, on {count}{gpu.name}",
            f"  {gpu.bandwidth / 1e12:g} TB/s, {gpu.bf16 / 1e12:g} TFLOPS bf16, "
            f"{gpu.fp8 / 1e12:g} fp8, {gpu.fp32 / 1e12:g} fp32, NVLink {2 * gpu.link / 1e9:g} GB/s"
            f"\n  {_source(gpu)}",
        ),
        (
            f"one forward of {_count(rows, 'block row')} of {shape.block} tokens, reading "
            f"{setup.kv_len} tokens of prefix each{each}",
            f"{terminal.table(_parts(step))}\n\n{_notes(shape, rows, step)}",
        ),
        (
            f"output tokens/s of {_count(rows, 'request')}, at most, while all decode",
            f"{terminal.table(_predictions(predictions, rows))}\n\n"
            "  TPF: tokens per forward of one request. The step is a mean: on average\n"
            "  (block + TPF) / 2 positions of a row are masked, and TPF / block of the requests\n"
            "  bring a second row, which persists the block they have just finished.",
        ),
        (f"memory{each}", terminal.table(_memory(setup, rows, memory)) + _verdict(setup, memory)),
    ]
    return "\n\n".join(f"{terminal.bold(title, sys.stdout)}\n{body}" for title, body in sections)


def _source(gpu: gpus.Gpu) -> str:
    if gpu.bandwidth == PUBLISHED[gpu.name]:
        return f"peak, dense, from: {gpu.source}"
    return f"bandwidth as given, the rest peak, dense, from: {gpu.source}"


def _usable(value: float, asked: Sequence[float] | None, setup: Setup) -> bool:
    """Whether to predict for a TPF: whatever was asked for, and what defaults fit the block."""
    return asked is not None or value <= setup.shape.block


def _parts(step: Step) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("part", "weights GB", "KV GB", "GFLOP", "ms", "bound by")]
    for part in step.parts:
        figures = (part.weight_bytes / 1e9, part.kv_bytes / 1e9, part.flops / 1e9)
        cells = ["-"] * 3 if part.bound == LINK else [_cell(value) for value in figures]
        rows.append((part.name, *cells, f"{part.seconds * 1e3:.3f}", part.bound))
    totals = (step.weight_bytes / 1e9, step.kv_bytes / 1e9, step.flops / 1e9)
    rows.append(("all", *map(_cell, totals), f"{step.seconds * 1e3:.3f}", ""))
    return _right(rows, last=False)


def _notes(shape: Shape, rows: int, step: Step) -> str:
    if shape.capacity is None or shape.capacity >= shape.experts:
        formula = f"E (1 - (1 - k/E)^tokens), E = {shape.experts}, k = {shape.top_k}"
    else:
        formula = (
            f"E (1 - (1 - q)^rows), q = C/E (1 - (1 - k/C)^{shape.block}), E = {shape.experts}, "
            f"k = {shape.top_k}, C = {shape.capacity}"
        )
    return (
        f"  {step.experts_touched:.1f} of {shape.experts} experts touched per layer: {formula},\n"
        f"  {rows * shape.block} tokens that choose alike and independently.\n"
        f"  Attention projections, routed experts and head: {step.core_weight_bytes / 1e9:.1f} GB "
        f"of the weights.\n"
        "  Every position masked, as in the first step of a block. Floor: no norms, activations,\n"
        "  logits, launches or host."
    )


def _predictions(predictions: list[Prediction], rows: int) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [("TPF", "step ms", "tokens/s", "per request")]
    for made in predictions:
        speed = made.tokens_per_second
        table.append(
            (f"{made.tpf:g}", f"{made.seconds * 1e3:.2f}", f"{speed:,.0f}", f"{speed / rows:,.0f}")
        )
    return _right(table)


def _memory(setup: Setup, rows: int, memory: Memory) -> list[tuple[str, ...]]:
    held = setup.kv_len + setup.shape.block
    return [
        ("weights", f"{memory.weight_bytes / 1e9:.1f} GB of {memory.gpu_bytes / 1e9:g} GB"),
        ("KV cache", f"{memory.kv_bytes_per_token / 1024:g} KiB per token, bf16"),
        (
            _count(rows, "request"),
            f"{memory.rows_kv_bytes / 1e9:.2f} GB of KV at {held} tokens each",
        ),
        ("KV pool", f"{memory.pool_tokens:,} tokens, with 10 % of the memory left for the rest"),
    ]


def _verdict(setup: Setup, memory: Memory) -> str:
    if memory.fits:
        return ""
    least = least_tp(setup)
    if least is None:
        return "\n  Does not fit: 16 of these GPUs do not hold the weights."
    if least <= setup.tp:
        return (
            "\n  Does not fit: the KV of so many tokens. Fewer rows, a shorter prefix or more GPUs."
        )
    fp8 = " or --dtype fp8" if setup.dtype != "fp8" else ""
    return f"\n  Does not fit: the weights need --tp {least}{fp8}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cell(value: float) -> str:
    return f"{value:.3f}" if value else "-"


def _right(rows: list[tuple[str, ...]], *, last: bool = True) -> list[tuple[str, ...]]:
    """Cells padded so that all columns but the first, and perhaps the last, end alike."""
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    stop = columns if last else columns - 1
    return [
        tuple(cell.rjust(widths[i]) if 0 < i < stop else cell for i, cell in enumerate(row))
        for row in rows
    ]
