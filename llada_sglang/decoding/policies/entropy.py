"""Entropy-bounded unmasking: as many positions as may depend on each other a little at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.order import GRID, ranks
from llada_sglang.decoding.parameters import Number
from llada_sglang.decoding.policy import RowView, Step, UnmaskingPolicy


class Entropy(UnmaskingPolicy):
    """The longest run, by ascending entropy, whose sum without its largest is at most `gamma`.

    That sum bounds the mutual information of the positions. Source: EB-Sampler, arXiv 2505.24857,
    equation 8, ordered by entropy.
    """

    name = "entropy"
    parameters: ClassVar = {"gamma": Number(0.1), **UnmaskingPolicy.COMMON}

    def reads_logits(self, values: Mapping[str, Any]) -> bool:
        return True

    def read(self, logits: Tensor, row: RowView) -> Mapping[str, Tensor]:
        return {"entropy": entropy(logits)}

    def propose(self, step: Step) -> Tensor:
        # Whole numbers, so that sums do not depend on the order they are taken in.
        own = (step.features["entropy"] * GRID).round()
        place = ranks(torch.where(step.masked, -own, -torch.inf))
        order = place.argsort(dim=-1)
        ascending = torch.where(step.masked, own, 0.0).gather(-1, order)
        total = ascending.cumsum(dim=-1)
        # In a forced block the largest does not count: at least one position always passes.
        bound = torch.where(step.least > 0, total - ascending, total)
        return (bound <= step.numbers["gamma"] * GRID).gather(-1, place)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats. logits: float32 [positions, vocab], -inf where illegal.

    Returns float64 [positions].
    """
    log = logits.double().log_softmax(dim=-1)
    return -torch.where(log == -torch.inf, 0.0, log.exp() * log).sum(dim=-1)
