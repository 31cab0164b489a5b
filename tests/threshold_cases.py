"""Steps of the policy `threshold`: tables of canvases and what the model said of their blocks.

Used through Triton's interpreter by the unit tests and on the device by the GPU tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sglang.kernels.threshold import CanvasTensors, threshold_step

INF, NAN = float("inf"), float("nan")
MASK_ID = 3
STOPS = (1, 2)
VOCABULARY = 12
EDGE = 0.95
PALETTE = (
    0.0,
    0.25,
    0.5,
    0.5 * (1 + 2e-6),  # ranked as 0.5 is
    0.8,
    0.8 * (1 + 2**-13),  # the next step of the grid, or the one after
    math.nextafter(EDGE, 0),  # float32 rounds both to the same side of 0.95
    math.nextafter(EDGE, 1),
    0.99,
    1.0,
)
BROKEN = (NAN, -INF, INF, -0.0, 1e-45, -0.5)
Result = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One step. rows: int64 [3, rows], slots, starts and least, as a view of a wider matrix."""

    table: CanvasTensors
    rows: Tensor
    candidate: Tensor
    confidence: Tensor
    closed: Tensor | None = None


def fused(case: Case, device: str) -> Result:
    """Report, tokens and masks after the kernel has run."""
    from llada_sglang.kernels.threshold_triton import fused_threshold_step

    return _run(case, device, fused_threshold_step)


def twin(case: Case) -> Result:
    """Report, tokens and masks after the torch twin has run."""
    return _run(case, "cpu", threshold_step)


def _run(case: Case, device: str, step: object) -> Result:
    assert callable(step)
    # The parameters keep their stride: a policy's numbers lie side by side.
    numbers = case.table.thresholds
    wide = torch.full((len(numbers), 4), NAN, dtype=torch.float64)
    wide[:, 0] = numbers
    table = CanvasTensors(*(part.clone().to(device) for part in case.table))
    table = table._replace(thresholds=wide.to(device)[:, 0])
    # One copy to the device, of which these rows are the last, begins anywhere.
    matrix = torch.zeros((4, case.rows.shape[1] + 1), dtype=torch.int64)
    matrix[:3, 1:] = case.rows
    slots, starts, least, _ = matrix.to(device)[:, 1:]
    report = step(
        table,
        slots,
        starts,
        least,
        case.candidate.to(device),
        case.confidence.to(device),
        None if case.closed is None else case.closed.to(device),
    )
    return report.cpu(), table.tokens.cpu(), table.masked.cpu()


def random_case(seed: int, *, block: int = 32, palette: tuple[float, ...] = PALETTE) -> Case:
    """48 blocks of 9 requests, several of one request among them, in any order."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=draw)

    requests, blocks, rows = 9, 10, 48
    width = blocks * block
    density = torch.rand(requests, blocks, generator=draw).mul(1.6).sub(0.3).clamp(0, 1)
    masked = torch.rand(requests, width, generator=draw) < density.repeat_interleave(block, 1)
    tokens = integers(VOCABULARY, requests, width)
    tokens[masked] = MASK_ID
    stop_ids = torch.full((requests, 3), -1)
    stop_ids[::3, 0] = STOPS[0]
    stop_ids[1::3, :2] = torch.tensor(STOPS)
    choices = torch.tensor([EDGE, 0.5, 1.0, 0.8, 1e-9], dtype=torch.float64)
    thresholds = choices[integers(5, requests)]
    text_start = integers(width, requests)
    text_end = text_start + 1 + integers(width, requests)
    place = torch.randperm(requests * blocks, generator=draw)[:rows]
    slots, starts = place // blocks, place % blocks * block
    least = integers(block + 1, rows) * (integers(3, rows) > 0)
    confidence = torch.tensor(palette)[integers(len(palette), rows, block)]
    # Alike nearly everywhere, so that the schedule decides.
    confidence[::4] = confidence[::4, :1]
    return Case(
        CanvasTensors(tokens, masked, thresholds, stop_ids, text_start, text_end),
        torch.stack([slots, starts, least]),
        integers(VOCABULARY, rows, block),
        confidence,
        integers(2, rows) > 0 if seed % 2 else None,
    )


CASES = {
    **{f"random-{seed}": random_case(seed) for seed in range(4)},
    **{f"broken-{seed}": random_case(seed, palette=PALETTE + BROKEN) for seed in range(10, 12)},
    **{f"block-of-{b}": random_case(b, block=b) for b in (1, 8, 24, 64)},
}
"""Among the 48 rows of each: all masked, none masked, ties, early stops, ends of text."""
