"""The benchmark's own arithmetic: patterns, floors, idle time, and the table with its bars."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llada_sglang.config import DecodeParams
from llada_sglang.decoding.order import best
from llada_sglang.decoding.policies.steps import Steps
from llada_sglang.decoding.policy import Checkpoint
from llada_sglang.roofline import gpus
from llada_sglang.roofline.shape import BUILT_IN, Shape
from llada_sglang.weights import weight_shapes

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks.engines import OURS, STOCK
from benchmarks.gpu import plugin, shapes, table, trace
from benchmarks.gpu.patterns import BLOCK, PATTERNS, Pattern
from benchmarks.gpu.setting import Setting

MINI = Shape.of(BUILT_IN["mini"])
H200 = gpus.find("h200")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=lambda pattern: f"TPF {pattern.tpf}")
def test_both_engines_resolve_the_same_number_of_positions_at_every_step(
    pattern: Pattern,
) -> None:
    assert sum(pattern.counts) == BLOCK
    assert pattern.exact_tpf == pytest.approx(pattern.tpf, abs=0.5)
    ours = DecodeParams(Steps(Checkpoint(BLOCK, 99)), {"steps": pattern.steps}).schedule(
        BLOCK, 1536
    )
    assert ours == pattern.counts
    assert stock_counts(pattern.steps) == list(pattern.counts)


def algorithm(steps: int) -> Any:
    from sglang.srt.dllm.config import DllmConfig

    config = DllmConfig(
        algorithm=plugin.ALGORITHM,
        algorithm_config={"steps": steps},
        block_size=BLOCK,
        mask_id=99,
        max_running_requests=2,
        first_done_first_out_mode=True,
    )
    return plugin.forced_schedule()(config)


def stock_counts(steps: int) -> list[int]:
    """Positions that stock's algorithm resolves per step, its choice held against ours."""
    torch.manual_seed(steps)
    forced = algorithm(steps)
    batch = SimpleNamespace(
        batch_size=2,
        input_ids=torch.full((2 * BLOCK,), 99),
        dllm_prompt_mask=None,
    )
    states = forced.init_step_state(batch)
    counts = []
    for _ in range(BLOCK + 1):
        logits = 3 * torch.randn(2 * BLOCK, 100)
        logits[:, 99] = -100
        before = batch.input_ids.view(2, BLOCK).clone()
        masked = before == 99
        done = forced.step(batch, logits, states)
        assert done == [not row.any() for row in masked]
        if all(done):
            return counts
        after = batch.input_ids.view(2, BLOCK)
        resolved = (after != before).sum(dim=1)
        confidence, token = logits.softmax(-1).view(2, BLOCK, -1).max(-1)
        expected = best(confidence, masked, resolved[:, None])
        assert torch.equal(after != before, expected)
        assert torch.equal(after[expected], token[expected])
        assert resolved[0] == resolved[1]
        counts.append(int(resolved[0]))
    raise AssertionError("the block was never done")


def test_a_block_that_begins_with_the_prompt_ends_earlier() -> None:
    forced = algorithm(4)
    ids = torch.full((BLOCK,), 99)
    ids[:20] = 5
    batch = SimpleNamespace(batch_size=1, input_ids=ids, dllm_prompt_mask=None)
    states = forced.init_step_state(batch)
    logits = torch.randn(BLOCK, 100)
    logits[:, 99] = 50  # its own mask, which would never be resolved
    assert [forced.step(batch, logits, states) for _ in range(3)] == [[False], [False], [True]]
    assert (batch.input_ids[20:] == 0).all()
    assert (batch.input_ids[:20] == 5).all()


def test_dummy_weights_get_a_scale_at_which_routers_differ() -> None:
    model = nn.ModuleDict(
        {
            "word_embeddings": nn.Embedding(500, 64),
            "input_layernorm": nn.LayerNorm(64, bias=False),
            "gate": nn.Linear(64, 256),
        }
    ).bfloat16()
    model.requires_grad_(False)
    calls = []
    plugin.initialize(calls.append, model)
    assert calls == [model]
    assert (model["input_layernorm"].weight == 1).all()
    assert (model["gate"].bias == 0).all()
    assert float(model["gate"].weight.std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(model["word_embeddings"].weight.std()) == pytest.approx(1, rel=0.05)


def test_a_worker_is_given_the_same_setting() -> None:
    given = Setting("cpu", "tiny", "trial", "--tp 2", "--mem-fraction-static 0.8")
    parser = argparse.ArgumentParser()
    for name in Setting.arguments():
        parser.add_argument(f"--{name.replace('_', '-')}")
    assert Setting.of(parser.parse_args(given.command_line())) == given


def test_the_written_shape_is_the_published_one() -> None:
    assert weight_shapes(shapes.MINI) == weight_shapes({})
    assert weight_shapes(shapes.FLASH) == weight_shapes(BUILT_IN["flash"])
    assert shapes.cost_shape("mini") == MINI


def test_idle_time_is_what_no_operation_covers() -> None:
    found = trace.activity([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (2.0, 3.0)])
    assert (found.span, found.idle) == (6.0, 2.0)
    assert found.idle_share == pytest.approx(1 / 3)
    assert trace.activity([]).idle_share == 0


def test_the_floor_of_one_row_is_the_issues() -> None:
    expected, counted = table.floors(MINI, H200, 1, 0, 4.3e12, None)
    assert expected * 1e3 == pytest.approx(4.8, abs=0.05)
    assert counted is None


def test_the_floor_follows_the_experts_that_were_counted() -> None:
    expected, same = table.floors(MINI, H200, 1, 0, 4.3e12, MINI.experts_touched(1))
    assert same == pytest.approx(expected)
    _, fewer = table.floors(MINI, H200, 1, 0, 4.3e12, 40.0)
    saved = (MINI.experts_touched(1) - 40) * 19 * 3 * 2048 * 512 * 2 / 4.3e12
    assert fewer == pytest.approx(expected - saved)


def results(one_row_ms: float, idle: float) -> dict[str, Any]:
    rows = {"1": {"seconds": [one_row_ms / 1e3] * 3, "idle_share": idle}}
    return {f"steps-{OURS}": {"bandwidth": 4.3e12, "rows": rows}}


@pytest.mark.parametrize(
    ("step", "idle", "met"), [(5.9, 0.05, ["yes", "yes"]), (6.1, 0.06, ["no", "no"])]
)
def test_the_bars_of_a_step(step: float, idle: float, met: list[str]) -> None:
    rows = table.step_rows(results(step, idle), MINI, H200, 0)
    assert [row[-1] for row in rows] == met
    assert "floor 4.8" in rows[0][3]
    assert rows[0][2] == "-"


def test_without_a_known_gpu_no_bar_is_claimed() -> None:
    rows = table.step_rows(results(5.0, 0.0), MINI, None, 0)
    assert rows[0][3:] == ("-", "-")


def serving(first: float, speed: float) -> dict[str, Any]:
    return {"first_block": [first], "speeds": {"32": {"tokens_per_second": speed}}}


def test_the_bars_of_serving_are_times_stock() -> None:
    told = {f"serving-3-{OURS}": serving(0.1, 2900.0), f"serving-3-{STOCK}": serving(2.1, 1000.0)}
    first, speed = table.serving_rows(told, 4096, 1536)
    assert first[0] == "TPF 2.9: s to the first block, prompt 4096"
    assert first[3:] == ("at least 20x stock", "yes, 21.0x")
    assert speed[1:] == ("2900.0", "1000.0", "at least 3x stock", "no, 2.9x")
    (alone, _) = table.serving_rows({f"serving-1-{OURS}": serving(0.1, 5.0)}, 64, 32)
    assert alone[1:] == ("0.100", "-", "at least 20x stock", "-")


def test_answers_that_differ_from_the_reference_fail_their_bar() -> None:
    assert table.exact_rows({}) == []
    (row,) = table.exact_rows({"exact": {"answers": 40, "equal": 39, "different": ["x"]}})
    assert row[1:] == ("39 of 40", "-", "all", "no")
