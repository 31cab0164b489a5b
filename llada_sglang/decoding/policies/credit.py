"""Credit for tokens that keep being the likeliest: they may be unmasked earlier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.parameters import Number
from llada_sglang.decoding.policy import RowView, StateSpec, Step, UnmaskingPolicy

HISTORY = 32
"""Steps that a credit is summed over; what came before weighs less than a thousandth."""


class Credit(UnmaskingPolicy):
    """Threshold decoding of logits + credit_alpha * ln(1 + C).

    C is the decayed sum of p^boost_gamma over the steps a token led its position. Source: dInfer,
    credit decoding. Kept as the leaders of the last steps, not as a matrix over the vocabulary.
    """

    name = "credit"
    parameters: ClassVar = {
        "threshold": Number(0.95, high=1.0, open_low=True),
        "credit_alpha": Number(0.7),
        "boost_gamma": Number(0.2),
        "decay_beta": Number(0.8, high=1.0),
        **UnmaskingPolicy.COMMON,
    }

    def state(self) -> Mapping[str, StateSpec]:
        shape = (self.checkpoint.block, HISTORY)
        return {
            "token": StateSpec(shape, torch.int64, -1),
            "boost": StateSpec(shape, torch.float64),
        }

    def reads_logits(self, values: Mapping[str, Any]) -> bool:
        return True

    def read(self, logits: Tensor, row: RowView) -> Mapping[str, Tensor]:
        leader = logits.argmax(dim=-1)
        sureness = logits.double().softmax(dim=-1).gather(1, leader[:, None])[:, 0]
        at, now = row.columns, row.step % HISTORY
        row.state["token"][at, now] = leader
        row.state["boost"][at, now] = sureness.nan_to_num(nan=0.0) ** row.numbers["boost_gamma"]
        token, boost = row.state["token"][at], row.state["boost"][at]
        age = (now - torch.arange(HISTORY, device=token.device)) % HISTORY
        weight = boost * row.numbers["decay_beta"] ** age.double()
        same = token[:, :, None] == token[:, None, :]
        credit = (same * weight[:, None, :]).sum(dim=-1)
        # Entries of steps that never were stand for the leader, whose credit they repeat.
        known = token >= 0
        total = torch.where(known, credit, credit[:, now, None])
        token = torch.where(known, token, leader[:, None])
        raised = logits.gather(1, token) + row.numbers["credit_alpha"] * total.log1p()
        logits.scatter_(1, token, raised.to(logits.dtype))
        return {}

    def propose(self, step: Step) -> Tensor:
        return step.confidence > step.numbers["threshold"]
