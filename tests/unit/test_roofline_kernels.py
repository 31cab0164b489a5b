"""Bytes of our kernels, and what a fused head could save, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llada_sglang.roofline import kernels
from llada_sglang.roofline.gpus import GPUS
from llada_sglang.roofline.shape import BUILT_IN, Shape

MINI, FLASH = (Shape.of(BUILT_IN[name]) for name in ("mini", "flash"))
H200 = replace(GPUS["h200"], bandwidth=4.3e12)


def test_statistics_read_every_logit_once() -> None:
    cost = kernels.vocabulary_statistics(32, 157_184)
    assert cost.read == 32 * 157_184 * 2
    assert cost.written == 32 * 16
    assert 1e6 * cost.seconds(4.3e12) == pytest.approx(2.34, abs=0.01)


def test_a_step_of_one_block_moves_1304_bytes() -> None:
    # 32 x (8 + 1 + 8 + 4) in, 32 x (8 + 1 + 8) out, 8 for the flag, 10 numbers.
    assert kernels.threshold_update(1, 32).bytes == 672 + 544 + 8 + 80
    assert kernels.threshold_update(7, 32).bytes == 7 * 1304


def test_routing_reads_a_router_s_logits_once() -> None:
    cost = kernels.block_routing(64, MINI)
    assert (cost.read, cost.written) == (65 * 256 * 4, 64 * 8 * 8)


def test_rotary_reads_the_projection_and_writes_queries_and_the_pool() -> None:
    # A token of mini: 24 heads of 256 B in, 16 heads out, 8 to the pool, angles and indices.
    token = 24 * 256 + 16 * 256 + 8 * 256 + 256 + 16
    cost = kernels.rotate_and_store(10, 16, 4, 128, 64)
    assert cost.bytes == 10 * token + 512
    halved = kernels.rotate_and_store(10, 16, 4, 128, 64, pool=1)
    assert cost.bytes - halved.bytes == 10 * 8 * 128


@pytest.mark.parametrize(
    ("positions", "shape", "separate", "saved"),
    [
        # Memory-bound: 644 MB of weights, twice 10 MB of logits.
        (32, MINI, 154.4, 4.7),
        # Compute-bound: the logits are written behind the product, and read after it.
        (1024, MINI, 741.5, 74.9),
        (1024, FLASH, 1408.1, 74.9),
    ],
)
def test_a_fused_head_saves_what_logits_cost(
    positions: int, shape: Shape, separate: float, saved: float
) -> None:
    fusion = kernels.head_fusion(positions, shape, H200)
    assert 1e6 * fusion.separate == pytest.approx(separate, abs=0.2)
    assert 1e6 * fusion.saved == pytest.approx(saved, abs=0.1)
    assert fusion.bound == pytest.approx(1 - saved / separate, abs=1e-3)


def test_the_ceiling_of_a_fused_head_is_a_tenth_of_the_head() -> None:
    """What docs/gpu.md argues with."""
    for shape, most in ((MINI, 0.115), (FLASH, 0.06)):
        savings = [1 - kernels.head_fusion(2**n, shape, H200).bound for n in range(13)]
        assert max(savings) < most


def test_tensor_parallel_ranks_share_the_head() -> None:
    whole, quarter = (kernels.head_fusion(1024, MINI, H200, tp) for tp in (1, 4))
    assert whole.separate == pytest.approx(4 * quarter.separate, rel=0.01)
