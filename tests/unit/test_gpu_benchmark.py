"""What the GPU benchmark asks of both engines: the same positions, experts, weights and flags."""

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
from llada_sglang.roofline.shape import BUILT_IN, Shape
from llada_sglang.weights import weight_shapes

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import plugin, serving, shapes, steps, table
from benchmarks.gpu.patterns import BLOCK, PATTERNS, Pattern
from benchmarks.gpu.setting import FULL, UNIFORM_EXPERTS, Setting

MINI = Shape.of(BUILT_IN["mini"])


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=lambda pattern: f"TPF {pattern.tpf}")
def test_both_engines_resolve_the_same_number_of_positions_at_every_step(
    pattern: Pattern, tmp_path: Path
) -> None:
    assert sum(pattern.counts) == BLOCK
    assert pattern.exact_tpf == pytest.approx(pattern.tpf, abs=0.5)
    ours = DecodeParams(Steps(Checkpoint(BLOCK, 99)), {"steps": pattern.steps}).schedule(
        BLOCK, 1536
    )
    assert ours == pattern.counts
    steps_file = tmp_path / "steps"
    assert stock_counts(algorithm(steps_file), steps_file, pattern.steps) == list(pattern.counts)


def algorithm(steps_file: Path) -> Any:
    from sglang.srt.dllm.config import DllmConfig

    config = DllmConfig(
        algorithm=plugin.ALGORITHM,
        algorithm_config={"steps_file": str(steps_file)},
        block_size=BLOCK,
        mask_id=99,
        max_running_requests=2,
        first_done_first_out_mode=False,
    )
    return plugin.forced_schedule()(config)


def stock_counts(forced: Any, steps_file: Path, steps: int) -> list[int]:
    """Positions that stock's algorithm resolves per step, its choice held against ours."""
    torch.manual_seed(steps)
    steps_file.write_text(f"{steps}\n")
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


def test_one_server_of_stock_runs_every_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps_file = tmp_path / "steps"
    forced = algorithm(steps_file)
    for tpf in driver.PATTERN_ORDER:
        pattern = PATTERNS[tpf]
        assert stock_counts(forced, steps_file, pattern.steps) == list(pattern.counts)
        log = capsys.readouterr().err
        serving.require_forced(log, pattern)
        other = PATTERNS[1 if tpf != 1 else 3]
        with pytest.raises(RuntimeError, match=f"did not take {other.steps} steps"):
            serving.require_forced(log, other)
    with pytest.raises(RuntimeError, match="did not take"):
        serving.require_forced("", PATTERNS[1])


@pytest.mark.parametrize("content", ["", "0", "33", "4.5", "-4", "steps: 4", "\u00b2"])
def test_a_schedule_that_is_none_is_refused_by_name(content: str, tmp_path: Path) -> None:
    steps_file = tmp_path / "steps"
    steps_file.write_text(content)
    with pytest.raises(ValueError, match=r"steps must hold a number of steps in \[1, 32\], got"):
        algorithm(steps_file).init_step_state(SimpleNamespace(batch_size=1))


def test_a_block_that_begins_with_the_prompt_ends_earlier(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("4")
    forced = algorithm(tmp_path / "steps")
    ids = torch.full((BLOCK,), 99)
    ids[:20] = 5
    batch = SimpleNamespace(batch_size=1, input_ids=ids, dllm_prompt_mask=None)
    states = forced.init_step_state(batch)
    logits = torch.randn(BLOCK, 100)
    logits[:, 99] = 50  # its own mask, which would never be resolved
    assert [forced.step(batch, logits, states) for _ in range(3)] == [[False], [False], [True]]
    assert (batch.input_ids[20:] == 0).all()
    assert (batch.input_ids[:20] == 5).all()


def test_an_engine_that_routes_past_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.moe.topk import TopKOutputFormat

    def model(output_format: Any, *, blocks: bool = False) -> Any:
        topk = SimpleNamespace(topk_config=SimpleNamespace(output_format=output_format))
        mixture = SimpleNamespace(topk=topk, use_block_routing=blocks)
        layers = [SimpleNamespace(mlp=SimpleNamespace()), SimpleNamespace(mlp=mixture)]
        return SimpleNamespace(model=SimpleNamespace(layers=layers))

    with pytest.raises(RuntimeError, match="variable is not set"):
        steps.require_host_routing(model(TopKOutputFormat.STANDARD))
    monkeypatch.setenv(*next(iter(UNIFORM_EXPERTS.items())))
    steps.require_host_routing(model(TopKOutputFormat.STANDARD))
    for past in (
        model(TopKOutputFormat.BYPASSED),
        model(TopKOutputFormat.TRITON_KERNEL),
        model(TopKOutputFormat.STANDARD, blocks=True),
    ):
        with pytest.raises(RuntimeError, match="layer 1 would not run uniform experts"):
            steps.require_host_routing(past)


def test_dummy_weights_get_the_scale_of_trained_ones() -> None:
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
    given = Setting("cpu", "tiny", "--tp 2", "--mem-fraction-static 0.8")
    parser = argparse.ArgumentParser()
    for name in Setting.arguments():
        parser.add_argument(f"--{name.replace('_', '-')}")
    assert Setting.of(parser.parse_args(given.command_line())) == given


def test_the_written_shape_is_the_published_one() -> None:
    assert weight_shapes(shapes.MINI) == weight_shapes({})
    assert weight_shapes(shapes.FLASH) == weight_shapes(BUILT_IN["flash"])
    assert shapes.cost_shape("mini") == MINI


def test_flags_are_part_of_what_is_measured() -> None:
    names = [
        Setting("cpu", "tiny", *flags).name
        for flags in [(), ("--a",), ("", "--a"), ("--a", "--b"), ("--a --b",)]
    ]
    assert names[0] == "cpu-tiny"
    assert len(set(names)) == len(names)
    assert names[1] == Setting("cpu", "tiny", "--a").name


def test_the_command_measures_what_the_bars_are_of() -> None:
    assert FULL.rows == (1, 8, 32, 128)
    assert (FULL.prompt, FULL.output, FULL.concurrent) == (4096, 1536, (1, 32, 128))
    assert tuple(table.SPEEDUP) == FULL.concurrent
    assert sorted(driver.PATTERN_ORDER) == sorted(PATTERNS)
