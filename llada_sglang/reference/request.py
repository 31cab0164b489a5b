"""One request of the reference decoder: its canvas, its logits and its candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sglang.reference.tokens import (
    FORBIDDEN,
    Candidate,
    Cell,
    TokenRules,
    candidate_of,
    legal,
    noise,
    penalized,
)

LogitsFn = Callable[[Tensor], Tensor]
Adjust = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Request:
    """One request and how its candidates are found.

    logits_of: int64 [length] -> float32 [length, vocab]. stops: ids that end the text. actions:
    ids that are no candidates though the model may predict them.
    """

    logits_of: LogitsFn
    prompt: Sequence[int]
    block_size: int
    mask_id: int
    stops: frozenset[int]
    max_new_tokens: int
    rules: TokenRules
    actions: tuple[int, ...] = ()

    @property
    def first_block(self) -> int:
        """The position at which the first generated block begins."""
        return len(self.prompt) // self.block_size * self.block_size

    @property
    def limit(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    def logits(self, cells: Sequence[Cell]) -> Tensor:
        """float32 [length, vocab] of one forward over the canvas."""
        ids = [self.mask_id if cell.token is None else cell.token for cell in cells]
        return self.logits_of(torch.tensor(ids))

    def candidates(
        self,
        logits: Tensor,
        cells: Sequence[Cell],
        low: int,
        step: int,
        *,
        masked_only: bool = False,
        excluded: Collection[int] = (),
        adjust: Adjust | None = None,
    ) -> dict[int, Candidate]:
        """Candidates of a block's generated positions, by their place in the block.

        logits: float32 [length, vocab] of the forward over `cells`. low, step: the block's first
        position and the steps it has taken. excluded: ids that are no candidates, besides the mask
        id. adjust: applied to (place, logits [vocab]) last before the choice.
        """
        rules = self.rules
        output = [cell.token for cell in cells if cell.token is not None and not cell.prompt]
        found: dict[int, Candidate] = {}
        for position in range(low, low + self.block_size):
            if cells[position].prompt or (masked_only and not cells[position].masked):
                continue
            row = legal(logits[position], (self.mask_id, *self.actions, *excluded))
            row = penalized(row, rules, self.prompt, output)
            if position < len(self.prompt) + rules.min_new_tokens:
                row[list(self.stops)] = FORBIDDEN
            if adjust is not None:
                row = adjust(position - low, row)
            number = noise(rules.seed, position, step)
            found[position - low] = candidate_of(row, rules, number)
        return found

    def first_stop(self, cells: Sequence[Cell], low: int) -> int | None:
        """The first generated stop id of the block at `low` with no mask before it in the block."""
        for position in range(low, low + self.block_size):
            if cells[position].masked:
                return None
            if cells[position].token in self.stops and not cells[position].prompt:
                return position
        return None
