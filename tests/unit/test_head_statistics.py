"""lm_head and statistics in one pass equal the statistics of the logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sglang.decoding.statistics import ShardStatistics, merge_shards, shard_statistics
from llada_sglang.kernels import head_statistics as module
from llada_sglang.kernels.head_statistics import head_statistics


def same(ours: ShardStatistics, plain: ShardStatistics) -> None:
    assert torch.equal(ours.token, plain.token)
    torch.testing.assert_close(ours.maximum, plain.maximum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sum_exp, plain.sum_exp, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    positions=st.integers(1, 70),
    vocab=st.sampled_from([1, 7, 1024, 1025, 5000]),
    start=st.sampled_from([0, 4000]),
    mask=st.integers(0, 9000),
    seed=st.integers(0, 100),
    tile=st.sampled_from([1, 1 << 12, 1 << 17]),
)
def test_equal_to_the_statistics_of_the_logits(
    positions: int, vocab: int, start: int, mask: int, seed: int, tile: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Small integers: products are exact in any order, and ties are everywhere.
    hidden = torch.randint(-2, 3, (positions, 8), generator=generator).float()
    weight = torch.randint(-2, 3, (vocab, 8), generator=generator).float()
    before = module.TILE_ELEMENTS, module.MIN_TILE
    module.TILE_ELEMENTS, module.MIN_TILE = tile, 64
    try:
        ours = head_statistics(hidden, weight, vocab_start=start, mask_id=mask)
    finally:
        module.TILE_ELEMENTS, module.MIN_TILE = before
    same(ours, shard_statistics(hidden @ weight.t(), vocab_start=start, mask_id=mask))


@pytest.mark.parametrize("positions", [1, 3, 40, 70])
def test_threads_share_the_whole_vocabulary(positions: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        generator = torch.Generator().manual_seed(positions)
        hidden = torch.randn(positions, 4, generator=generator)
        weight = torch.randn(3 * module.MAX_TILE + 17, 4, generator=generator)
        for mask in (5, 2 * module.MAX_TILE, len(weight) - 1):
            ours = head_statistics(hidden, weight, vocab_start=0, mask_id=mask)
            same(ours, shard_statistics(hidden @ weight.t(), vocab_start=0, mask_id=mask))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers(value: float) -> None:
    hidden = torch.ones(3, 2)
    weight = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    weight[7, 0] = value
    ours = head_statistics(hidden, weight, vocab_start=0, mask_id=3)
    plain = shard_statistics(hidden @ weight.t(), vocab_start=0, mask_id=3)
    assert torch.equal(ours.token, plain.token)
    assert torch.equal(ours.maximum, plain.maximum)


def test_no_positions() -> None:
    ours = head_statistics(torch.empty(0, 4), torch.randn(100, 4), vocab_start=0, mask_id=1)
    assert [tuple(part.shape) for part in ours] == [(0,)] * 3


def test_merged_shards_are_the_statistics_of_all() -> None:
    logits = torch.randint(-3, 3, (5, 60), generator=torch.Generator().manual_seed(0)).float()
    parts = [
        shard_statistics(logits[:, a : a + 20].clone(), vocab_start=a, mask_id=33)
        for a in (0, 20, 40)
    ]
    merged = merge_shards(ShardStatistics(*map(torch.stack, zip(*parts, strict=True))))
    same(merged, shard_statistics(logits, vocab_start=0, mask_id=33))
