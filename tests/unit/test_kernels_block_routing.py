"""The fused block routing of LLaDA2.2, through Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import interpreted_results
from routing_cases import BROKEN, CASES, twin


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_results("routing_cases", tmp_path_factory.mktemp("kernel") / "results.pt")


@pytest.mark.parametrize("name", [name for name in CASES if name != "broken"])
def test_one_launch_chooses_the_experts_of_its_twin(name: str, interpreted: dict[str, Any]) -> None:
    weights, ids = interpreted[name]
    expected_weights, expected_ids = twin(CASES[name])
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-6, atol=0)


def test_of_equal_experts_the_lower_ids_are_admitted_and_chosen(
    interpreted: dict[str, Any],
) -> None:
    _, ids = interpreted["all-equal"]
    assert ids.tolist() == [[0, 1, 2, 3]] * 32


def test_what_is_nan_takes_no_expert_that_is_not_there(interpreted: dict[str, Any]) -> None:
    weights, ids = interpreted["broken"]
    assert bool(((ids >= 0) & (ids < 64)).all())
    assert all(len(set(row)) == BROKEN.top_k for row in ids.tolist())
    # Other tokens of such a block, and other blocks, are routed among what they know of.
    known = torch.cat([torch.arange(32, 40), torch.arange(41, 96)])
    assert bool(weights[known].isfinite().all())
    assert not bool((ids[64:] == 3).any())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"router_logits": torch.zeros(64, 32).t()}, "contiguous rows"),
        ({"router_logits": torch.zeros(32, 64, dtype=torch.float64)}, "float64"),
        ({"expert_bias": torch.zeros(32)}, r"expert_bias must be \[64\]"),
        ({"block_size": 24}, "power of two, got 24"),
        ({"expert_capacity": 3}, "got 4, 3 and 64"),
        ({"expert_capacity": 65}, "got 4, 65 and 64"),
    ],
)
def test_what_cannot_be_routed_is_refused(change: dict[str, Any], reason: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llada_sglang.kernels.block_routing import fused_route_blocks

    arguments: dict[str, Any] = {
        "router_logits": torch.zeros(32, 64),
        "expert_bias": torch.zeros(64),
        "block_size": 32,
        "expert_capacity": 16,
        "top_k": 4,
    }
    with pytest.raises(ValueError, match=reason):
        fused_route_blocks(**arguments | change)
