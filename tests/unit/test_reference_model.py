from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_sglang.errors import CheckpointError
from llada_sglang.reference.checkpoint import hf_names, load_model, split_experts, stack_experts
from llada_sglang.reference.config import ModelShape
from llada_sglang.reference.model import LLaDA2, block_causal_mask, rotary_angles, rotate
from llada_sglang.reference.moe import Router

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}


def random_model(seed: int = 0, config: dict[str, Any] = CONFIG) -> LLaDA2:
    torch.manual_seed(seed)
    model = LLaDA2(ModelShape.from_config(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.uniform_(-0.3, 0.3)
    return model.eval()


def write_checkpoint(path: Path, model: LLaDA2) -> dict[str, Tensor]:
    tensors = split_experts(model.state_dict(), model.shape)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, path / "model.safetensors")
    return tensors


def test_fast_path_computes_the_same_function_as_the_obvious_one() -> None:
    model = random_model()
    ids = torch.randint(0, 64, (3, 40))
    mask = torch.rand(3, 40, 40) < 0.4
    mask |= torch.eye(40, dtype=torch.bool)
    positions = torch.randint(0, 500, (3, 40))
    select = torch.rand(3, 40) < 0.5
    with torch.no_grad():
        obvious = model(ids, positions, mask, select=select)
        fast = model(ids, positions, mask, select=select, fast=True)
    torch.testing.assert_close(fast, obvious, rtol=1e-4, atol=1e-5)
    assert obvious.shape == (int(select.sum()), 64)


def test_packed_documents_do_not_see_each_other() -> None:
    model = random_model()
    ids = torch.randint(0, 64, (40,))
    alone = model.block_causal_logits(ids[:24], 8)
    document = torch.tensor([0] * 24 + [1] * 16)
    positions = torch.cat([torch.arange(24), torch.arange(16)])
    block = positions // 8
    mask = (document[:, None] == document) & (block[:, None] >= block)
    with torch.no_grad():
        packed = model(ids[None], positions[None], mask[None], fast=True)[0]
    torch.testing.assert_close(packed[:24], alone, rtol=1e-4, atol=1e-5)


def test_a_block_sees_itself_and_the_past_but_never_a_later_block() -> None:
    model = random_model()
    ids = torch.randint(0, 64, (32,))
    before = model.block_causal_logits(ids, 8)
    changed = ids.clone()
    changed[16:] = (changed[16:] + 1) % 64
    after = model.block_causal_logits(changed, 8)
    assert torch.equal(before[:16], after[:16])
    assert not torch.allclose(before[16:], after[16:])
    inside = ids.clone()
    inside[15] = (inside[15] + 1) % 64
    assert not torch.allclose(before[8], model.block_causal_logits(inside, 8)[8])
    assert block_causal_mask(4, 2).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, True, True, True],
        [True, True, True, True],
    ]


def test_rotary_leaves_position_zero_and_the_tail_dimensions_alone() -> None:
    x = torch.randn(1, 2, 3, 16)
    positions = torch.tensor([[0, 5, 9]])
    y = rotate(x, *rotary_angles(positions, 8, 10000.0))
    torch.testing.assert_close(y[:, :, 0], x[:, :, 0])
    assert torch.equal(y[..., 8:], x[..., 8:])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    # Dimension j turns with dimension j + 4: rotate-half, not interleaved pairs.
    torch.testing.assert_close(
        y[0, 0, 1, 0], x[0, 0, 1, 0] * math.cos(5) - x[0, 0, 1, 4] * math.sin(5)
    )


def test_router_chooses_by_biased_score_within_groups_and_weighs_without_bias() -> None:
    torch.manual_seed(1)
    router = Router(ModelShape.from_config(CONFIG))
    with torch.no_grad():
        router.weight.normal_()
    router.expert_bias.uniform_(-1, 1)
    x = torch.randn(50, 32)
    experts, weights = router(x)
    for row in range(50):
        scores = [1 / (1 + float(torch.exp(-(x[row] * w).sum()))) for w in router.weight.detach()]
        biased = [s + float(b) for s, b in zip(scores, router.expert_bias, strict=True)]
        # Two experts a group, so a group's score is the sum of all it has.
        groups = sorted(range(4), key=lambda g: -(biased[2 * g] + biased[2 * g + 1]))[:2]
        open_experts = [e for g in groups for e in (2 * g, 2 * g + 1)]
        chosen = sorted(open_experts, key=lambda e: -biased[e])[:2]
        assert set(experts[row].tolist()) == set(chosen)
        total = sum(scores[e] for e in chosen)
        for expert, weight in zip(experts[row].tolist(), weights[row].tolist(), strict=True):
            assert weight == pytest.approx(scores[expert] / total, abs=1e-5)


BLOCKWISE = {**CONFIG, "expert_capacity": 3}


def test_a_block_admits_the_experts_with_the_best_scores_of_any_token() -> None:
    router = Router(replace(ModelShape.from_config(BLOCKWISE), hidden_size=8))
    with torch.no_grad():
        router.weight = torch.nn.Parameter(torch.eye(8))
    # Logits are the input itself. Block 0 admits 7 and 5, and of the equals 0 and 2 the lower one.
    x = torch.tensor(
        [
            [3.0, 0, 3.0, 0, 0, 4.0, 0, 0],
            [0, 0, 2.0, 0, 0, 0, 1.0, 5.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]
    )
    experts, weights = router(x, torch.tensor([0, 0, 1]))
    assert experts.tolist() == [[5, 0], [7, 0], [0, 1]]
    assert weights[2].tolist() == [0.5, 0.5]
    assert float(weights[1, 0].detach()) == pytest.approx(0.99331 / (0.99331 + 0.5), abs=1e-4)
    router.expert_bias[6] = 2.0
    experts, weights = router(x, torch.tensor([0, 0, 1]))
    assert experts.tolist() == [[6, 5], [6, 7], [6, 0]]
    assert weights[2].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="which token is in which"):
        router(x)


def test_block_routing_ignores_groups_and_is_the_plain_choice_where_all_are_admitted() -> None:
    torch.manual_seed(3)
    free = Router(ModelShape.from_config({**CONFIG, "n_group": 1, "topk_group": 1}))
    every = Router(ModelShape.from_config({**CONFIG, "expert_capacity": 8}))
    with torch.no_grad():
        every.weight = torch.nn.Parameter(free.weight.normal_())
    x = torch.randn(20, 32)
    for got, expected in zip(every(x, torch.arange(20) // 4), free(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_packed_copies_of_a_block_are_routed_apart() -> None:
    model = random_model(config=BLOCKWISE)
    ids = torch.randint(0, 64, (24,))
    alone = model.block_causal_logits(ids, 8)
    positions = torch.arange(24).repeat(2)
    document = torch.arange(48) // 24
    mask = (document[:, None] == document) & (positions[:, None] // 8 >= positions // 8)
    group = document * 3 + positions // 8
    both = ids.repeat(2)
    both[24:] = torch.randint(0, 64, (24,))
    with torch.no_grad():
        packed = model(both[None], positions[None], mask[None], group=group[None], fast=True)[0]
        merged = model(
            both[None], positions[None], mask[None], group=positions[None] // 8, fast=True
        )[0]
    torch.testing.assert_close(packed[:24], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged[:24], alone, rtol=1e-2)


def test_rows_of_a_batch_are_routed_apart() -> None:
    model = random_model(config=BLOCKWISE)
    ids = torch.randint(0, 64, (2, 16))
    positions = torch.arange(16).expand(2, -1)
    mask = block_causal_mask(16, 8).expand(2, -1, -1)
    with torch.no_grad():
        rows = model(ids, positions, mask, group=positions // 8)
    for row in range(2):
        alone = model.block_causal_logits(ids[row], 8)
        torch.testing.assert_close(rows[row], alone, rtol=1e-4, atol=1e-5)


def test_checkpoint_round_trip_single_and_sharded(tmp_path: Path) -> None:
    model = random_model()
    tensors = write_checkpoint(tmp_path / "single", model)
    assert set(tensors) == set(hf_names(model.shape))
    loaded = load_model(tmp_path / "single")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name

    sharded = tmp_path / "sharded"
    sharded.mkdir()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({n: tensors[n] for n in part}, sharded / file)
    index = {"weight_map": {n: file for file, part in files.items() for n in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (sharded / "config.json").write_text(json.dumps(CONFIG))
    ids = torch.randint(0, 64, (20,))
    expected = model.block_causal_logits(ids, 8)
    assert torch.equal(load_model(sharded).block_causal_logits(ids, 8), expected)


def test_expert_parts_land_in_their_places() -> None:
    shape = random_model().shape
    tensors = {name: torch.full((1, 1), float(i)) for i, name in enumerate(hf_names(shape))}
    state = stack_experts(tensors, shape)
    prefix = "model.layers.2.mlp.experts"
    assert state[f"{prefix}.gate_up"].shape == (8, 2, 1, 1)
    assert state[f"{prefix}.gate_up"][3, 0] == tensors[f"{prefix}.3.gate_proj.weight"]
    assert state[f"{prefix}.gate_up"][3, 1] == tensors[f"{prefix}.3.up_proj.weight"]
    assert state[f"{prefix}.down"][5] == tensors[f"{prefix}.5.down_proj.weight"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "1 missing .*expert_bias"),
        ("unknown", "1 unknown .*extra.weight"),
        ("shape", "lm_head.weight has shape"),
    ],
)
def test_wrong_weights_are_refused_by_name(tmp_path: Path, damage: str, message: str) -> None:
    write_checkpoint(tmp_path, random_model())
    tensors = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del tensors["model.layers.1.mlp.gate.expert_bias"]
    elif damage == "unknown":
        tensors["extra.weight"] = torch.zeros(1)
    else:
        tensors["lm_head.weight"] = torch.zeros(3, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_config_the_reference_does_not_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_scaling="):
        ModelShape.from_config({**CONFIG, "rope_scaling": {"type": "yarn"}})
    with pytest.raises(CheckpointError, match=r"expert_capacity must be in .*\[2, 8\], got 9"):
        ModelShape.from_config({**CONFIG, "expert_capacity": 9})
    with pytest.raises(CheckpointError, match="missing hidden_size"):
        ModelShape.from_config({k: v for k, v in CONFIG.items() if k != "hidden_size"})
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path)


def test_bfloat16_keeps_the_router_in_float32(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_model())
    model = load_model(tmp_path, dtype=torch.bfloat16)
    gate = model.model.layers[1].mlp.gate
    assert gate.weight.dtype == gate.expert_bias.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16
    logits = model.block_causal_logits(torch.randint(0, 64, (16,)), 8)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
