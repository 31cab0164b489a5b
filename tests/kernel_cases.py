"""Inputs for the vocabulary statistics kernel, and what they must give, in plain float64.

Used through Triton's interpreter by the unit tests and on the device by the GPU tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VOCAB = 157184
MASK = 156895
TILE = 2048
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the kernel. logits: [positions, shard], possibly a view of wider rows."""

    logits: Tensor
    vocab_start: int = 0
    mask_id: int = MASK
    splits: int | None = None


def expected(case: Case) -> tuple[list[float], list[int], list[float]]:
    """Maximum, lowest id of it, and sum of exp(logit - maximum), position by position."""
    maxima, tokens, sums = [], [], []
    for row in case.logits.double():
        legal = row.clone()
        legal[legal != legal] = -INF
        if case.vocab_start <= case.mask_id < case.vocab_start + len(row):
            legal[case.mask_id - case.vocab_start] = -INF
        maximum = float(legal.max())
        maxima.append(maximum)
        tokens.append(case.vocab_start + int((legal == maximum).nonzero()[0]))
        if maximum == -INF:
            sums.append(0.0)
        elif maximum == INF:
            sums.append(INF)
        else:
            sums.append(float((legal - maximum).exp().sum()))
    return maxima, tokens, sums


def check(case: Case, got: tuple[Tensor, Tensor, Tensor]) -> None:
    """Compare what a kernel returned with `expected`; ids and maxima exactly."""
    maximum, token, sum_exp = (field.cpu() for field in got)
    maxima, tokens, sums = expected(case)
    assert (maximum.dtype, token.dtype, sum_exp.dtype) == (
        torch.float32,
        torch.int64,
        torch.float32,
    )
    assert token.tolist() == tokens
    assert maximum.tolist() == maxima
    torch.testing.assert_close(sum_exp.double(), torch.tensor(sums).double(), rtol=2e-5, atol=0)


def real_vocabulary() -> Tensor:
    """float32 [3, VOCAB]: the mask id is the favourite; ties across tiles and shards."""
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)) * 4
    logits[0, MASK] = 100.0
    logits[1, [7, 8, TILE + 7, 90_000, VOCAB - 1]] = 60.0
    logits[2, [40_000, 40_000 + TILE]] = 50.0
    return logits


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    whole = real_vocabulary()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for shards in (1, 2, 4, 8):
            width = VOCAB // shards
            logits = whole.to(dtype)
            for rank in {0, shards // 2, shards - 1}:
                view = logits[:, rank * width : (rank + 1) * width]
                cases[f"{name}-shard-{rank}-of-{shards}"] = Case(view, rank * width)
    for splits in (1, 2, 7, 38, 64):
        cases[f"real-vocabulary-in-{splits}-splits"] = Case(whole.bfloat16(), splits=splits)

    # What lies beside the shard in memory is never read.
    padded = torch.full((4, 3 * TILE), INF)
    padded[:, : TILE + 100] = torch.randn(4, TILE + 100, generator=torch.Generator().manual_seed(1))
    for splits in (1, 2):
        cases[f"rows-of-a-wider-matrix-in-{splits}-splits"] = Case(
            padded[:, : TILE + 100], mask_id=-1, splits=splits
        )

    for splits in (1, 3):
        for width in (8, 2 * TILE, 2 * TILE + 1):
            cases[f"bad-logits-{width}-wide-in-{splits}-splits"] = Case(
                _bad_logits(width), vocab_start=1000, mask_id=1000 + width // 2, splits=splits
            )
    grey = torch.zeros(2, 2 * TILE)
    cases["all-equal-first-column-masked"] = Case(grey, vocab_start=MASK)
    cases["all-equal-last-column-masked"] = Case(grey, vocab_start=MASK - 2 * TILE + 1)
    cases["the-only-column"] = Case(torch.tensor([[3.0], [NAN], [-INF]]))
    cases["the-only-column-is-the-mask"] = Case(torch.tensor([[3.0]]), vocab_start=MASK)
    cases["no-position"] = Case(torch.zeros(0, 100))
    return cases


def _bad_logits(width: int) -> Tensor:
    rows = torch.full((8, width), -INF)
    rows[1] = NAN
    rows[2, ::2], rows[2, width - 1] = NAN, 0.5
    rows[3, width - 1] = 1.0  # one legal id, behind nothing but -inf
    rows[4], rows[4, 3], rows[4, width - 2] = 2.0, INF, INF  # certain; the lower id
    rows[5] = torch.finfo(torch.float32).min  # legal, if barely
    rows[5, 0] = -INF
    rows[6, 1], rows[6, width - 1] = 3e38, -3e38  # their difference overflows
    rows[7], rows[7, width // 2] = -5.0, INF  # the mask id's logit does not count
    return rows


CASES = _cases()
