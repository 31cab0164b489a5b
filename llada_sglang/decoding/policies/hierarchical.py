"""One position of every run of masks: far from each other, so hardly dependent."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.order import grades
from llada_sglang.decoding.parameters import Number
from llada_sglang.decoding.policy import Step, UnmaskingPolicy


class Hierarchical(UnmaskingPolicy):
    """Positions above `threshold`, and the best of each contiguous run of masks if it is above
    `low_threshold`. Source: dInfer, hierarchical parallel decoding.
    """

    name = "hierarchical"
    parameters: ClassVar = {
        "threshold": Number(0.95, high=1.0, open_low=True),
        "low_threshold": Number(0.5, high=1.0),
        **UnmaskingPolicy.COMMON,
    }

    def propose(self, step: Step) -> Tensor:
        masked, confidence = step.masked, step.confidence
        # Runs are numbered by how many began at or before a position.
        begins = masked & ~torch.nn.functional.pad(masked, (1, 0))[:, :-1]
        run = begins.long().cumsum(dim=-1)
        grade = grades(confidence, masked)
        rows, block = masked.shape
        top = torch.full((rows, block + 1), -torch.inf, dtype=grade.dtype, device=grade.device)
        top = top.scatter_reduce(1, run, grade, "amax")
        column = torch.arange(block, device=masked.device).expand(rows, block)
        leads = masked & (grade == top.gather(1, run))
        first = torch.full((rows, block + 1), block, device=masked.device)
        first = first.scatter_reduce(1, run, torch.where(leads, column, block), "amin")
        leads &= column == first.gather(1, run)
        return (confidence > step.numbers["threshold"]) | (
            leads & (confidence > step.numbers["low_threshold"])
        )
