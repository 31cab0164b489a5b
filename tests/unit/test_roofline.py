"""The cost model against numbers worked out by hand from the published shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llada_sglang import cli
from llada_sglang.roofline import cost, gpus
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.gpus import RooflineError
from llada_sglang.roofline.shape import BUILT_IN, Shape
from llada_sglang.weights import parameter_count, weight_shapes

MINI = Shape.of(BUILT_IN["mini"])
FLASH = Shape.of(BUILT_IN["flash"])
H200 = gpus.find("h200")
AT_4_3 = replace(H200, bandwidth=4.3e12)


def _bytes(step: cost.Step) -> dict[str, float]:
    return {part.name: part.weight_bytes for part in step.parts}


def test_one_row_of_mini_reads_20_6_gb_in_4_8_ms_at_4_3_tb_per_second() -> None:
    step = Setup(MINI, AT_4_3, kv_len=0).step(1)
    assert step.experts_touched == pytest.approx(163.3, abs=0.05)
    assert step.core_weight_bytes / 1e9 == pytest.approx(20.6, abs=0.05)
    assert step.core_weight_bytes / 4.3e12 * 1e3 == pytest.approx(4.8, abs=0.05)
    assert step.seconds * 1e3 == pytest.approx(4.8, abs=0.05)


def test_32_rows_of_mini_read_31_7_gb() -> None:
    step = Setup(MINI, H200, kv_len=0).step(32)
    assert step.experts_touched == pytest.approx(256, abs=0.01)
    assert step.core_weight_bytes / 1e9 == pytest.approx(31.7, abs=0.05)


def test_every_part_of_mini_is_as_worked_out_by_hand() -> None:
    found = _bytes(Setup(MINI, H200).step(32))
    assert found["attention projections"] == 20 * 2048 * (16 + 4 + 4 + 16) * 128 * 2
    assert found["routed experts"] == pytest.approx(19 * 256 * 3 * 2048 * 512 * 2)
    assert found["shared expert"] == 19 * 3 * 2048 * 512 * 2
    assert found["dense first layers"] == 3 * 2048 * 5120 * 2
    assert found["router"] == 19 * 2048 * 256 * 4
    assert found["lm_head"] == 157184 * 2048 * 2
    assert found["embedding"] == 32 * 32 * 2048 * 2


def test_operations_and_kv_of_two_rows_are_as_worked_out_by_hand() -> None:
    step = Setup(MINI, H200, kv_len=1000).step(2, masked=10)
    parts = {part.name: part for part in step.parts}
    assert parts["routed experts"].flops == 64 * 8 * 19 * 3 * 2048 * 512 * 2
    assert parts["lm_head"].flops == 10 * 157184 * 2048 * 2
    assert parts["attention over KV"].kv_bytes == 2 * 1000 * 40 * 1024
    assert parts["KV write"].kv_bytes == 64 * 40 * 1024
    assert parts["attention over KV"].flops == 20 * 2 * 2 * 64 * 1032 * 16 * 128


@pytest.mark.parametrize("config", [BUILT_IN["mini"], BUILT_IN["flash"]])
def test_the_weights_are_all_parameters_of_the_checkpoint_but_the_norms(
    config: dict[str, int],
) -> None:
    shapes = weight_shapes(config)
    shape = Shape.of(config)
    matrices = {name: size for name, size in shapes.items() if len(size) == 2}
    gates = sum(size[0] * size[1] for name, size in matrices.items() if ".gate.weight" in name)
    expected = 2 * parameter_count(matrices) + 2 * gates  # the router is float32
    assert shape.shard(1).weight_bytes(2.0) == expected


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_gpus_share_everything_but_the_router_and_few_kv_heads(tp: int) -> None:
    one, each = Setup(FLASH, H200).step(4), Setup(FLASH, H200, tp=tp).step(4)
    shared, whole = _bytes(each), _bytes(one)
    for name in ("routed experts", "shared expert", "dense first layers", "lm_head"):
        assert shared[name] * tp == pytest.approx(whole[name])
    assert shared["router"] == whole["router"]
    assert each.kv_bytes * min(tp, 4) == pytest.approx(one.kv_bytes)


def test_an_all_reduce_moves_hidden_states_after_the_embedding_and_twice_a_layer() -> None:
    parts = {part.name: part for part in Setup(FLASH, H200, tp=4).step(2).parts}
    sent = 65 * 64 * 4096 * 2 * 2 * 3 / 4
    assert parts["all-reduce"].seconds == pytest.approx(sent / 450e9)


def test_a_capacity_limits_the_experts_of_a_row_and_not_of_many() -> None:
    limited = Shape.of({**BUILT_IN["flash"], "expert_capacity": 48})
    assert limited.experts_touched(1) == pytest.approx(48 * (1 - (40 / 48) ** 32))
    assert limited.experts_touched(1) < 48 < limited.experts_touched(2) < 96
    assert limited.experts_touched(64) == pytest.approx(256, abs=0.01)
    assert Shape.of({"expert_capacity": 256}).experts_touched(3) == MINI.experts_touched(3)


def test_fp8_halves_the_linear_layers_and_leaves_the_rest() -> None:
    half, whole = (_bytes(Setup(FLASH, H200, dtype=d).step(1)) for d in ("fp8", "bf16"))
    assert half["routed experts"] / whole["routed experts"] == pytest.approx(0.5, abs=0.001)
    assert half["lm_head"] == whole["lm_head"]
    assert half["router"] == whole["router"]


def test_flash_needs_two_h200_in_bf16_and_one_in_fp8() -> None:
    setup = Setup(FLASH, H200)
    assert not setup.memory(1).fits
    assert cost.least_tp(setup) == 2
    assert setup.memory(1).kv_bytes_per_token == 64 * 1024
    assert replace(setup, dtype="fp8").memory(1).fits
    assert cost.least_tp(replace(setup, dtype="fp8")) == 1


def test_a_lone_request_pays_a_second_row_once_a_block() -> None:
    setup = Setup(MINI, H200, kv_len=0)
    made = setup.predict(1, 8)
    one, two = setup.step(1, 20).seconds, setup.step(2, 20).seconds
    assert made.masked == 20
    assert made.seconds == pytest.approx((3 * one + two) / 4)
    assert made.tokens_per_second == pytest.approx(8 / made.seconds)


def test_a_prediction_for_many_is_near_the_step_of_the_mean_number_of_rows() -> None:
    setup = Setup(FLASH, H200, tp=4)
    assert setup.predict(64, 8).seconds == pytest.approx(
        setup.step(64 + 16, 64 * 20).seconds, rel=0.01
    )
    assert setup.predict(2, 32).seconds == setup.step(4, 64).seconds


def _status(arguments: str) -> object:
    try:
        return cli.main(["roofline", *arguments.split()])
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        ("--model mini --gpu h900", 1, "must be one of h200, h100, b200, a100, got 'h900'"),
        ("--model mini --gpu h200 --rows 0", 2, "in [1, 4096], got '0'"),
        ("--model mini --gpu h200 --kv-len -1", 2, "at least 0, got '-1'"),
        ("--model mini --gpu h200 --tp 3", 1, "got 3. These do: 1, 2, 4, 8, 16"),
        ("--model mini --gpu h200 --tpf 33", 1, "in [1, 32] tokens per forward"),
        ("--model mini --gpu h200 --bandwidth 0", 1, "above 0 TB/s, got 0"),
        ("--model mini --gpu h200 --bandwidth nan", 1, "above 0 TB/s, got nan"),
        ("--model ./none --gpu h200", 1, "Or name a known shape: mini, flash"),
    ],
)
def test_misuse_is_refused_with_the_range(
    arguments: str, status: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status(arguments) == status
    assert complaint in capsys.readouterr().err


def test_a_shape_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RooflineError, match="num_experts_per_tok must be in"):
        Shape.of({"num_experts_per_tok": 300})
    with pytest.raises(RooflineError, match=r"hidden_size in config\.json must be an integer"):
        Shape.of({"hidden_size": 0})
    with pytest.raises(RooflineError, match="--rows must be at least 1 block row, got 0"):
        Setup(MINI, H200).step(0)


def test_the_report_states_formula_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["roofline", "--model", "mini", "--gpu", "h200", "--bandwidth", "4.3", "--kv-len", "0"]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "163.3 of 256 experts" in text
    assert "E (1 - (1 - k/E)^tokens)" in text
    assert "head: 20.6 GB" in text
    assert "4.3 TB/s" in text


def test_json_reads_the_checkpoint_of_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    nano = Path(cli.__file__).parents[1] / "nano/checkpoint"
    assert cli.main(["roofline", "--model", str(nano), "--gpu", "a100", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["setup"]["shape"]["experts"] == 16
    assert report["memory"]["fits"] is True
    parts = report["step"]["parts"]
    assert report["step"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))


def test_the_cost_model_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llada_sglang.cli import main; "
        "main(['roofline', '--model', 'mini', '--gpu', 'h200']); "
        "assert not {'torch', 'sglang', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
