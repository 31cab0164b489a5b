"""Noisy blocks for models that edit: masks, wrong tokens, spurious ones and gaps.

Laid out as in `nano.batches`; but every generated position of a noisy block has a label.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sglang.nano.batches import IGNORE, Batch, Document, NoisyBlock, Segment
from llada_sglang.nano.edits import Editing
from llada_sglang.reference.model import LLaDA2

SLACK = 8
"""Tokens behind a block that its labels may come from; no block misses more than this."""

# Edits of a block, and spurious or missing tokens side by side: each is drawn equally often.
_EDITS = (1, 1, 1, 2, 2, 3, 4, 6)
_SHIFTING_EDITS = (1, 1, 1, 1, 2, 2, 3, 5)
_RUNS = (1, 1, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Corruptor:
    """Draws noisy blocks. digits: ids of the digit tokens; vocabulary: ids below this are text."""

    editing: Editing
    digits: tuple[int, ...]
    vocabulary: int
    edited_share: float = 0.65

    def __call__(
        self, rng: random.Random, truth: Sequence[int], size: int, answer: int, pool: Sequence[int]
    ) -> list[int]:
        """`size` noisy tokens for a block; truth holds SLACK tokens more, the first `answer` text.

        pool: tokens of the document, which wrong and spurious ones are drawn from.
        """
        edited = answer > 0 and rng.random() < self.edited_share
        tokens = self._edited(rng, truth, size, answer, pool) if edited else list(truth[:size])
        for at in self._hidden(rng, size, min(answer, size), edited=edited):
            tokens[at] = self.editing.mask_id
        return tokens

    def _edited(
        self, rng: random.Random, truth: Sequence[int], size: int, answer: int, pool: Sequence[int]
    ) -> list[int]:
        shifting = self.editing.delete_id is not None
        reach = min(size, answer + 1)
        count = min(reach, rng.choice(_SHIFTING_EDITS if shifting else _EDITS))
        edits = set(rng.sample(range(reach), count))
        tokens: list[int] = []
        missing, at = 0, 0
        while at < len(truth):
            kind = rng.random() if at in edits else 1.0
            if kind < (0.34 if shifting else 1.0):
                tokens.append(self._wrong(rng, truth[at], pool))
                at += 1
                continue
            if 0.67 <= kind < 1.0 and missing < SLACK:
                run = min(rng.choice(_RUNS), SLACK - missing)
                missing += run
                at += run
                continue
            if kind < 0.67:
                for _ in range(rng.choice(_RUNS)):
                    repeat = tokens and rng.random() < 0.3
                    tokens.append(tokens[-1] if repeat else self._wrong(rng, truth[at], pool))
            tokens.append(truth[at])
            at += 1
        if missing and rng.random() < 0.5:
            del tokens[size - missing :]
        tokens = tokens[:size]
        return tokens + [self.editing.mask_id] * (size - len(tokens))

    def _wrong(self, rng: random.Random, right: int, pool: Sequence[int]) -> int:
        kind = rng.random()
        if right in self.digits and kind < 0.6:
            return rng.choice([digit for digit in self.digits if digit != right])
        if kind < 0.9:
            return rng.choice(pool)
        return rng.randrange(self.vocabulary)

    def _hidden(self, rng: random.Random, size: int, answer: int, *, edited: bool) -> list[int]:
        kind = rng.random()
        if kind < (0.06 if edited else 0.2):
            return list(range(size))
        if kind < (0.35 if edited else 0.6):
            return list(range(rng.randrange(max(1, answer)), size))
        if edited and kind < 0.65:
            return []
        level = rng.random()
        return [at for at in range(size) if rng.random() < level]


def editing_segment(
    document: Document,
    rng: random.Random,
    corruptor: Corruptor,
    *,
    block_size: int,
    width: int,
) -> Segment:
    """Clean blocks and two noisy copies, the second as far as it fits into `width`."""
    editing, block, start = corruptor.editing, block_size, len(document.prompt)
    text = document.prompt + document.answer
    end, length = len(text), -(-len(text) // block) * block
    text = text + [editing.fill_id] * (length - end + SLACK)
    clean = length - block
    segment = Segment(
        text[:clean], list(range(clean)), [0] * clean, [IGNORE] * clean, [0.0] * clean
    )
    for copy in (1, 2):
        for low in range(start // block * block, length, block):
            if copy == 2 and len(segment.ids) + block > width:
                break
            first = max(low, start)
            size, truth = low + block - first, text[first : low + block + SLACK]
            noisy = corruptor(rng, truth, size, max(0, end - first), document.answer)
            labels = editing.labels(noisy, truth)
            given = first - low
            segment.blocks.append(NoisyBlock(0, len(segment.ids) + given, size, tuple(truth)))
            segment.ids += text[low:first] + noisy
            segment.positions += range(low, low + block)
            segment.stream += [copy] * block
            segment.labels += [IGNORE] * given + labels
            segment.weight += [0.0] * given + editing.weights(noisy, labels)
    return segment


@torch.no_grad()
def plant_own_tokens(
    model: LLaDA2, batch: Batch, editing: Editing, rng: random.Random, *, share: float
) -> None:
    """Put noisy blocks, in `share` of the rows, into a state that the model itself leads to.

    Masks that it is sure enough of are filled, rightly or wrongly; the threshold is drawn per
    block. With DELETE and SPLIT, half of the blocks take a whole step of decoding instead: tokens
    change as well, and actions are carried out. ids, labels and weights of the batch are changed in
    place.
    """
    count = len(batch.ids)
    rows = sorted(rng.sample(range(count), round(share * count)))
    if not rows:
        return
    moves = editing.delete_id is not None
    looked_at = batch.labels != IGNORE
    if not moves:
        looked_at &= batch.ids == editing.mask_id
    looked_at[[row for row in range(count) if row not in rows]] = False
    logits = model(
        batch.ids[rows],
        batch.positions[rows],
        batch.mask[rows],
        group=batch.group[rows],
        select=looked_at[rows],
        fast=True,
    )
    logits[:, editing.mask_id] = float("-inf")
    acting = _Own.of(logits, looked_at, batch.ids)
    if moves:
        logits[:, [editing.delete_id, editing.split_id]] = float("-inf")
    filling = _Own.of(logits, looked_at, batch.ids)
    for block in batch.blocks:
        if block.row not in rows:
            continue
        threshold = rng.choice((0.0, 0.3, 0.5, 0.7, 0.9))
        span = (block.row, slice(block.at, block.at + block.size))
        before = batch.ids[span].tolist()
        if moves and rng.random() < 0.5:
            ids = editing.step(before, *acting.at(span), threshold)
        else:
            ids = editing.fill(before, *filling.at(span), threshold)
        labels = editing.labels(ids, block.truth)
        batch.ids[span] = batch.ids.new_tensor(ids)
        batch.labels[span] = batch.labels.new_tensor(labels)
        batch.weight[span] = batch.weight.new_tensor(editing.weights(ids, labels))


@dataclass(frozen=True, slots=True)
class _Own:
    """The model's candidates and their probabilities [rows, width], where they were looked at."""

    tokens: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, logits: Tensor, looked_at: Tensor, ids: Tensor) -> _Own:
        best, candidate = logits.softmax(-1).max(-1)
        confidence = torch.zeros(ids.shape, device=ids.device)
        confidence[looked_at] = best
        tokens = ids.clone()
        tokens[looked_at] = candidate
        return cls(tokens, confidence)

    def at(self, span: tuple[int, slice]) -> tuple[list[int], list[float]]:
        return self.tokens[span].tolist(), self.confidence[span].tolist()
