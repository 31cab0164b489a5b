"""Sampling and penalties: exact distributions, filters against the reference, pure randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sglang.decoding import sampling as sampling_module
from llada_sglang.decoding.penalties import Penalties, add_bias, penalize
from llada_sglang.decoding.sampling import Sampling, draw, uniform
from llada_sglang.reference.tokens import TokenRules, choose, noise, penalized

DRAWS = 20_000


def chi_square_limit(freedom: int) -> float:
    """Exceeded once in about 3e5 runs (Wilson and Hilferty's approximation at 4.5 sigma)."""
    term = 2 / (9 * freedom)
    return freedom * (1 - term + 4.5 * math.sqrt(term)) ** 3


@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=2.0, seed=3, top_k=5),
        Sampling(temperature=1.0, seed=4, top_p=0.8),
        Sampling(temperature=1.3, seed=5, top_k=7, top_p=0.9, min_p=0.05),
        Sampling(temperature=1.0, seed=6, min_p=0.2),
    ],
)
def test_the_distribution_is_the_exact_one(options: Sampling) -> None:
    logits = torch.randn(11, generator=torch.Generator().manual_seed(0)) * 1.5
    logits[3] = -torch.inf
    exact = (logits.double() / options.temperature).softmax(-1)
    order = exact.argsort(descending=True)
    kept = exact[order]
    if options.top_k:
        kept[options.top_k :] = 0
    kept = torch.where(kept.cumsum(0) - kept < options.top_p * kept.sum(), kept, 0.0)
    kept = torch.where(kept >= options.min_p * kept[0], kept, 0.0)
    exact = torch.zeros_like(exact).scatter_(0, order, kept / kept.sum())

    numbers = torch.from_numpy(uniform(options.seed, np.arange(DRAWS), 0))
    token, confidence = draw(logits.expand(DRAWS, -1), options, numbers)
    assert torch.allclose(confidence.double(), exact[token], atol=1e-6)
    seen = torch.bincount(token, minlength=11).double()
    assert not seen[exact == 0].any()
    live = exact > 0
    statistic = ((seen - DRAWS * exact) ** 2 / (DRAWS * exact))[live].sum()
    assert statistic < chi_square_limit(int(live.sum()) - 1)


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**31),
    step=st.integers(0, 2**20),
)
def test_the_noise_is_the_reference_s(seed: int, position: int, step: int) -> None:
    (number,) = uniform(seed, [position], step)
    assert number == noise(seed, position, step)
    assert 0.0 <= number < 1.0


def test_the_noise_of_neighbours_is_independent() -> None:
    numbers = np.stack([uniform(seed, np.arange(64), step) for seed in range(8) for step in (0, 1)])
    assert len(np.unique(numbers)) == numbers.size
    assert abs(np.corrcoef(numbers)[np.triu_indices(16, 1)]).max() < 0.6
    assert abs(numbers.mean() - 0.5) < 0.05


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 2, 5, 100]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    width=st.sampled_from([2, 8, 4096]),
)
def test_draws_equal_the_reference(
    data: st.DataObject, temperature: float, top_k: int, top_p: float, min_p: float, width: int
) -> None:
    vocab = 40
    seed = data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    # Few levels, so that ties are common at every cut.
    logits = torch.randint(-3, 4, (6, vocab), generator=generator).float()
    logits[:, 7] = -torch.inf
    options = Sampling(temperature, top_k, top_p, min_p, seed)
    rules = TokenRules(temperature, top_k, top_p, min_p, seed)
    numbers = uniform(seed, np.arange(6), 3)
    before = sampling_module.FILTER_WIDTH
    sampling_module.FILTER_WIDTH = width
    try:
        token, confidence = draw(logits, options, torch.from_numpy(numbers))
    finally:
        sampling_module.FILTER_WIDTH = before
    for row in range(6):
        expected, sureness = choose(logits[row], rules, float(numbers[row]))
        assert int(token[row]) == expected
        assert float(confidence[row]) == pytest.approx(sureness, abs=1e-6)


def test_a_position_without_a_legal_token_has_no_confidence() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[1, 2] = 0.0
    token, confidence = draw(logits, Sampling(1.0, top_p=0.5), torch.tensor([0.9, 0.9]).double())
    assert confidence.tolist() == [0.0, 1.0]
    assert int(token[1]) == 2


@given(
    frequency=st.sampled_from([0.0, 0.5, -1.0]),
    presence=st.sampled_from([0.0, 1.5]),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    bias=st.sampled_from([(), ((3, 2.5), (0, -100.0))]),
    tokens=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    split=st.integers(0, 20),
    holes=st.sets(st.integers(0, 19)),
)
def test_penalties_equal_the_reference(
    frequency: float,
    presence: float,
    repetition: float,
    bias: tuple[tuple[int, float], ...],
    tokens: list[int],
    split: int,
    holes: set[int],
) -> None:
    start = min(split, len(tokens))
    resolved = [i < start or i not in holes for i in range(len(tokens))]
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(len(tokens)))
    rules = TokenRules(
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    output = [t for i, t in enumerate(tokens) if i >= start and resolved[i]]
    expected = torch.stack([penalized(row, rules, tokens[:start], output) for row in logits])
    penalties = Penalties(frequency, presence, repetition, bias)
    if penalties.counts:
        penalize(logits, penalties, torch.tensor(tokens), torch.tensor(resolved), start)
    if bias:
        ids, values = zip(*bias, strict=True)
        add_bias(logits, torch.tensor(ids), torch.tensor(values))
    assert torch.allclose(logits, expected, atol=1e-5)
