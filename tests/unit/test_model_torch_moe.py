"""CPU routing and experts, against one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llada_sglang.models.torch_moe import route, route_blocks, run_experts, sum_in_order
from llada_sglang.reference.config import ModelShape
from llada_sglang.reference.moe import Router

EXPERTS, GROUPS, HIDDEN, INNER = 16, 4, 24, 8


def routed_by_hand(
    logits: Tensor, bias: Tensor, top_k: int, groups: int, kept: int
) -> list[dict[int, float]]:
    """LLaDA2's rule in scalar Python: expert id -> weight per token."""
    chosen = []
    size = logits.shape[1] // groups
    for row in logits.double().tolist():
        score = [1 / (1 + torch.tensor(-x, dtype=torch.float64).exp().item()) for x in row]
        biased = [s + b for s, b in zip(score, bias.double().tolist(), strict=True)]
        group_score = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        best = sorted(range(groups), key=lambda g: -group_score[g])[:kept]
        open_to = [e for g in best for e in range(g * size, (g + 1) * size)]
        ids = sorted(open_to, key=lambda e: -biased[e])[:top_k]
        total = sum(score[e] for e in ids)
        chosen.append({e: score[e] / total for e in ids})
    return chosen


@pytest.mark.parametrize(("groups", "kept"), [(GROUPS, 2), (GROUPS, GROUPS), (1, 1), (8, 3)])
def test_experts_are_chosen_by_biased_score_within_the_best_groups(groups: int, kept: int) -> None:
    torch.manual_seed(groups)
    logits, bias = torch.randn(50, EXPERTS), 0.3 * torch.randn(EXPERTS)
    weights, ids = route(logits, bias, top_k=4, num_groups=groups, topk_group=kept, normalize=True)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    for token, expected in enumerate(routed_by_hand(logits, bias, 4, groups, kept)):
        got = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
        assert got == pytest.approx(expected, rel=1e-5)


def test_routing_is_the_hosts_where_the_host_is_right() -> None:
    from sglang.srt.layers.moe.topk import biased_grouped_topk_impl

    torch.manual_seed(5)
    logits, bias = torch.randn(40, EXPERTS), 0.3 * torch.randn(EXPERTS)
    with torch.compiler.set_stance("force_eager"):
        theirs_weights, theirs_ids = biased_grouped_topk_impl(
            torch.empty(40, 1), logits, bias, 4, True, num_expert_group=GROUPS, topk_group=2
        )
    weights, ids = route(logits, bias, top_k=4, num_groups=GROUPS, topk_group=2, normalize=True)
    ours, theirs = ids.argsort(-1), theirs_ids.argsort(-1)
    assert torch.equal(ids.gather(1, ours), theirs_ids.gather(1, theirs))
    torch.testing.assert_close(weights.gather(1, ours), theirs_weights.gather(1, theirs))


def reference_router(bias: Tensor, capacity: int, top_k: int) -> Router:
    """A reference router whose logits are its input."""
    config = dict.fromkeys(
        (
            "vocab_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "moe_intermediate_size",
            "first_k_dense_replace",
        ),
        1,
    )
    shape = ModelShape.from_config(
        {
            **config,
            "hidden_size": EXPERTS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e4,
            "num_experts": EXPERTS,
            "num_experts_per_tok": top_k,
            "n_group": GROUPS,
            "topk_group": 2,
            "expert_capacity": capacity,
        }
    )
    router = Router(shape)
    router.weight = torch.nn.Parameter(torch.eye(EXPERTS))
    router.expert_bias = bias
    return router.requires_grad_(False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 64, 83])
@pytest.mark.parametrize(("capacity", "top_k"), [(4, 4), (10, 4), (EXPERTS, 4), (3, 1)])
def test_block_routing_is_the_references(
    capacity: int, top_k: int, tokens: int, tied: bool
) -> None:
    torch.manual_seed(capacity + tokens)
    logits, bias = 2 * torch.randn(tokens, EXPERTS), 0.3 * torch.randn(EXPERTS)
    if tied:
        logits, bias = logits.round().clamp(-1, 1), (bias * 2).round() / 4
    weights, ids = route_blocks(logits, bias, block_size=8, expert_capacity=capacity, top_k=top_k)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert weights.shape == ids.shape == (tokens, top_k)
    if tokens:
        router = reference_router(bias, capacity, top_k)
        expected_ids, expected_weights = router(logits, torch.arange(tokens) // 8)
        assert torch.equal(ids.long(), expected_ids)
        assert torch.equal(weights, expected_weights)


def test_a_block_admits_by_its_best_token_and_takes_the_lower_id_of_equals() -> None:
    logits = torch.zeros(5, EXPERTS)
    logits[0, 9], logits[1, 12], logits[2, 3] = 3.0, 2.0, 1.0
    bias = torch.zeros(EXPERTS)
    _, ids = route_blocks(logits, bias, block_size=3, expert_capacity=4, top_k=3)
    assert ids.tolist() == [[9, 0, 3], [12, 0, 3], [3, 0, 9], [0, 1, 2], [0, 1, 2]]
    bias[15] = -2.0
    bias[14] = 0.25
    weights, ids = route_blocks(logits, bias, block_size=3, expert_capacity=4, top_k=3)
    assert ids.tolist() == [[9, 14, 3], [12, 14, 3], [14, 3, 9], [14, 0, 1], [14, 0, 1]]
    torch.testing.assert_close(weights[3], torch.full((3,), 1 / 3))


def experts_by_hand(x: Tensor, weights: Tensor, ids: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for weight, expert in zip(weights[token].double(), ids[token].tolist(), strict=True):
            if expert < 0:
                continue
            gate, up = (w13[expert].double() @ x[token].double()).chunk(2)
            out[token] += weight * (w2[expert].double() @ (gate * torch.sigmoid(gate) * up))
    return out


@pytest.mark.parametrize("inner", [INNER, 7])
@pytest.mark.parametrize("tokens", [0, 1, 5, 400])
def test_experts_sum_what_each_token_chose(tokens: int, inner: int) -> None:
    torch.manual_seed(tokens)
    w13, w2 = torch.randn(EXPERTS, 2 * inner, HIDDEN), torch.randn(EXPERTS, HIDDEN, inner)
    x, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, 4)
    ids = torch.rand(tokens, EXPERTS).argsort(-1)[:, :4].to(torch.int32)
    got = run_experts(x, weights, ids, w13, w2)
    expected = experts_by_hand(x, weights, ids, w13, w2).float()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_experts_of_other_ranks_add_nothing() -> None:
    torch.manual_seed(1)
    w13, w2 = torch.randn(4, 2 * INNER, HIDDEN), torch.randn(4, HIDDEN, INNER)
    x, weights = torch.randn(6, HIDDEN), torch.rand(6, 3)
    ids = torch.tensor([[0, -1, 3], [-1, -1, -1], [2, 1, -1], [3, 0, 1], [-1, 2, 2], [1, -1, 0]])
    got = run_experts(x, weights, ids, w13, w2)
    expected = experts_by_hand(x, weights, ids, w13, w2).float()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not run_experts(x, weights, torch.full_like(ids, -1), w13, w2).any()


def test_bfloat16_experts_are_summed_in_float32() -> None:
    torch.manual_seed(2)
    w13, w2 = torch.randn(EXPERTS, 2 * INNER, HIDDEN), torch.randn(EXPERTS, HIDDEN, INNER)
    x, weights = torch.randn(9, HIDDEN), torch.rand(9, 4)
    ids = torch.rand(9, EXPERTS).argsort(-1)[:, :4]
    half = [t.bfloat16() for t in (x, w13, w2)]
    got = run_experts(half[0], weights, ids, half[1], half[2])
    assert got.dtype == torch.bfloat16
    expected = experts_by_hand(half[0], weights, ids, half[1], half[2])
    torch.testing.assert_close(got.double(), expected, rtol=0.03, atol=0.5)


def test_what_experts_made_is_summed_by_token_whatever_its_order() -> None:
    """Choices that are another rank's are missing."""
    generator = torch.Generator().manual_seed(0)
    tokens, k = 5, 3
    order = torch.randperm(tokens * k, generator=generator)[:11]
    out = torch.randn(11, HIDDEN, generator=generator)
    expected = torch.zeros(tokens, HIDDEN).index_add_(0, order // k, out)
    torch.testing.assert_close(sum_in_order(out, order, (tokens, k)), expected)
