"""The fused step, block routing and rotary on the device: the interpreter's cases, and promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rotary_cases
import routing_cases
import threshold_cases
import torch

from llada_sglang.kernels.block_routing import fused_route_blocks
from llada_sglang.kernels.rotary import rotate_and_store
from llada_sglang.kernels.threshold import CanvasTensors, threshold_update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("name", threshold_cases.CASES)
def test_a_step_leaves_every_bit_as_its_twin_does(name: str) -> None:
    case = threshold_cases.CASES[name]
    got, expected = threshold_cases.fused(case, "cuda"), threshold_cases.twin(case)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in routing_cases.CASES if name != "broken"])
def test_blocks_are_routed_as_by_the_twin(name: str) -> None:
    case = routing_cases.CASES[name]
    weights, ids = routing_cases.fused(case, "cuda")
    expected_weights, expected_ids = routing_cases.twin(case)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-7)


def test_blocks_are_routed_as_by_the_host() -> None:
    """Where every logit is a number, the host's two kernels follow the same rule."""
    host = pytest.importorskip("sglang.srt.models.llada2")
    logits = torch.randn(40 * 32 + 5, 256, device="cuda")
    bias = 0.3 * torch.randn(256, device="cuda")
    theirs_weights, theirs_ids = host.block_topk_triton(logits, bias, 32, 48, 8)
    weights, ids = fused_route_blocks(logits, bias, block_size=32, expert_capacity=48, top_k=8)
    # The exponentials differ in their last bits, which may turn a choice between neighbours.
    assert float((ids != theirs_ids).float().mean()) < 1e-3
    same = (ids == theirs_ids).all(dim=1)
    torch.testing.assert_close(weights[same], theirs_weights[same], rtol=1e-5, atol=1e-7)


def test_what_is_nan_takes_no_expert_that_is_not_there() -> None:
    _, ids = routing_cases.fused(routing_cases.BROKEN, "cuda")
    assert bool(((ids >= 0) & (ids < 64)).all())
    assert all(len(set(row)) == routing_cases.BROKEN.top_k for row in ids.tolist())


@pytest.mark.parametrize("name", rotary_cases.CASES)
def test_rotation_and_store_are_the_twins(name: str) -> None:
    """Multiply-adds are fused here, and the root is an approximation: a rounding may turn."""
    case = rotary_cases.CASES[name]
    got, expected = rotary_cases.fused(case, "cuda"), rotary_cases.twin(case)
    step = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(case.dtype, 1e-5)
    torch.testing.assert_close(got[0], expected[0], rtol=step, atol=step / 4 * case.loud)
    if case.pool.itemsize == 1:  # one rounding turned is a whole step of a float8
        assert float((got[1] != expected[1]).float().mean().nan_to_num()) < 0.02
    else:
        torch.testing.assert_close(got[1], expected[1], rtol=step, atol=step / 4 * case.loud)
    assert torch.equal(got[2], expected[2])


def calls() -> dict[str, Callable[[], Any]]:
    """Each kernel at the size of 64 rows of LLaDA2.0-mini; called again, it does the same."""
    step = threshold_cases.random_case(1)
    table = CanvasTensors(*(part.cuda() for part in step.table))
    rows = step.rows.cuda()
    candidate, confidence = step.candidate.cuda(), step.confidence.cuda()
    logits, bias = torch.randn(64 * 32, 256, device="cuda"), torch.zeros(256, device="cuda")
    rotary = rotary_cases.Case(rotary_cases.MINI)
    qkv, positions, cos_sin, target, norm = rotary.tensors("cuda")
    return {
        "threshold": lambda: threshold_update(table, *rows, candidate, confidence),
        "routing": lambda: fused_route_blocks(
            logits, bias, block_size=32, expert_capacity=48, top_k=8
        ),
        "rotary": lambda: rotate_and_store(qkv, positions, cos_sin, rotary.shape, target, norm),
    }


@pytest.mark.parametrize("name", ["threshold", "routing", "rotary"])
def test_no_host_sync_and_captured_in_a_graph_it_replays(name: str) -> None:
    call = calls()[name]
    call()  # compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    graph.replay()
    torch.cuda.synchronize()
    if name != "threshold":  # each step of a canvas is another one
        for again, once in zip(_tensors(held), _tensors(first), strict=True):
            assert torch.equal(again, once)


def _tensors(found: Any) -> tuple[torch.Tensor, ...]:
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)
