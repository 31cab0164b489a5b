"""Sampling a candidate for every masked position, and how sure it is.

The rule is the published one (LLaDA2.0 `generate`, `_sample_with_temperature_topk_topp`): divide
the logits by the temperature, keep the top k, then the nucleus of mass top_p, take the softmax of
what is left, draw from it, and call the probability of the drawn token its confidence. min_p,
SGLang's own filter, comes last, relative to the most probable token. Temperature 0 is the argmax
with its probability under the unfiltered softmax.

Randomness is a pure function of (seed, absolute position, step), one number per draw, so that a
request's text does not depend on what else is in the batch, or on being retracted and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

FILTER_WIDTH = 4096
"""On a CPU filters look at this many of the most probable tokens before they sort all of them."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request draws its tokens.

    temperature: 0 for the argmax. top_k: 0 for all. top_p in (0, 1]; min_p in [0, 1].
    seed: any 64-bit integer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def filters(self) -> bool:
        """Whether any token may be cut off."""
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


def uniform(seed: int, positions: Sequence[int] | np.ndarray, step: int) -> np.ndarray:
    """One number in [0, 1) per position: splitmix64 over (seed, position, step).

    positions: absolute positions. Returns float64 [positions].
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
        state = _mix(state ^ np.asarray(positions, dtype=np.uint64))
        state = _mix(state ^ np.uint64(step))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per position; temperature must be above 0.

    logits: float32 [positions, vocab], the mask id and other illegal ids at -inf, neither NaN
    nor +inf.
    noise: float64 [positions], in [0, 1). Returns (token int64 [positions], confidence float32
    [positions]); a position without any legal id has confidence 0.
    """
    scaled = logits.double() / sampling.temperature
    illegal = (scaled == -torch.inf).all(dim=-1, keepdim=True)
    probability = torch.where(illegal, 0.0, scaled.softmax(dim=-1))
    if sampling.filters:
        ids, kept = _filter(probability, sampling)
    else:
        ids, kept = None, probability
    total = kept.cumsum(dim=-1)
    target = noise[:, None] * total[:, -1:]
    # The first place whose cumulative mass exceeds the target; it has mass of its own.
    place = (total <= target).sum(dim=-1, keepdim=True).clamp(max=total.shape[1] - 1)
    confidence = kept.gather(1, place)[:, 0] / total[:, -1]
    token = place if ids is None else ids.gather(1, place)
    return token[:, 0], confidence.nan_to_num(nan=0.0).float()


def _filter(probability: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sort by probability, lower ids first among equals, and zero what the filters cut.

    Returns (ids, probabilities), both [positions, width]; only a prefix of each row is not 0.
    """
    vocab = probability.shape[1]
    if sampling.top_k >= vocab:
        sampling = replace(sampling, top_k=0)
    width = vocab
    if can_look(probability):
        width = min(vocab, max(FILTER_WIDTH, 2 * sampling.top_k))
    ids, kept, floor = _cut(probability, sampling, width)
    if width < vocab:
        least = torch.where(kept > 0.0, kept, 1.0).amin(dim=-1, keepdim=True)
        if not (least > floor).all():
            ids, kept, _ = _cut(probability, sampling, vocab)
    return ids, kept


def can_look(values: Tensor) -> bool:
    """Whether a branch may depend on them: on an accelerator the host would wait for it, and the
    next step is launched before this one has run."""
    return values.device.type == "cpu"


def _cut(probability: Tensor, sampling: Sampling, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """`_filter` among the `width` most probable; also what the rest is at most, [positions, 1]."""
    vocab = probability.shape[1]
    if width < vocab:
        # topk names any of several equals; what ties with its last one is not decided here.
        values, ids = probability.topk(width, dim=-1)
        floor = values[:, -1:]
        order = ids.argsort(dim=-1, stable=True)
        ids, values = ids.gather(1, order), values.gather(1, order)
        order = values.argsort(dim=-1, descending=True, stable=True)
        ids, values = ids.gather(1, order), values.gather(1, order)
    else:
        floor = torch.zeros_like(probability[:, :1])
        values, ids = probability.sort(dim=-1, descending=True, stable=True)
    kept = values
    if sampling.top_k:
        kept = torch.where(
            torch.arange(width, device=kept.device) < sampling.top_k, kept, torch.zeros_like(kept)
        )
    if sampling.top_p < 1.0:
        # The token that crosses top_p is kept, and with it always at least one.
        mass = kept.sum(dim=-1, keepdim=True) if sampling.top_k else 1.0
        before = kept.cumsum(dim=-1) - kept
        kept = torch.where(before < sampling.top_p * mass, kept, 0.0)
    if sampling.min_p > 0.0:
        kept = torch.where(kept >= sampling.min_p * kept[:, :1], kept, 0.0)
    return ids, kept, floor
