"""One policy update of a step's rows: every policy once, over all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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


class StateWrite(NamedTuple):
    """What a policy makes of one of its tensors.

    tensor: [all rows of the policy's state, ...]. at: int64 [some], rows of it. before, after:
    [some, ...]. pick: int64 [some], whose rows of the step they are; None for all, in order.
    """

    tensor: Tensor
    at: Tensor
    before: Tensor
    after: Tensor
    pick: Tensor | None

    def apply(self, closed: Tensor | None) -> None:
        """Write it, but for closed rows. closed: bool [rows]; None where none is."""
        after = self.after
        if closed is not None:
            kept = closed if self.pick is None else closed[self.pick]
            kept = kept.view(-1, *[1] * (after.dim() - 1))
            after = torch.where(kept, self.before, after)
        self.tensor[self.at] = after


@dataclass(slots=True)
class Updated:
    """canvas: int64 [rows, block]; masked: bool [rows, block]; done: bool [rows], of editing rows.

    done is None where no policy edits. source: as in `Update`, by row. writes: what is still to be
    written of the policies' state.
    """

    canvas: Tensor
    masked: Tensor
    done: Tensor | None
    source: dict[int, Tensor]
    writes: list[StateWrite]


def update_rows(
    rows: Rows, choice: Choice, active: Sequence[ActiveRow], table: CanvasTable
) -> Updated:
    """What every row's policy makes of it. `choice.confidence` becomes that of the tokens written.

    Nothing else is written: only the result says whether a gated row's step counts.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(active):
        groups.setdefault(row.state.record.policy.name, []).append(index)
    canvas, masked = rows.canvas, rows.masked
    out = Updated(canvas, masked, None, {}, [])
    for members in groups.values():
        policy = active[members[0]].state.record.policy
        whole = len(groups) == 1
        pick = None if whole else upload(np.array(members), canvas.device)
        update = _update(
            policy, rows, choice, [active[row] for row in members], table, pick, out.writes
        )
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
            if out.done is None:
                out.done = torch.zeros(len(active), dtype=torch.bool, device=canvas.device)
            out.done[slice(None) if pick is None else pick] = update.done
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
    writes: list[StateWrite],
) -> Update:
    """Run one policy over its rows, and add to `writes` what becomes of its state.

    pick: which of all rows these are, None for all of them.
    """

    def of(tensor: Tensor) -> Tensor:
        return tensor if pick is None else tensor[pick]

    numbers = table.parameters[of(rows.slots)]
    tensors = table.state_of(policy).tensors
    if tensors:
        at = upload(np.array([row.block.state_row for row in active]), numbers.device)
    state = {name: tensor[at] for name, tensor in tensors.items()}
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
            state=state,
        )
    )
    writes += [
        StateWrite(tensors[name], at, state[name], values, pick)
        for name, values in update.state.items()
    ]
    return update
