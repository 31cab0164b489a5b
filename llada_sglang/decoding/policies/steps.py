"""A fixed number of positions per step, whatever their confidence."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.policy import Step, UnmaskingPolicy


class Steps(UnmaskingPolicy):
    """The schedule alone: the best B / steps positions.

    Source: LLaDA, arXiv 2502.09992, low-confidence remasking within a block.
    """

    name = "steps"
    parameters: ClassVar = {**UnmaskingPolicy.COMMON}

    def propose(self, step: Step) -> Tensor:
        return torch.zeros_like(step.masked)
