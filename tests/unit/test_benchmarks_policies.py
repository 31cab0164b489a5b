"""What the policies' benchmark counts, keeps and draws."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modelled_rounds import ModelledRounds

from llada_sglang.cli.roofline import read_shape
from llada_sglang.config import Decoding
from llada_sglang.decoding.policies import policy_classes
from llada_sglang.decoding.policy import Checkpoint, PolicySet
from llada_sglang.nano.tasks import Example
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import Setup
from llada_sglang.scheduler import rounds as rounds_module

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks import autowidth, checkpoints, fronts, policies, policy_report, stock_plugin
from benchmarks.autowidth_gpu_time import GpuTime
from benchmarks.client import Reply, Task
from benchmarks.engines import OURS, STOCK
from benchmarks.fronts import Point, free_place, front
from benchmarks.parts import Part
from benchmarks.policies import Questions, Result, server_spec, take
from benchmarks.policy_settings import AHEAD, QUALITY, SECTIONS, SPEED, THRESHOLD, Setting

BLOCK = 32


def reply(ids: Sequence[int], text: str, forwards: Any, error: str | None = None) -> Reply:
    meta = {"denoise_forwards": forwards}
    return Reply(0.0, output_ids=list(ids), text=text, meta=meta, error=error)


def example(answer: str) -> Example:
    return Example("add", ({"role": "user", "content": "?"},), answer)


# Counting


def test_forwards_blocks_and_right_answers_are_counted_of_both_engines() -> None:
    result = Result("x")
    asked = [Task((1,) * 30, 128), Task((1,) * 32, 128), Task((1,) * 5, 128)]
    replies = [
        reply([5, 6, 7], "yes", 2),  # from position 30 to 32: two blocks
        reply([5] * 32, "no", [1, 1, 2, 3]),  # stock says it per token: the last one counts
        reply([], "", 0, error="status 500"),
    ]
    take(result, [example("yes")] * 3, asked, replies, keep=True)
    assert (result.right, result.count, result.tokens) == (1, 3, 35)
    assert (result.forwards, result.blocks) == (5, 3)
    assert result.errors == ["status 500"]
    assert result.outputs == [[5, 6, 7], [5] * 32, []]
    assert result.tokens_per_forward == 7.0


def test_an_answer_that_failed_is_the_same_as_none() -> None:
    ours = Result("a", outputs=[[1, 2], [3], []])
    stock = Result("b", engine=STOCK, twin="a", outputs=[[1, 2], [4], []])
    assert policy_report.sameness(stock, [ours, stock]) == "1 of 3"
    assert policy_report.sameness(ours, [ours, stock]) == "-"


# Settings


def test_every_setting_is_one_the_checkpoint_accepts() -> None:
    checkpoint = Checkpoint(block=BLOCK, mask_id=3, delete_id=4, split_id=5)
    known = PolicySet(checkpoint, policy_classes())
    for section in SECTIONS:
        for setting in section.settings:
            if setting.engine == OURS:
                given = dict(setting.decoding)
                Decoding(known, "threshold", {}).parse(given)


def test_labels_tell_the_settings_of_a_section_apart_and_every_twin_is_one_of_ours() -> None:
    for section in SECTIONS:
        labels = [setting.label for setting in section.settings]
        assert len(set(labels)) == len(labels)
        ours = {s.label for s in section.settings if s.engine == OURS}
        assert {s.twin for s in section.settings if s.engine == STOCK} <= ours
    assert Setting(THRESHOLD).label == "threshold 0.95"
    assert Setting(AHEAD).label == "threshold 0.95, lookahead 2"
    assert Setting(QUALITY).label == "edit, preset quality"
    assert Setting(algorithm="J", configuration={"threshold": 1}).label == "stock J, threshold 1"


def test_presets_and_stocks_parameters_are_the_same() -> None:
    from llada_sglang.decoding.policies.edit import PRESETS

    section = next(s for s in SECTIONS if s.name == "stock_edit")
    twins = {s.twin: s.configuration for s in section.settings if s.engine == STOCK}
    for decoding in (QUALITY, SPEED):
        threshold, edit_threshold = PRESETS[decoding["preset"]]
        wanted = {"threshold": threshold, "edit_threshold": edit_threshold}
        assert twins[Setting(decoding).label] == wanted


# Stock


def test_stock_gets_its_algorithm_its_parameters_and_the_counting_plugin_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "REPOSITORY", tmp_path)
    monkeypatch.setattr(type(SECTIONS[0]), "checkpoint", lambda self: tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    section = next(s for s in SECTIONS if s.name == "stock_edit")
    specs = [server_spec(section, setting, ()) for setting in section.settings]
    assert specs[0] == specs[1], "both of ours are asked of one server"
    assert specs[2] != specs[3]
    flags = list(specs[2].flags)
    assert flags.count("--dllm-algorithm") == 1
    assert flags[flags.index("--dllm-algorithm") + 1] == "JointThreshold"
    written = Path(flags[flags.index("--dllm-algorithm-config") + 1]).read_text()
    assert json.loads(written) == {"threshold": 0.7, "edit_threshold": 0.5}
    environment = dict(specs[2].environment)
    assert environment["SGLANG_PLUGINS"] == stock_plugin.NAME
    assert environment["PYTHONPATH"].endswith(":/elsewhere")


def test_the_installed_plugin_is_an_entry_point_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_plugin.install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = importlib.metadata.entry_points(group=stock_plugin.GROUP, name=stock_plugin.NAME)
    (point,) = points
    loaded = point.load()
    assert loaded.__module__ == stock_plugin.NAME
    assert loaded.__code__.co_filename.startswith(str(tmp_path))


def test_the_plugins_hooks_fit_the_host() -> None:
    """Their targets exist, and take what the hooks pass on."""
    import inspect

    from sglang.srt.dllm.config import DllmConfig
    from sglang.srt.managers.tp_worker import TpModelWorker

    assert list(inspect.signature(DllmConfig.from_server_args).parameters) == ["server_args"]
    forward = inspect.signature(TpModelWorker._forward_batch_generation_dllm)
    assert list(forward.parameters) == ["self", "forward_batch", "batch"]


def test_a_denoising_request_counts_every_forward_and_a_prompt_none() -> None:
    worker = SimpleNamespace(dllm_algorithm=SimpleNamespace(block_size=4))

    def request(prefill: bool) -> SimpleNamespace:
        return SimpleNamespace(
            is_dllm_prefill=lambda: prefill, customized_info=None, output_ids=[7, 8]
        )

    prompt, denoising = request(True), request(False)
    batch = SimpleNamespace(reqs=[prompt, denoising])
    calls = []

    def original(*given: Any) -> str:
        calls.append(given)
        return "result"

    for _ in range(3):
        assert stock_plugin.counted_forward(original, worker, "batch", batch) == "result"
    assert prompt.customized_info is None
    counts = denoising.customized_info["denoise_forwards"]
    assert set(counts) == {3}
    assert len(counts) == 2 + 4, "one for every token there can be after this forward"
    assert calls == [(worker, "batch", batch)] * 3


def test_the_mask_id_is_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mask_token_id": 760}')
    arguments = SimpleNamespace(model_path=str(tmp_path))
    config = SimpleNamespace(mask_id=156895)
    assert stock_plugin.checkpoint_mask_id(lambda given: config, arguments).mask_id == 760
    assert stock_plugin.checkpoint_mask_id(lambda given: None, arguments) is None
    (tmp_path / "config.json").write_text("{}")
    config.mask_id = 156895
    assert stock_plugin.checkpoint_mask_id(lambda given: config, arguments).mask_id == 156895


# Checkpoints


@torch.no_grad()
def test_the_plain_equivalent_says_what_nano_says_but_never_the_mask(
    nano: Path, tmp_path: Path
) -> None:
    checkpoints.write_plain(nano, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    source = json.loads((nano / "config.json").read_text())
    same = ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id", "block_size")
    assert {k: config[k] for k in same} == {k: source[k] for k in same}
    assert config["routed_scaling_factor"] == 1.0

    questions = Questions(nano, 5, 1)
    assert Questions(tmp_path, 5, 1).prompts == questions.prompts
    mask = config["mask_token_id"]
    plain, original = load_model(tmp_path), load_model(nano)
    for prompt in questions.prompts[:4]:
        ids = list(prompt) + [mask] * (-len(prompt) % BLOCK)
        ids = torch.tensor(ids + [mask] * BLOCK)
        logits = plain.block_causal_logits(ids, BLOCK)
        wanted = original.block_causal_logits(ids, BLOCK)
        wanted[:, mask] = -torch.inf
        probabilities = logits.softmax(-1)
        assert float(probabilities[:, mask].max()) < 1e-15
        torch.testing.assert_close(probabilities, wanted.softmax(-1), atol=2e-4, rtol=0)
        assert torch.equal(logits.argmax(-1), wanted.argmax(-1))


# Parts


def test_a_part_goes_on_where_it_was_and_only_with_the_same_arguments(tmp_path: Path) -> None:
    part = Part("one", {"repeats": 3, "settings": ({"threshold": 0.95},)}, folder=tmp_path)
    assert part.content == {}
    part.content["cells"] = {"1": 2.0}
    part.save()
    again = Part("one", {"repeats": 3, "settings": ({"threshold": 0.95},)}, folder=tmp_path)
    assert again.content == {"cells": {"1": 2.0}}
    assert "commit" in again.when
    assert Part("one", {"repeats": 4}, folder=tmp_path).content == {}
    fresh = {"repeats": 3, "settings": ({"threshold": 0.95},)}
    assert Part("one", fresh, folder=tmp_path, again=True).content == {}
    assert [file.name for file in tmp_path.iterdir()] == ["one.json"]


# The front and its picture


def test_the_front_holds_what_no_other_point_beats() -> None:
    slow, fast = Point("slow", 1.0, 0.99, 10), Point("fast", 9.0, 0.95, 10)
    beaten, tied = Point("beaten", 8.0, 0.95, 10), Point("tied", 9.0, 0.95, 10)
    worse = Point("worse", 9.0, 0.94, 10)
    assert front([fast, beaten, worse, slow, tied]) == [slow, fast, tied]


def test_a_number_stands_near_its_point_and_away_from_everything_else() -> None:
    taken = [(0.0, 0.0), (0.0, 10.0), (10.0, 0.0)]
    dx, dy = free_place((0.0, 0.0), taken, room=8.0)
    assert all(math.hypot(dx - x, dy - y) >= 8.0 for x, y in taken)
    assert math.hypot(dx, dy) == pytest.approx(fronts.NEAR)
    crowd = [(float(x), float(y)) for x in range(-60, 61, 4) for y in range(-60, 61, 4)]
    assert math.hypot(*free_place((0.0, 0.0), crowd, room=8.0)) <= fronts.FAR


def arguments(**more: Any) -> argparse.Namespace:
    known = {"per_family": 2, "every": 2, "repeats": 1, "seed": 1, "flags": ""}
    return argparse.Namespace(**known | more)


@pytest.fixture
def results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(policy_report.report, "RESULTS", tmp_path)
    return tmp_path


def test_the_report_shows_the_bars_and_where_tokens_differ(
    results_folder: Path, tmp_path: Path
) -> None:
    measured = []
    for section in SECTIONS:
        found = []
        for place, setting in enumerate(section.settings):
            speeds = {str(c): [100.0 + 30 * place] for c in section.concurrencies}
            one = Result(setting.label, setting.engine, setting.twin, 19 - place, 20, 180, 20, 18)
            one.forwards, one.speeds = 20 - 6 * (place == 1), speeds
            one.outputs = [[2 + place // 3], [1]]
            found.append(one)
        measured.append(
            policy_report.Measured(section, found, Part(section.name, {}, folder=tmp_path))
        )
    policy_report.write(measured, arguments())
    text = (results_folder / "policies.md").read_text()
    assert "| lookahead 2 over threshold: tokens per forward | +40 % | +43% | met |" in text
    assert "| at most 1 point lost | -5.00 | missed |" in text
    assert "tokens/s at 1, wide nano | +25 % | +30% | met |" in text
    assert (
        "| stock JointThreshold, threshold 0.7, edit_threshold 0.5: tokens of ours | all |" in text
    )
    assert "| 1 of 2 | missed |" in text
    (differing,) = [
        x
        for x in text.splitlines()
        if x.startswith("| stock JointThreshold, threshold 0.5, edit_threshold 0.0 |")
    ]
    assert "| - | - | - | 1 of 2 |" in differing
    (same,) = [
        x for x in text.splitlines() if x.startswith("| stock LowConfidence, threshold 0.95 |")
    ]
    assert "| 130 |" in same
    assert (results_folder / "policies.png").stat().st_size > 20_000


# The sweep


def cells(speeds: dict[str, float]) -> dict[str, autowidth.Cell]:
    return {width: autowidth.Cell([speed], 9, 10) for width, speed in speeds.items()}


def test_the_sweep_compares_geometric_means_with_every_fixed_width() -> None:
    sweep = {
        1: cells({"1": 100, "2": 200, "3": 150, "4": 100, "auto": 200}),
        64: cells({"1": 1000, "2": 500, "3": 400, "4": 300, "auto": 1000}),
    }
    means = autowidth.means_over_one(sweep)
    assert means["2"] == pytest.approx(1.0)
    assert means["auto"] == pytest.approx(math.sqrt(2.0))
    assert "+41.4% over lookahead 1, +41.4% over lookahead 2" in autowidth.verdict(sweep)
    assert "it beats every fixed width" in autowidth.verdict(sweep)
    sweep[1]["auto"].speeds = [90.0]
    sweep[1]["2"].errors = 1
    assert "a fixed width is as fast or faster. 1 requests failed." in autowidth.verdict(sweep)
    table = autowidth.table(sweep)
    assert "| 64 | 1000 |" in table
    assert table.splitlines()[-1].startswith("| exact match | 0.9000 |")


@pytest.mark.parametrize("concurrency", [1, 16, 64, 200])
def test_questions_of_the_sweep_are_spread_over_all_families(concurrency: int) -> None:
    chosen = autowidth.sample(200, concurrency, 60, 192)
    assert 60 <= len(chosen) <= 192
    assert {index // 20 for index in chosen} >= set(range(9))
    assert chosen[-1] < 200


def test_the_sweep_goes_on_at_the_next_concurrency(
    results_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autowidth.report, "RESULTS", results_folder)
    given = argparse.Namespace(
        per_family=2, least=4, most=4, repeats=1, seed=1, concurrency=[1], again=False
    )

    def part_of(name: str, arguments: argparse.Namespace, *, again: bool = False) -> Part:
        return Part(name, {}, folder=tmp_path, again=again)

    monkeypatch.setattr(autowidth, "part_of", part_of)
    part = part_of("nano", given)
    speeds = dict.fromkeys((*autowidth.FIXED, autowidth.AUTO), 100.0)
    part.content["cells"] = {"1": {w: asdict(c) for w, c in cells(speeds).items()}}
    part.save()
    monkeypatch.setattr(autowidth, "serve", None)  # nothing is missing: no server is started
    autowidth.run("nano", given)
    autowidth.write(given)
    assert "geometric mean" in (results_folder / "autowidth.md").read_text()
    assert (results_folder / "autowidth.png").stat().st_size > 10_000


# A GPU's time


def test_a_gpus_time_is_what_the_cost_model_says_of_every_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds_module, "time", rounds_module.time)  # put back at the end
    setup = Setup(read_shape("mini"), gpus.find("h200"))
    clock = GpuTime(setup)
    clock.forward(3, 40)
    assert clock.seconds == setup.step(3, 40).seconds

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(8.0).repeat(len(ids), 1)

    rounds = ModelledRounds(logits_of, Checkpoint(block=4, mask_id=3), vocab=8)
    clock = GpuTime(setup)
    clock.drive(rounds.rounds)
    asked = {"policy": "threshold", "threshold": 1.0, "steps": 1}
    rounds.submit([1] * 6, tokens=6, eos=[], custom=asked)
    rounds.run()
    # The prompt's block with a row that has two masks, then a commit beside four.
    expected = setup.step(2, 2).seconds + setup.step(2, 4).seconds
    assert clock.seconds == pytest.approx(expected)
