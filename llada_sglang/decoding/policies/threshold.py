"""LLaDA2.0's policy: unmask what is confident enough."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llada_sglang.decoding.parameters import Number
from llada_sglang.decoding.policy import Step, UnmaskingPolicy


class Threshold(UnmaskingPolicy):
    """Positions whose confidence is above `threshold`. Source: LLaDA2.0 report, section 5.4."""

    name = "threshold"
    parameters: ClassVar = {
        "threshold": Number(0.95, high=1.0, open_low=True),
        **UnmaskingPolicy.COMMON,
    }

    def propose(self, step: Step) -> Tensor:
        return step.confidence > step.numbers["threshold"]
