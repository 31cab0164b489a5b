"""How a request's tokens are chosen beyond the argmax: the definition, one position at a time.

Nothing here is shared with `llada_sglang.decoding`; the engine must choose the same tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FORBIDDEN = -1e30
_WORD = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Sampling, penalties and bias of one request, in SGLang's names and ranges.

    temperature 0 takes the argmax; top_k 0 keeps all. seed: any integer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0


GREEDY = TokenRules()


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a position would become.

    confidence: the token's probability after temperature and filters. logprob: its
    log-probability after temperature and before any filter. logits: float32 [vocab], those the
    token was chosen from.
    """

    token: int
    confidence: float
    logprob: float
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Cell:
    """One position of the canvas; `token` is None where it is masked.

    original: of a mask, whether it was there when its block began. step, confidence, logprob: of
    the step of its block that wrote the token.
    """

    token: int | None = None
    prompt: bool = False
    original: bool = True
    step: int = -1
    confidence: float = 0.0
    logprob: float = 0.0

    @property
    def masked(self) -> bool:
        return self.token is None


def written(candidate: Candidate, step: int) -> Cell:
    """The cell that holds a candidate from this step of its block on."""
    return Cell(
        candidate.token, step=step, confidence=candidate.confidence, logprob=candidate.logprob
    )


def legal(logits: Tensor, excluded: Collection[int]) -> Tensor:
    """A copy of logits [vocab] in float32 without the excluded ids; NaN is -inf, as they are.

    Where nothing else is left, the ids that are not excluded are all equal, so that a position
    always has a candidate.
    """
    out = logits.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    out[list(excluded)] = -torch.inf
    if out.max() == -torch.inf:
        out[:] = 0.0
        out[list(excluded)] = -torch.inf
    return out


def candidate_of(logits: Tensor, rules: TokenRules, number: float) -> Candidate:
    """The candidate drawn with `number` in [0, 1) from the logits [vocab] of one position."""
    token, confidence = choose(logits, rules, number)
    return _candidate(token, confidence, logits, rules)


def nth_likeliest(candidate: Candidate, rank: int, rules: TokenRules) -> Candidate:
    """The token of a rank from 1, by logit, the lower id first among equals, never at -inf.

    Its confidence is its probability at temperature 1. With fewer tokens it is the last of them.
    """
    values = candidate.logits.tolist()
    order = sorted((-v, token) for token, v in enumerate(values) if v > -math.inf)
    token = order[min(rank, len(order)) - 1][1]
    return _candidate(token, float(candidate.logits.softmax(-1)[token]), candidate.logits, rules)


def _candidate(token: int, confidence: float, logits: Tensor, rules: TokenRules) -> Candidate:
    scaled = logits.double() / (rules.temperature or 1.0)
    return Candidate(token, confidence, float(scaled.log_softmax(-1)[token]), logits)


def splitmix64(value: int) -> int:
    """One output of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) started at `value`."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def noise(seed: int, position: int, step: int) -> float:
    """The number in [0, 1) that decides the draw at a position in a step of its block."""
    state = splitmix64(seed & _WORD)
    return (splitmix64(splitmix64(state ^ position) ^ step) >> 11) * 2.0**-53


def penalized(
    logits: Tensor, rules: TokenRules, prompt: Sequence[int], output: Sequence[int]
) -> Tensor:
    """Logits [vocab] of one position, given the prompt and the output tokens resolved so far."""
    out = logits.clone()
    if rules.repetition_penalty != 1.0:
        for token in {*prompt, *output}:
            value = out[token]
            out[token] = (
                value / rules.repetition_penalty if value > 0 else value * rules.repetition_penalty
            )
    for token, count in Counter(output).items():
        out[token] -= rules.frequency_penalty * count + rules.presence_penalty
    for token, bias in rules.logit_bias:
        out[token] += bias
    return out


def choose(logits: Tensor, rules: TokenRules, number: float) -> tuple[int, float]:
    """A token from the logits [vocab] of one position, and its probability."""
    if rules.temperature == 0.0:
        token = int(logits.argmax())
        return token, float(logits.softmax(-1)[token])
    probability = (logits.double() / rules.temperature).softmax(-1)
    if not (rules.top_k or rules.top_p < 1.0 or rules.min_p > 0.0):
        return _draw(range(len(probability)), probability.tolist(), number)
    ranking = sorted(enumerate(probability.tolist()), key=lambda item: (-item[1], item[0]))
    kept = ranking[: rules.top_k] if rules.top_k else ranking
    mass, total, nucleus = 0.0, sum(p for _, p in kept), []
    for token, p in kept:
        if rules.top_p < 1.0 and mass >= rules.top_p * total:
            break
        nucleus.append((token, p))
        mass += p
    kept = [(token, p) for token, p in nucleus if p >= rules.min_p * nucleus[0][1]]
    return _draw([token for token, _ in kept], [p for _, p in kept], number)


def _draw(
    tokens: Sequence[int], probabilities: Sequence[float], number: float
) -> tuple[int, float]:
    total = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)
    place = int(torch.searchsorted(total, number * total[-1], right=True))
    place = min(place, len(tokens) - 1)
    return tokens[place], probabilities[place] / float(total[-1])
