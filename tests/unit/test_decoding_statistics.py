"""Statistics per vocabulary shard, against a float64 softmax over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from llada_sglang.decoding.statistics import ShardStatistics, combine_shards, shard_statistics

VOCAB = 157184
MASK = 156895


def reduce(logits, shards, mask_id=MASK):
    width = logits.shape[1] // shards
    parts = [
        shard_statistics(
            logits[:, i * width : (i + 1) * width].clone(), vocab_start=i * width, mask_id=mask_id
        )
        for i in range(shards)
    ]
    return combine_shards(ShardStatistics(*(torch.stack(f) for f in zip(*parts, strict=True))))


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_real_vocabulary_gives_the_same_over_any_number_of_shards(shards):
    torch.manual_seed(0)
    logits = torch.randn(5, VOCAB) * 4
    logits[0, MASK] = 100.0  # the model's favourite, and never legal
    logits[1, 7], logits[1, 90000] = 60.0, 60.0  # a tie across shards: the lower id
    candidate, confidence = reduce(logits, shards)
    legal = logits.double()
    legal[:, MASK] = -torch.inf
    expected = legal.softmax(dim=-1)
    assert candidate.tolist() == legal.argmax(dim=-1).tolist()
    assert candidate[1] == 7
    torch.testing.assert_close(confidence.double(), expected.amax(dim=-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shards", [1, 2])
def test_bad_logits_neither_decide_nor_stall(shards):
    logits = torch.full((5, 8), -torch.inf)
    logits[0, 3] = 1.0  # one legal id
    logits[1, :] = torch.nan  # nothing but NaN
    logits[2, 2], logits[2, 5] = torch.nan, 0.5  # NaN beside a legal id
    logits[3, 6], logits[3, 1] = torch.inf, 2.0  # an infinite logit is certain
    candidate, confidence = reduce(logits, shards, mask_id=0)
    assert candidate[[0, 2, 3]].tolist() == [3, 5, 6]
    assert confidence.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert ((candidate >= 0) & (candidate < 8)).all()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[3e38, 2e38, 1.0, 0.0]])
    candidate, confidence = reduce(logits, 2, mask_id=3)
    assert candidate.item() == 0
    assert confidence.item() == 1.0
