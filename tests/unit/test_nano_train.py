from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from llada_sglang.nano.export import export_checkpoint, initialise, nano_config, start_from
from llada_sglang.nano.loss import balance_experts, masked_loss
from llada_sglang.nano.optim import orthogonalise
from llada_sglang.nano.recipe import RECIPE, RECIPES, Phase, Variant
from llada_sglang.nano.trainer import Trainer
from llada_sglang.reference.checkpoint import load_model

SHORT = replace(
    RECIPE,
    phases=(Phase("causal", 2, 0, 2, 256), Phase("blocks", 2, 32, 2, 320, (1.0, 0.0), cap=0.3)),
)


def trainer(out: Path) -> Trainer:
    return Trainer(SHORT, out, seed=3, device=torch.device("cpu"))


def test_a_resumed_run_ends_with_the_same_weights_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = trainer(tmp_path / "a")
    for _ in range(4):
        unbroken.train_step()
    first = trainer(tmp_path / "b")
    assert not first.resume()
    for _ in range(2):
        first.train_step()
    first.save()
    second = trainer(tmp_path / "b")
    assert second.resume()
    for _ in range(2):
        second.train_step()
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.mark.parametrize("variant", ["edit", "levenshtein"])
def test_a_resumed_variant_ends_with_the_same_weights_and_tokenizer(
    tmp_path: Path, nano: Path, variant: Variant
) -> None:
    recipe = replace(RECIPES[variant], phases=(Phase("blocks", 2, 32, 2, 320, cap=0.3),))

    def made(out: Path) -> Trainer:
        return Trainer(recipe, out, seed=3, device=torch.device("cpu"), start=nano)

    unbroken = made(tmp_path / "a")
    first = made(tmp_path / "b")
    for each in (unbroken, unbroken, first):
        each.train_step()
    first.save()
    second = made(tmp_path / "b")
    assert second.resume()
    second.train_step()
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert second.tokenizer.to_str() == unbroken.tokenizer.to_str()
    assert second.config == unbroken.config


def test_a_variant_starts_with_the_weights_it_is_given_and_the_mean_for_new_ids(
    tmp_path: Path, nano: Path
) -> None:
    given = load_model(nano)
    cpu = torch.device("cpu")
    started = Trainer(RECIPES["levenshtein"], tmp_path, seed=0, device=cpu, start=nano)
    state, size = started.model.state_dict(), given.shape.vocab_size
    assert started.config["vocab_size"] == size + 64
    assert started.config["delete_token_id"] == size
    for name, tensor in given.state_dict().items():
        assert torch.equal(state[name][: len(tensor)], tensor), name
    head = state["lm_head.weight"]
    torch.testing.assert_close(head[size:], head[:size].mean(0).expand(64, -1))
    small = initialise(nano_config(started.tokenizer, "levenshtein"), seed=0)
    with pytest.raises(ValueError, match=r"cannot start .* from"):
        start_from(given, small)


@pytest.mark.parametrize(
    ("variant", "keys"),
    [
        ("base", {}),
        ("edit", {"decoding_policy": "edit"}),
        (
            "levenshtein",
            {"expert_capacity": 10, "delete_token_id": 768, "split_token_id": 769},
        ),
    ],
)
def test_a_variants_config_says_how_it_decodes(
    tmp_path: Path, nano: Path, variant: Variant, keys: dict[str, object]
) -> None:
    cpu = torch.device("cpu")
    made = Trainer(RECIPES[variant], tmp_path, seed=0, device=cpu, start=nano)
    export_checkpoint(made.model, made.tokenizer, made.config, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    base = json.loads((nano / "config.json").read_text())
    assert {k: v for k, v in config.items() if k not in base} == keys
    loaded = load_model(tmp_path / "out")
    assert loaded.shape.expert_capacity == keys.get("expert_capacity")


def test_an_exported_checkpoint_is_the_models_own_weights_rounded(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train_step()
    export_checkpoint(made.model, made.tokenizer, made.config, tmp_path)
    loaded = load_model(tmp_path).state_dict()
    for name, tensor in made.model.state_dict().items():
        own = tensor if ".gate." in name else tensor.to(torch.bfloat16).float()
        assert torch.equal(loaded[name], own), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LLaDA2MoeModelLM"]
    assert "auto_map" not in config
    assert config["block_size"] == 32
    assert not list(tmp_path.glob("*.py"))


def test_learning_rate_follows_the_phases_to_zero(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    assert made.total_steps == 4
    assert made.phase_at(1)[0].name == "causal"
    assert made.phase_at(2) == (SHORT.phases[1], 0.0)
    assert made.rate(3) < made.rate(2) * 1.0
    with pytest.raises(IndexError):
        made.phase_at(4)


def test_the_cap_term_rewards_sureness_only_where_the_answer_is_right() -> None:
    labels, weight = torch.tensor([0, 1]), torch.ones(2)
    logits = torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 1.0]], requires_grad=True)
    plain, share = masked_loss(logits, labels, weight, cap=0.0)
    assert float(plain) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert float(share) == 0.5
    capped, _ = masked_loss(logits, labels, weight, cap=1.0)
    p = logits[0].softmax(-1)
    assert float((capped - plain).detach()) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)
    (gradient,) = torch.autograd.grad(capped - plain, logits)
    assert gradient[0, 0] < 0
    assert torch.equal(gradient[1], torch.zeros(3))


def test_expert_bias_moves_against_load(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    moe = made.model.model.layers[1].mlp
    moe.load = torch.tensor([10] + [2] * 14 + [0])
    balance_experts(made.model, 0.5)
    assert moe.gate.expert_bias[0] == -0.5
    assert moe.gate.expert_bias[15] == 0.5


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 2, 5, 5)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3
