"""What an editing model should say about a noisy block: its labels, and what they do to it.

A label is the token of the clean text that the position stands for. LLaDA2.2 has two more: DELETE
where the position stands for nothing, and SPLIT where tokens are missing before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Costs of an alignment. A wrong token is repaired in one step, a missing one takes two: of equal
# numbers of edits, the quickest repair is the label.
_WRONG, _SPURIOUS, _MISSING = 100, 110, 111
_BAND = 12


@dataclass(frozen=True, slots=True)
class Editing:
    """The ids that labels are made of; delete_id and split_id are None for LLaDA2.1's editing.

    keep_weight scales the loss where a token is right already, fill_weight that of the text's end,
    action_weight that of DELETE and SPLIT, which are rare.
    """

    mask_id: int
    fill_id: int
    delete_id: int | None = None
    split_id: int | None = None
    keep_weight: float = 0.2
    fill_weight: float = 0.1
    action_weight: float = 3.0

    def labels(self, noisy: Sequence[int], truth: Sequence[int]) -> list[int]:
        """One label per noisy token; `truth` is the clean text from the first of them on.

        With DELETE and SPLIT, truth should go on behind the block for as many tokens as the block
        may miss.
        """
        if self.delete_id is None or self.split_id is None:
            return list(truth[: len(noisy)])
        return align(
            noisy, truth, mask_id=self.mask_id, delete_id=self.delete_id, split_id=self.split_id
        )

    def weights(self, noisy: Sequence[int], labels: Sequence[int]) -> list[float]:
        """The loss of each position: in full for wrong tokens, less where little is to learn."""
        weights = []
        for token, label in zip(noisy, labels, strict=True):
            weight = self.fill_weight if label == self.fill_id else 1.0
            if label in (self.delete_id, self.split_id):
                weight = self.action_weight
            elif token == label:
                weight *= self.keep_weight
            elif token != self.mask_id:
                weight = 1.0
            weights.append(weight)
        return weights

    def fill(
        self, block: Sequence[int], tokens: Sequence[int], p: Sequence[float], threshold: float
    ) -> list[int]:
        """The block with its masks above the threshold filled."""
        return [
            token if before == self.mask_id and sure > threshold else before
            for before, token, sure in zip(block, tokens, p, strict=True)
        ]

    def step(
        self, block: Sequence[int], tokens: Sequence[int], p: Sequence[float], threshold: float
    ) -> list[int]:
        """The block after a step of `levenshtein`, whose edit_threshold is 0."""
        assert self.delete_id is not None
        assert self.split_id is not None
        candidates = [
            before if before == self.mask_id and sure <= threshold else token
            for before, token, sure in zip(block, tokens, p, strict=True)
        ]
        acted = apply_actions(
            candidates,
            block,
            mask_id=self.mask_id,
            delete_id=self.delete_id,
            split_id=self.split_id,
        )
        return (acted + [self.mask_id] * len(block))[: len(block)]


def align(
    noisy: Sequence[int], truth: Sequence[int], *, mask_id: int, delete_id: int, split_id: int
) -> list[int]:
    """Labels of the cheapest way to turn `noisy` into a beginning of `truth`.

    A mask may stand for any token. A label says one thing only, so tokens are missing before a
    token that is right and nowhere else; runs of masks stand for what comes first. Of equal repairs
    the one furthest behind is taken: the last of too many equal tokens is spurious.
    """
    rows, columns = len(noisy), len(truth)
    never = 1 << 30
    # best[i][j]: noisy[:i] stands for truth[:j]. gap[i][j]: the same, and truth[j - 1] is missing.
    best = [[never] * (columns + 1) for _ in range(rows + 1)]
    gap = [[never] * (columns + 1) for _ in range(rows + 1)]
    best[0][0] = 0
    for i in range(rows + 1):
        here, hole = best[i], gap[i]
        low, high = max(0, i - _BAND), min(columns, i + _BAND)
        if i:
            above, hole_above, token = best[i - 1], gap[i - 1], noisy[i - 1]
            is_mask = token == mask_id
            for j in range(low, high + 1):
                cost = above[j] + _SPURIOUS
                if j:
                    same = token == truth[j - 1]
                    cost = min(cost, above[j - 1] + (0 if same or is_mask else _WRONG))
                    if same:
                        cost = min(cost, hole_above[j - 1])
                here[j] = cost
        for j in range(low + 1, high + 1):
            hole[j] = min(here[j - 1], hole[j - 1]) + _MISSING
    labels = [0] * rows
    j = min(range(columns + 1), key=lambda column: best[rows][column])
    for i in range(rows, 0, -1):
        token, cost = noisy[i - 1], best[i][j]
        same = j > 0 and token == truth[j - 1]
        if cost == best[i - 1][j] + _SPURIOUS:
            labels[i - 1] = delete_id
        elif same and cost == gap[i - 1][j - 1]:
            labels[i - 1] = split_id
            j -= 1
            while gap[i - 1][j] != best[i - 1][j - 1] + _MISSING:
                j -= 1
            j -= 1
        else:
            labels[i - 1] = truth[j - 1]
            j -= 1
    return labels


def apply_actions(
    candidates: Sequence[int], before: Sequence[int], *, mask_id: int, delete_id: int, split_id: int
) -> list[int]:
    """Candidates written from left to right; the result may be longer or shorter.

    DELETE drops its position; SPLIT becomes a mask followed by what stood there before.
    Source: LLaDA2.2 report, section 3.1.
    """
    written: list[int] = []
    for candidate, token in zip(candidates, before, strict=True):
        if candidate == split_id:
            written += [mask_id, token]
        elif candidate != delete_id:
            written.append(candidate)
    return written
