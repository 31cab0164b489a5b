"""LLaDA2.2's policy: editing that also removes positions and makes room for new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding import sampling
from llada_sglang.decoding.order import best, grades
from llada_sglang.decoding.parameters import Integer, Number
from llada_sglang.decoding.policies.edit import MAX_POST_EDIT_STEPS, revised
from llada_sglang.decoding.policy import (
    Checkpoint,
    EditingPolicy,
    RowView,
    StateSpec,
    Step,
    Update,
)
from llada_sglang.errors import DecodeParamError

RANKS = 8
"""Candidates per position to choose from where a block stands as it stood before."""


class Levenshtein(EditingPolicy):
    """Joint decoding with DELETE and SPLIT, budgets, and no loops.

    Source: LLaDA2.2 report, section 3.1; the deterministic anti-loop and the cumulative budget are
    those of the host's joint_threshold_indel.py.
    """

    name = "levenshtein"
    moves = True
    parameters: ClassVar = {
        "threshold": Number(0.5, high=1.0),
        "edit_threshold": Number(0.0, high=1.0),
        "max_post_edit_steps": Integer(16, high=MAX_POST_EDIT_STEPS),
    }

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        if checkpoint.delete_id is None or checkpoint.split_id is None:
            raise DecodeParamError(
                "policy levenshtein needs delete_token_id and split_token_id in the checkpoint's "
                "config.json, and this checkpoint declares none (LLaDA2.2 does: 156930 and "
                "156931). Use policy edit or threshold."
            )
        self.actions = (checkpoint.delete_id, checkpoint.split_id)

    @property
    def illegal_ids(self) -> tuple[int, ...]:
        return ()

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        return super().numbers(values) | {
            "max_post_edit_steps": float(values["max_post_edit_steps"])
        }

    def state(self) -> Mapping[str, StateSpec]:
        block = self.checkpoint.block
        return {
            # Of a fresh block only: `update` sets it at the first step.
            "original": StateSpec((block,), torch.bool),
            "post": StateSpec((), torch.int64),
            "taken": StateSpec((), torch.int64),
            "seen": StateSpec((block + MAX_POST_EDIT_STEPS + 1, block), torch.int64, -2),
        }

    def reads_logits(self, values: Mapping[str, Any]) -> bool:
        return True

    def read(self, logits: Tensor, row: RowView) -> Mapping[str, Tensor]:
        plain = logits.clone()
        # One after the other: a list of them would have to be copied to the device first.
        for action in self.actions:
            plain[:, action] = -torch.inf
        token, confidence = row.pick(plain)
        found = {"plain": token, "plain_confidence": confidence}
        shown = torch.where(row.masked, -1, row.canvas)
        repeats = (row.state["seen"] == shown).all(dim=-1).any()
        if sampling.can_look(repeats) and not bool(repeats):
            # Ranking costs passes over the vocabulary.
            ranked, share = token[:, None].expand(-1, RANKS), confidence[:, None].expand(-1, RANKS)
        else:
            ranked, share = likeliest(logits)
        return found | {"ranked": ranked, "ranked_confidence": share}

    def update(self, step: Step) -> Update:
        block = self.checkpoint.block
        canvas, masked, state = step.canvas, step.masked, step.state
        budget = step.numbers["max_post_edit_steps"][:, 0]
        original = torch.where(state["taken"][:, None] == 0, masked, state["original"]) & masked
        new_masks = (masked & ~original).sum(dim=-1, keepdim=True)
        settled = ~original.any(dim=-1)
        post = state["post"] + settled
        final = settled & (post >= budget.clamp(min=1))
        final |= state["taken"] >= block + budget

        sure = masked & (step.confidence > step.numbers["threshold"])
        least = 1 + new_masks
        enough = sure.sum(dim=-1, keepdim=True) >= least
        filled = torch.where(enough, sure, best(step.confidence, masked, least))
        filled = torch.where((final | settled)[:, None], masked, filled)
        # Without post-edit steps the step that fills the last original mask is the final one.
        final = final | ((budget == 0) & ~(original & ~filled).any(dim=-1))
        filled = torch.where(final[:, None], masked, filled)

        features = step.features
        candidate = torch.where(final[:, None], features["plain"], step.candidate)
        confidence = torch.where(final[:, None], features["plain_confidence"], step.confidence)
        written = filled | (
            step.generated
            & ~masked
            & (candidate != canvas)
            & (confidence > step.numbers["edit_threshold"])
        )
        finished = ~written.any(dim=-1)

        shown = torch.where(masked, -1, canvas)
        seen = (state["seen"] == shown[:, None]).all(dim=-1).sum(dim=-1)
        worst = _worst(confidence, written) & (seen > 0)[:, None] & ~final[:, None]
        rank = seen.clamp(max=RANKS - 1)[:, None, None].expand(-1, block, 1)
        other = features["ranked"].gather(2, rank)[:, :, 0]
        candidate = torch.where(worst, other, candidate)
        confidence = torch.where(
            worst, features["ranked_confidence"].gather(2, rank)[:, :, 0].float(), confidence
        )
        history = state["seen"].clone()
        place = state["taken"].clamp(max=history.shape[1] - 1)
        history.scatter_(1, place[:, None, None].expand(-1, 1, block), shown[:, None])

        token, masked, original, source = self._act(canvas, masked, original, written, candidate)
        return Update(
            token,
            masked,
            done=finished | final,
            source=source,
            confidence=confidence,
            state={
                "original": original,
                "post": post,
                "taken": state["taken"] + 1,
                "seen": history,
            },
        )

    def _act(
        self, canvas: Tensor, masked: Tensor, original: Tensor, written: Tensor, candidate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Write the candidates, then DELETE and SPLIT: canvas, masks, original masks, source."""
        rows, block = canvas.shape
        mask_id = self.checkpoint.mask_id
        delete = written & (candidate == self.checkpoint.delete_id)
        split = written & (candidate == self.checkpoint.split_id)
        plain = written & ~delete & ~split
        token = torch.where(plain, candidate, canvas)
        still = masked & ~plain
        width = 1 + split.long() - delete.long()
        # Where a position's own token goes; a split one's comes second, its new mask first.
        goes = width.cumsum(dim=-1) - 1
        beyond = 2 * block
        goes = torch.where(delete, beyond, goes)
        column = torch.arange(block, device=canvas.device).expand(rows, block)
        source = torch.full((rows, beyond + 1), -1, dtype=torch.int64, device=canvas.device)
        source = source.scatter(1, goes, column)[:, :block]
        known, at = source >= 0, source.clamp(min=0)
        return (
            torch.where(known, token.gather(1, at), mask_id),
            torch.where(known, still.gather(1, at), True),
            torch.where(known, (original & still).gather(1, at), False),
            source,
        )


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, the lower id first among equals, and their softmax probabilities.

    logits: float32 [positions, vocab]. Returns (int64, float32), both [positions, RANKS].
    """
    left = logits.clone()
    found = []
    for _ in range(min(RANKS, left.shape[1])):
        top = left.argmax(dim=-1, keepdim=True)
        found.append(top)
        left.scatter_(1, top, -torch.inf)
    ids = torch.cat(found, dim=1)
    if ids.shape[1] < RANKS:
        ids = torch.nn.functional.pad(ids, (0, RANKS - ids.shape[1]), mode="replicate")
    return ids, logits.double().softmax(dim=-1).gather(1, ids).float()


def _worst(confidence: Tensor, among: Tensor) -> Tensor:
    """The least confident position of `among`, the lower one of equals: bool [rows, block]."""
    grade = torch.where(among, grades(confidence, among), torch.inf)
    lowest = grade.argmin(dim=-1, keepdim=True)
    column = torch.arange(among.shape[1], device=among.device)
    return among & (column == lowest)


__all__ = ["Levenshtein", "likeliest", "revised"]
