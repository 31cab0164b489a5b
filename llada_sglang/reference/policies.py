"""What each unmasking policy takes in a step, one block at a time: the definition.

Nothing here is shared with `llada_sglang.decoding`. A policy object belongs to one block; it sees
the candidates of the block's masked positions by their place in the block, from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from llada_sglang.reference.tokens import Candidate

Value = float | int | str
Candidates = Mapping[int, Candidate]

EDITING = ("edit", "levenshtein")
PRESETS = {"quality": (0.7, 0.5), "speed": (0.5, 0.0)}
DEFAULTS: dict[str, dict[str, Value]] = {
    "threshold": {"threshold": 0.95},
    "steps": {},
    "entropy": {"gamma": 0.1},
    "hierarchical": {"threshold": 0.95, "low_threshold": 0.5},
    "credit": {"threshold": 0.95, "credit_alpha": 0.7, "boost_gamma": 0.2, "decay_beta": 0.8},
    "factor": {"factor": 1.0},
    "edit": {
        "preset": "quality",
        "threshold": PRESETS["quality"][0],
        "edit_threshold": PRESETS["quality"][1],
        "max_post_edit_steps": 16,
        "penalty_lambda": 0.0,
    },
    "levenshtein": {"threshold": 0.5, "edit_threshold": 0.0, "max_post_edit_steps": 16},
}
CREDIT_STEPS = 32


def settings(
    policy: str, parameters: Mapping[str, Value] | None, threshold: float | None
) -> dict[str, Value]:
    """All parameters of a policy: those given, else `threshold` where it has one, else defaults.

    Raises ValueError for an unknown policy, parameter or preset.
    """
    if policy not in DEFAULTS:
        raise ValueError(f"unknown policy {policy!r}; there are {', '.join(DEFAULTS)}")
    given = dict(parameters or {})
    values = dict(DEFAULTS[policy])
    if unknown := sorted(given.keys() - values.keys()):
        raise ValueError(f"{policy} has no {', '.join(unknown)}; it has {', '.join(values)}")
    if policy == "edit":
        preset = given.get("preset", values["preset"])
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        values["threshold"], values["edit_threshold"] = PRESETS[str(preset)]
    if threshold is not None and "threshold" in values:
        values["threshold"] = threshold
    return values | given


def grade(probability: float) -> float:
    """Probabilities closer than 2^-14 of their value count as equal, and the lower position wins.

    Our addition to the published rule: behind an empty prompt all masked positions are equal in
    exact arithmetic, and rounding must not choose among them.
    """
    return round(math.log(probability) * 2**14) if probability > 0.0 else -math.inf


def best_first(found: Candidates) -> list[int]:
    """Places by descending confidence, the lower one first among equals."""
    return sorted(found, key=lambda at: (-grade(found[at].confidence), at))


def above(found: Candidates, threshold: float) -> list[int]:
    """Places with a confidence above the threshold."""
    return [at for at in sorted(found) if found[at].confidence > threshold]


def entropy(logits: Tensor) -> int:
    """Entropy of softmax(logits) of logits [vocab], in whole steps of 2^-14 nats."""
    return round(float(torch.special.entr(logits.double().softmax(-1)).sum()) * 2**14)


class Policy(ABC):
    """A policy at work on one block."""

    def adjust(self, at: int, logits: Tensor) -> Tensor:
        """The logits [vocab] of a masked place as the choice shall see them; called every step."""
        return logits

    @abstractmethod
    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        """The set H of masked places."""

    def take(self, found: Candidates, *, least: int, forced: bool) -> list[int]:
        """The places to unmask: H, or the best `least` where H has fewer."""
        chosen = self.propose(found, forced=forced)
        return chosen if len(chosen) >= least else best_first(found)[:least]


class Threshold(Policy):
    """Everything above the threshold. Source: LLaDA2.0 report, section 5.4."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        return above(found, self.threshold)


class Steps(Policy):
    """Nothing but the schedule. Source: LLaDA, low-confidence remasking."""

    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        return []


class Entropy(Policy):
    """The positions whose joint uncertainty is bounded. Source: EB-Sampler, arXiv 2505.24857."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        nats = {at: entropy(candidate.logits) for at, candidate in found.items()}
        chosen: list[int] = []
        total = 0
        for at in sorted(nats, key=lambda at: (nats[at], at)):
            counted = total if forced else total + nats[at]
            if counted > self.gamma * 2**14:
                break
            chosen.append(at)
            total += nats[at]
        return chosen


class Hierarchical(Policy):
    """Everything above the threshold, and the best of each run of masks. Source: dInfer."""

    def __init__(self, threshold: float, low_threshold: float) -> None:
        self.threshold, self.low_threshold = threshold, low_threshold

    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        chosen = set(above(found, self.threshold))
        run: dict[int, Candidate] = {}
        for at in sorted(found):
            run[at] = found[at]
            if at + 1 not in found:
                best = best_first(run)[0]
                if found[best].confidence > self.low_threshold:
                    chosen.add(best)
                run = {}
        return sorted(chosen)


class Credit(Threshold):
    """Tokens that keep being the argmax of their position gain probability. Source: dInfer.

    The argmax and its probability that earn credit are those at temperature 1, before the credit.
    """

    def __init__(
        self, threshold: float, credit_alpha: float, boost_gamma: float, decay_beta: float
    ) -> None:
        super().__init__(threshold)
        self.alpha, self.gamma, self.beta = credit_alpha, boost_gamma, decay_beta
        self.history: dict[int, list[tuple[int, float]]] = {}

    def adjust(self, at: int, logits: Tensor) -> Tensor:
        top = int(logits.argmax())
        history = self.history.setdefault(at, [])
        history.append((top, float(logits.softmax(-1)[top])))
        credit: dict[int, float] = {}
        for age, (token, q) in enumerate(reversed(history[-CREDIT_STEPS:])):
            credit[token] = credit.get(token, 0.0) + self.beta**age * q**self.gamma
        out = logits.clone()
        for token, c in credit.items():
            out[token] += self.alpha * math.log1p(c)
        return out


class Factor(Policy):
    """The longest prefix of the best with (j + 1)(1 - p_j) < factor. Source: Fast-dLLM."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def propose(self, found: Candidates, *, forced: bool) -> list[int]:
        chosen: list[int] = []
        for j, at in enumerate(best_first(found), start=1):
            if not (j + 1) * (1.0 - found[at].confidence) < self.factor:
                break
            chosen.append(at)
        return chosen


_UNMASKING: dict[str, type[Policy]] = {
    "threshold": Threshold,
    "steps": Steps,
    "entropy": Entropy,
    "hierarchical": Hierarchical,
    "credit": Credit,
    "factor": Factor,
}


def unmasking(policy: str, values: Mapping[str, Value]) -> Policy:
    """A new object of an unmasking policy, for one block; values as `settings` returns them."""
    return _UNMASKING[policy](**{name: float(value) for name, value in values.items()})
