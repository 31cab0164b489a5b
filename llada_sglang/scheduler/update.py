"""One policy update of a step's rows: every policy once, over all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llada_sglang.decoding.policy import Policy, Step, Update
from llada_sglang.scheduler.transfer import upload

if TYPE_CHECKING:
    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.choice import Choice
    from llada_sglang.scheduler.state import ActiveRow


@dataclass(slots=True)
class Rows:
    """The denoise rows of a step, on the device.

    slots, text_start: int64 [rows]; position: int64 [rows, block], absolute; least: int64 [rows],
    0 in a block that is not forced; canvas: int64 [rows, block]; masked: bool [rows, block].
    """

    slots: Tensor
    position: Tensor
    text_start: Tensor
    least: Tensor
    canvas: Tensor
    masked: Tensor


@dataclass(slots=True)
class Updated:
    """canvas: int64 [rows, block]; masked: bool [rows, block]; done: bool [rows], of editing rows.

    edits: bool [rows] on the device, None where no policy edits. source: as in `Update`, by row.
    """

    canvas: Tensor
    masked: Tensor
    done: Tensor | None
    edits: Tensor | None
    source: dict[int, Tensor]


def update_rows(
    rows: Rows, choice: Choice, active: Sequence[ActiveRow], table: CanvasTable
) -> Updated:
    """Apply every row's policy. `choice.confidence` becomes that of the tokens written."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(active):
        groups.setdefault(row.state.record.policy.name, []).append(index)
    canvas, masked = rows.canvas, rows.masked
    out = Updated(canvas, masked, None, None, {})
    for members in groups.values():
        policy = active[members[0]].state.record.policy
        whole = len(groups) == 1
        pick = None if whole else upload(np.array(members), canvas.device)
        update = _update(policy, rows, choice, [active[row] for row in members], table, pick)
        if whole:
            out.canvas, out.masked = update.canvas, update.masked
        else:
            assert pick is not None
            out.canvas = out.canvas.index_copy(0, pick, update.canvas)
            out.masked = out.masked.index_copy(0, pick, update.masked)
        if update.confidence is not None:
            if pick is None:
                choice.confidence = update.confidence
            else:
                choice.confidence[pick] = update.confidence
        if policy.edits:
            assert update.done is not None, f"policy {policy.name} says not which blocks are done"
            if out.done is None or out.edits is None:
                out.done = torch.zeros(len(active), dtype=torch.bool, device=canvas.device)
                out.edits = torch.zeros_like(out.done)
            out.done[slice(None) if pick is None else pick] = update.done
            out.edits[slice(None) if pick is None else pick] = True
        if update.source is not None:
            out.source |= dict(zip(members, update.source, strict=True))
    return out


def _update(
    policy: Policy,
    rows: Rows,
    choice: Choice,
    active: Sequence[ActiveRow],
    table: CanvasTable,
    pick: Tensor | None,
) -> Update:
    """Run one policy over its rows. pick: which of all rows these are, None for all of them."""

    def of(tensor: Tensor) -> Tensor:
        return tensor if pick is None else tensor[pick]

    numbers = table.parameters[of(rows.slots)]
    tensors = table.state_of(policy).tensors
    if tensors:
        at = upload(np.array([row.block.state_row for row in active]), numbers.device)
    update = policy.update(
        Step(
            canvas=of(rows.canvas),
            masked=of(rows.masked),
            generated=of(rows.position) >= of(rows.text_start)[:, None],
            candidate=of(choice.candidate),
            confidence=of(choice.confidence),
            least=of(rows.least)[:, None],
            numbers={
                name: numbers[:, i, None] for i, name in enumerate(active[0].state.record.numbers)
            },
            features={name: of(values) for name, values in choice.features.items()},
            state={name: tensor[at] for name, tensor in tensors.items()},
        )
    )
    for name, values in update.state.items():
        tensors[name][at] = values
    return update
