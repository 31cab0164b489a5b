"""Fast-dLLM's factor rule: the more positions at once, the surer each has to be."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.order import grades, ranks
from llada_sglang.decoding.parameters import Number
from llada_sglang.decoding.policy import Step, UnmaskingPolicy


class Factor(UnmaskingPolicy):
    """The m best, m the largest with (j + 1)(1 - p_j) < factor for every j up to m.

    Source: Fast-dLLM, arXiv 2505.22618, section 3.3, factor-based parallel decoding.
    """

    name = "factor"
    parameters: ClassVar = {"factor": Number(1.0), **UnmaskingPolicy.COMMON}

    def propose(self, step: Step) -> Tensor:
        place = ranks(grades(step.confidence, step.masked))
        order = place.argsort(dim=-1)
        descending = step.confidence.double().gather(-1, order)
        j = torch.arange(1, place.shape[-1] + 1, device=place.device)
        passes = (j + 1) * (1.0 - descending) < step.numbers["factor"]
        passes &= step.masked.gather(-1, order)
        return passes.long().cumprod(dim=-1).bool().gather(-1, place)
