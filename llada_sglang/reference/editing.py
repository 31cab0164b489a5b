"""The policies that also change tokens, one step of one block at a time: the definition.

Nothing here is shared with `llada_sglang.decoding`. A policy object belongs to one block. A step
is given the block's cells and `find`, which looks for the candidates of all generated positions,
by their place in the block; it returns the new cells and whether the block is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from llada_sglang.reference.policies import Value, above, best_first, grade
from llada_sglang.reference.request import Adjust
from llada_sglang.reference.tokens import Candidate, Cell, TokenRules, nth_likeliest, written


class Find(Protocol):
    """Candidates of this step, without the excluded ids, of logits [vocab] after `adjust`."""

    def __call__(
        self, *, excluded: Collection[int] = (), adjust: Adjust | None = None
    ) -> dict[int, Candidate]: ...


class Editing(Protocol):
    """An editing policy at work on one block."""

    def step(self, cells: list[Cell], find: Find) -> tuple[list[Cell], bool]: ...


class Edit:
    """Joint unmasking and editing. Source: LLaDA2.1 report, equations 1 to 3."""

    def __init__(
        self,
        threshold: float,
        edit_threshold: float,
        max_post_edit_steps: int,
        penalty_lambda: float,
    ) -> None:
        self.threshold, self.edit_threshold = threshold, edit_threshold
        self.budget, self.penalty = max_post_edit_steps, penalty_lambda
        self.steps = self.post_steps = 0

    def step(self, cells: list[Cell], find: Find) -> tuple[list[Cell], bool]:
        def unlike_the_one_before(at: int, logits: Tensor) -> Tensor:
            before = cells[at - 1].token if at else None
            out = logits.clone()
            if before is not None:
                out[before] -= self.penalty
            return out

        found = find(adjust=unlike_the_one_before)
        masks = {at: found[at] for at in found if cells[at].masked}
        chosen = (above(masks, self.threshold) or best_first(masks)[:1]) + _edits(
            cells, found, self.edit_threshold
        )
        out = list(cells)
        for at in chosen:
            out[at] = written(found[at], self.steps)
        self.steps += 1
        if masks:
            return out, self.budget == 0 and not any(cell.masked for cell in out)
        self.post_steps += 1
        return out, not chosen or self.post_steps >= self.budget


class Levenshtein:
    """Editing with DELETE and SPLIT. Source: LLaDA2.2 report, section 3.1.

    A SPLIT keeps the cell it stands on as it was: a mask stays original or new, a token keeps the
    step that wrote it.
    """

    def __init__(
        self,
        threshold: float,
        edit_threshold: float,
        max_post_edit_steps: int,
        *,
        delete_id: int,
        split_id: int,
        rules: TokenRules,
    ) -> None:
        self.threshold, self.edit_threshold = threshold, edit_threshold
        self.budget = max_post_edit_steps
        self.delete_id, self.split_id, self.rules = delete_id, split_id, rules
        self.steps = self.post_steps = 0
        self.stood: list[list[int | None]] = []

    def step(self, cells: list[Cell], find: Find) -> tuple[list[Cell], bool]:
        masks = [at for at, cell in enumerate(cells) if cell.masked]
        originals = [at for at in masks if cells[at].original]
        self.steps += 1
        self.post_steps += not originals
        final = self.steps == len(cells) + self.budget + 1
        final |= not originals and self.post_steps == max(1, self.budget)

        found = self._find(find, final)
        chosen = masks
        if originals and not final:
            chosen = self._unmasked(
                {at: found[at] for at in masks}, 1 + len(masks) - len(originals)
            )
            if self.budget == 0 and set(originals) <= set(chosen):
                final, chosen = True, masks
                found = self._find(find, final)
        chosen = chosen + _edits(cells, found, self.edit_threshold)
        if not chosen:
            return cells, True

        state = [cell.token for cell in cells]
        repeats = self.stood.count(state)
        self.stood.append(state)
        if repeats and not final:
            worst = min(chosen, key=lambda at: (grade(found[at].confidence), at))
            found[worst] = nth_likeliest(found[worst], min(repeats + 1, 8), self.rules)
        return self._acted(cells, {at: found[at] for at in chosen}), final

    def _find(self, find: Find, final: bool) -> dict[int, Candidate]:
        return find(excluded=(self.delete_id, self.split_id) if final else ())

    def _unmasked(self, masks: Mapping[int, Candidate], least: int) -> list[int]:
        chosen = above(masks, self.threshold)
        return chosen if len(chosen) >= least else best_first(masks)[:least]

    def _acted(self, cells: list[Cell], actions: Mapping[int, Candidate]) -> list[Cell]:
        out: list[Cell] = []
        for at, cell in enumerate(cells):
            action = actions.get(at)
            if action is None:
                out.append(cell)
            elif action.token == self.split_id:
                out += [Cell(original=False), cell]
            elif action.token != self.delete_id:
                out.append(written(action, self.steps - 1))
        out += [Cell(original=False)] * (len(cells) - len(out))
        return out[: len(cells)]


def _edits(cells: list[Cell], found: Mapping[int, Candidate], threshold: float) -> list[int]:
    """T2T: the generated tokens that have another candidate above the threshold."""
    return [
        at
        for at, candidate in found.items()
        if not cells[at].masked
        and candidate.token != cells[at].token
        and candidate.confidence > threshold
    ]


def editing(
    policy: str,
    values: Mapping[str, Value],
    *,
    delete_id: int | None,
    split_id: int | None,
    rules: TokenRules,
) -> Editing:
    """A new object of an editing policy, for one block; values as `policies.settings` returns them.

    delete_id, split_id: needed for `levenshtein` only.
    """
    threshold, edit_threshold = float(values["threshold"]), float(values["edit_threshold"])
    budget = int(values["max_post_edit_steps"])
    if policy == "edit":
        return Edit(threshold, edit_threshold, budget, float(values["penalty_lambda"]))
    assert delete_id is not None
    assert split_id is not None
    return Levenshtein(
        threshold, edit_threshold, budget, delete_id=delete_id, split_id=split_id, rules=rules
    )
