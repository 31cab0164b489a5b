"""LLaDA2.1's policy: unmasking and revising in the same step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.order import best
from llada_sglang.decoding.parameters import Integer, Name, Number
from llada_sglang.decoding.policy import EditingPolicy, RowView, StateSpec, Step, Update

MAX_POST_EDIT_STEPS = 64

PRESETS = {"quality": (0.7, 0.5), "speed": (0.5, 0.0)}
"""(threshold, edit_threshold), as published with LLaDA2.1."""


class Edit(EditingPolicy):
    """Joint mask-to-token and token-to-token decoding.

    Source: LLaDA2.1 report, equations 1 to 3; the host's joint_threshold.py for penalty_lambda.
    """

    name = "edit"
    parameters: ClassVar = {
        "preset": Name("quality", tuple(PRESETS)),
        "threshold": Number(None, high=1.0),
        "edit_threshold": Number(None, high=1.0),
        "max_post_edit_steps": Integer(16, high=MAX_POST_EDIT_STEPS),
        "penalty_lambda": Number(0.0),
    }

    def values(self, given: Mapping[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
        if "preset" in given:
            # A preset that a request names stands above single numbers of the server's.
            server = {
                name: value for name, value in server.items() if not name.endswith("threshold")
            }
        found = super().values(given, server)
        threshold, edit_threshold = PRESETS[found["preset"]]
        if found["threshold"] is None:
            found["threshold"] = threshold
        if found["edit_threshold"] is None:
            found["edit_threshold"] = edit_threshold
        return found

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        return super().numbers(values) | {
            "max_post_edit_steps": float(values["max_post_edit_steps"])
        }

    def state(self) -> Mapping[str, StateSpec]:
        return {"post": StateSpec((), torch.int64)}

    def reads_logits(self, values: Mapping[str, Any]) -> bool:
        return values["penalty_lambda"] > 0

    def read(self, logits: Tensor, row: RowView) -> Mapping[str, Tensor]:
        before = row.columns - 1
        inside = (before >= 0) & ~row.masked[before.clamp(min=0)]
        previous = row.canvas[before.clamp(min=0)]
        penalty = torch.where(inside, row.numbers["penalty_lambda"], 0.0).to(logits.dtype)
        logits.scatter_add_(1, previous[:, None], -penalty[:, None])
        return {}

    def update(self, step: Step) -> Update:
        masked = step.masked
        had_masks = masked.any(dim=-1)
        sure = masked & (step.confidence > step.numbers["threshold"])
        one = torch.ones_like(step.least)
        filled = torch.where(
            sure.any(dim=-1, keepdim=True), sure, best(step.confidence, masked, one)
        )
        edited = revised(step)
        canvas = torch.where(filled | edited, step.candidate, step.canvas)
        masked = masked & ~filled
        post = step.state["post"] + ~had_masks
        budget = step.numbers["max_post_edit_steps"][:, 0]
        spent = torch.where(had_masks, (budget == 0) & ~masked.any(dim=-1), post >= budget)
        done = spent | (~had_masks & ~edited.any(dim=-1))
        return Update(canvas, masked, done=done, state={"post": post})


def revised(step: Step) -> Tensor:
    """Generated tokens the model would replace, bool [rows, block] (T2T)."""
    return (
        step.generated
        & ~step.masked
        & (step.candidate != step.canvas)
        & (step.confidence > step.numbers["edit_threshold"])
    )
