"""The fused step of `threshold`, through Triton's interpreter: its twin's every bit."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from interpreter import interpreted_results
from threshold_cases import CASES, MASK_ID, Case, random_case, twin
from torch import Tensor

from llada_sglang.kernels.threshold import MASKED, CanvasTensors, threshold_update

BROKEN = [name for name in CASES if name.startswith("broken")]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_results("threshold_cases", tmp_path_factory.mktemp("kernel") / "results.pt")


@pytest.mark.parametrize("name", CASES)
def test_one_launch_leaves_every_bit_as_its_twin_does(
    name: str, interpreted: dict[str, Any]
) -> None:
    for got, expected in zip(interpreted[name], twin(CASES[name]), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def by_hand(case: Case, row: int) -> tuple[list[int], bool]:
    """(canvas with MASKED, settled) of a row, one position at a time."""
    table = case.table
    slot, start, least = (int(x) for x in case.rows[:, row])
    block = case.candidate.shape[1]
    tokens = table.tokens[slot, start : start + block].tolist()
    masked = table.masked[slot, start : start + block].tolist()
    sure = case.confidence[row].double().tolist()
    threshold = float(table.thresholds[slot])
    open_positions = [i for i in range(block) if masked[i]]
    chosen = [i for i in open_positions if sure[i] > threshold]
    if len(chosen) < least:
        grade = {
            i: round(math.log(sure[i]) * 2**14) if sure[i] > 0 else -1e9 for i in open_positions
        }
        chosen = sorted(open_positions, key=lambda i: (-grade[i], i))[:least]
    if case.closed is not None and bool(case.closed[row]):
        chosen = []
    canvas = [
        int(case.candidate[row, i]) if i in chosen else MASKED if masked[i] else tokens[i]
        for i in range(block)
    ]
    stops = {int(i) for i in table.stop_ids[slot] if i >= 0}
    settled = True
    for i, token in enumerate(canvas):
        if token == MASKED:
            settled = start + i >= int(table.text_end[slot])
            break
        if token in stops and start + i >= int(table.text_start[slot]):
            break
    return canvas, settled


@pytest.mark.parametrize("name", [name for name in CASES if name not in BROKEN])
def test_the_twin_unmasks_and_settles_as_defined(name: str) -> None:
    case = CASES[name]
    report, tokens, masked = twin(case)
    expected_tokens, expected_masked = case.table.tokens.clone(), case.table.masked.clone()
    for row in range(case.rows.shape[1]):
        canvas, settled = by_hand(case, row)
        assert report[row].tolist() == [*canvas, settled]
        slot, start, _ = (int(x) for x in case.rows[:, row])
        where = slice(start, start + len(canvas))
        expected_masked[slot, where] = torch.tensor(canvas) == MASKED
        found = torch.tensor(canvas)
        expected_tokens[slot, where] = torch.where(found == MASKED, MASK_ID, found)
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(masked, expected_masked)


def test_the_cases_hold_what_they_promise() -> None:
    """Every branch of the rule is taken somewhere, or the tests above would show little."""
    settled = closed = forced = free = stopped = shared = edge = 0
    for case in CASES.values():
        report, *_ = twin(case)
        open_after = (report[:, :-1] == MASKED).any(dim=1)
        settled += int(report[:, -1].sum())
        closed += 0 if case.closed is None else int(case.closed.sum())
        stopped += int((report[:, -1].bool() & open_after).sum())
        slots, starts, least = case.rows
        shared += int(slots.numel() - slots.unique().numel())
        block = case.candidate.shape[1]
        where = (slots[:, None], starts[:, None] + torch.arange(block))
        above = case.table.masked[where] & (case.confidence > table_thresholds(case)[:, None])
        # 0.8 in float32 is above 0.8: compared in float32 they would be equal.
        on_edge = case.confidence.double() - table_thresholds(case)[:, None]
        edge += int(((on_edge > 0) & (on_edge < 1e-7) & case.table.masked[where]).sum())
        forced += int((above.sum(dim=1) < least).sum())
        free += int((above.sum(dim=1) >= least).sum())
    assert min(settled, closed, forced, free, stopped, shared, edge) > 20


def table_thresholds(case: Case) -> Tensor:
    return case.table.thresholds[case.rows[0]]


def arguments_of(case: Case) -> tuple[Any, ...]:
    table = CanvasTensors(*(part.clone() for part in case.table))
    return (table, *case.rows.clone(), case.candidate, case.confidence, case.closed)


def test_a_table_on_the_cpu_takes_the_torch_twin() -> None:
    case = random_case(99)
    arguments = arguments_of(case)
    report = threshold_update(*arguments)
    expected, tokens, masked = twin(case)
    assert torch.equal(report, expected)
    assert torch.equal(arguments[0].tokens, tokens)
    assert torch.equal(arguments[0].masked, masked)


@pytest.mark.parametrize(
    ("field", "wrong", "reason"),
    [
        ("tokens", torch.zeros(2, 64, dtype=torch.int32), "tokens must be torch.int64"),
        ("masked", torch.zeros(2, 64, dtype=torch.uint8), "masked must be torch.bool"),
        ("thresholds", torch.zeros(2), "thresholds must be torch.float64"),
        ("stop_ids", torch.zeros(4, 2, dtype=torch.int64).t(), "stop_ids"),
    ],
)
def test_tensors_the_kernel_cannot_read_are_refused(field: str, wrong: Tensor, reason: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llada_sglang.kernels.threshold_triton import fused_threshold_step

    zeros = torch.zeros(2, dtype=torch.int64)
    table = CanvasTensors(
        torch.zeros(2, 64, dtype=torch.int64),
        torch.zeros(2, 64, dtype=torch.bool),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, 4, dtype=torch.int64),
        zeros,
        zeros,
    )._replace(**{field: wrong})
    with pytest.raises(ValueError, match=reason):
        fused_threshold_step(
            table, zeros, zeros, zeros, torch.zeros(2, 32, dtype=torch.int64), torch.zeros(2, 32)
        )


def test_a_mask_is_reported_as_the_scheduler_expects_it() -> None:
    from llada_sglang.scheduler import state

    assert MASKED == state.MASKED


def test_the_package_imports_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import llada_sglang.kernels.threshold, llada_sglang.kernels.rotary\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
