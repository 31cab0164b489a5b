"""The report of the GPU benchmark: idle time, the bounds of the cost model, and the bars."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.shape import BUILT_IN, Shape

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks.engines import OURS, STOCK
from benchmarks.gpu import summary, table, trace
from benchmarks.gpu.bounds import Bounds
from benchmarks.gpu.patterns import PATTERNS
from benchmarks.gpu.setting import FULL, TRIAL, Setting

MINI = Shape.of(BUILT_IN["mini"])
H200 = gpus.find("h200")
BOUNDS = Bounds(MINI, H200, 4.3e12)


def test_idle_time_is_what_no_operation_covers() -> None:
    found = trace.activity([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (2.0, 3.0)])
    assert (found.span, found.idle, found.waiting) == (6.0, 2.0, 2.0)
    assert found.idle_share == found.waiting_share == pytest.approx(1 / 3)
    assert trace.activity([]).idle_share == trace.activity([]).waiting_share == 0


def test_only_long_gaps_are_the_hosts() -> None:
    """A graph of 400 kernels 1.5 us apart, the host's 7 us, and another graph; a CPU event."""
    begins, now = [], 0.0
    for gap in [0.0] + [1.5] * 399 + [7.0] + [1.5] * 399:
        now += gap
        begins.append(now)
        now += 10
    events = [
        SimpleNamespace(
            name="even" if number % 2 == 0 else "odd",
            device_type=DeviceType.CUDA,
            time_range=SimpleNamespace(start=begin, end=begin + 10),
        )
        for number, begin in enumerate(begins)
    ]
    other = SimpleNamespace(start=-1e6, end=0.0)
    events.append(SimpleNamespace(name="cpu", device_type=DeviceType.CPU, time_range=other))
    found, kernels = trace.of_profile(SimpleNamespace(events=lambda: events))
    assert found.span == pytest.approx(now / 1e6)
    assert found.idle == pytest.approx((2 * 399 * 1.5 + 7) / 1e6)
    assert found.waiting == pytest.approx(7e-6)
    assert {name: calls for name, _, calls in kernels} == {"even": 400, "odd": 400}


def test_the_floor_of_one_row_is_the_issues() -> None:
    assert BOUNDS.step(1, 0) * 1e3 == pytest.approx(4.8, abs=0.05)


def test_the_bound_of_stock_is_a_forward_per_block_of_prompt_and_one_more_per_block_of_output() -> (
    None
):
    prompt = Setup(MINI, replace(H200, bandwidth=4.3e12), kv_len=2048).step(32).seconds
    denoise = Setup(MINI, replace(H200, bandwidth=4.3e12), kv_len=4864).step(32).seconds
    expected = 128 * prompt + 48 * (11 + 1) * denoise
    assert BOUNDS.wave(STOCK, 32, 4096, 1536, PATTERNS[3]) == pytest.approx(expected)


def test_the_bound_of_ours_is_a_forward_per_step_the_first_with_the_prompts() -> None:
    def forward(rows: int, kv_len: int, masked: int) -> float:
        gpu = replace(H200, bandwidth=4.3e12)
        return Setup(MINI, gpu, kv_len=kv_len).step(rows, masked).seconds

    # A prompt of 4 blocks, 2 blocks of output, 4 steps each with 32, 24, 16 and 8 masks.
    first = forward(2 * 5, 64, 2 * 32)
    later = 2 * sum(forward(2, 160, 2 * masked) for masked in (24, 16, 8))
    commit = forward(4, 160, 2 * 32)
    found = BOUNDS.wave(OURS, 2, 128, 64, PATTERNS[8])
    assert found == pytest.approx(first + later + commit)


def step_results(one_row_ms: float, waiting: float) -> dict[str, Any]:
    measured = {"seconds": [one_row_ms / 1e3] * 3, "idle_share": 0.4, "waiting_share": waiting}
    return {f"steps-{OURS}-1": measured}


@pytest.mark.parametrize(
    ("step_ms", "waiting", "met"), [(5.9, 0.05, ["yes", "yes"]), (6.1, 0.06, ["no", "no"])]
)
def test_the_bars_of_a_step(step_ms: float, waiting: float, met: list[str]) -> None:
    rows = table.step_rows(step_results(step_ms, waiting), FULL, BOUNDS)
    assert [row[-1] for row in rows] == met
    assert rows[0][5] == "at most 6.00"
    assert rows[0][2:4] == ("-", "-")
    assert rows[1][1] == f"{100 * waiting:.1f} % (40.0 %)"


def test_elsewhere_the_bar_of_one_row_follows_the_floor() -> None:
    h100 = Bounds(MINI, gpus.find("h100"), 3e12)
    (row, _) = table.step_rows(step_results(5.0, 0), FULL, h100)
    assert row[5] == f"at most {1.25e3 * h100.step(1, 512):.2f}"
    flash = replace(BOUNDS, shape=Shape.of(BUILT_IN["flash"]))
    (row, _) = table.step_rows(step_results(5.0, 0), FULL, flash)
    assert row[5] == f"at most {1.25e3 * flash.step(1, 512):.2f}"


def test_without_a_known_gpu_no_bar_is_claimed() -> None:
    rows = table.step_rows(step_results(5.0, 0.0), FULL, None)
    assert rows[0][4:] == ("-", "-", "-")
    assert summary.bounds(Setting("cpu", "tiny"), {"bandwidth": {"bytes_per_second": 1e12}}) is None


def test_a_trial_on_a_gpu_lands_nothing_and_has_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("cuda", "tiny")
    monkeypatch.setitem(setting.__dict__, "device_name", "h200")
    monkeypatch.setitem(setting.__dict__, "work", tmp_path)
    assert setting.gpu is not None
    assert setting.sizes == TRIAL
    assert summary.bounds(setting, {"bandwidth": {"bytes_per_second": 1e12}}) is None
    kept = {name: {**unit, "measured": "now"} for name, unit in step_results(5.0, 0.0).items()}
    assert summary.land(setting, kept, "m") == tmp_path / "report.md"
    assert "| step, 1 row, ms |" in (tmp_path / "report.md").read_text()


def serving_results(engine: str, first: float, speed: float) -> dict[str, Any]:
    return {
        f"serving-{engine}-3-first": {"first_block": [first]},
        f"serving-{engine}-3-32": {"tokens_per_second": speed},
    }


def test_the_bars_of_serving_are_times_stock() -> None:
    told = serving_results(OURS, 0.1, 2900.0) | serving_results(STOCK, 2.1, 1000.0)
    first, speed = table.serving_rows(told, FULL, list(PATTERNS.values()), BOUNDS)
    assert first[:4] == ("TPF 2.9: s to the first block, prompt 4096", "0.100", "2.100", "21.00x")
    assert first[5:] == ("at least 20x", "yes")
    assert speed[1:4] == ("2900.0", "1000.0", "2.90x")
    assert speed[5:] == ("at least 3x", "no")
    times = [BOUNDS.wave(engine, 32, 4096, 1536, PATTERNS[3]) for engine in (OURS, STOCK)]
    shown = f"{times[1] / times[0]:.1f}x ({' / '.join(f'{32 * 1536 / s:.0f}' for s in times)})"
    assert speed[4] == shown
    (alone, _) = table.serving_rows(serving_results(OURS, 0.1, 5.0), FULL, [PATTERNS[3]], None)
    assert alone[1:] == ("0.100", "-", "-", "-", "at least 20x", "-")


def test_another_workload_has_no_bar() -> None:
    told = serving_results(OURS, 0.1, 2900.0) | serving_results(STOCK, 2.1, 1000.0)
    easier = replace(TRIAL, concurrent=(32,))
    for row in table.serving_rows(told, easier, [PATTERNS[3]], BOUNDS):
        assert row[5:] == ("-", "-")


def test_answers_that_differ_from_the_reference_fail_their_bar() -> None:
    assert table.exact_rows({}) == []
    exact = {"answers": 40, "equal": 39, "different": ["x"], "path": "fa3 attention"}
    (row,) = table.exact_rows({"exact": exact})
    assert "fa3 attention" in row[0]
    assert row[1:] == ("39 of 40", "-", "-", "-", "all", "no")
    assert len(row) == len(table.HEADER)


def test_a_lost_profile_leaves_the_time() -> None:
    measured = {"seconds": [5e-3], "profile_error": "RuntimeError: CUPTI"}
    results = {f"steps-{OURS}-1": {**measured, "measured": "now"}}
    (row,) = table.step_rows(results, TRIAL, BOUNDS)
    assert row[1] == "5.00"
    text = "\n".join(summary.parts(Setting("cpu", "tiny"), results))
    assert f"No profile of {OURS} at 1 rows: RuntimeError: CUPTI" in text
