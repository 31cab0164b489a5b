"""Editing decoders for many prompts at once, by the rules of docs/decoding.md at temperature 0.

As `nano.batched`: no cache, rows are independent, finished rows leave the batch. Rules work on one
row's block at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llada_sglang.nano import chat
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.evaluate import Answer
from llada_sglang.reference.model import LLaDA2

_ALTERNATIVES = 8


@dataclass(slots=True)
class Block:
    """One row's current block: its tokens, and which of them are masks, original or new.

    The first `given` tokens are the prompt's. seen counts how often a step began with this state.
    """

    tokens: list[int]
    original: list[bool]
    new: list[bool]
    given: int
    step: int = 0
    post_steps: int = 0
    seen: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=Counter)

    def masked(self) -> list[int]:
        return [at for at in range(len(self.tokens)) if self.original[at] or self.new[at]]


@dataclass(frozen=True, slots=True)
class EditRule:
    """Joint unmasking and editing (LLaDA2.1). Source: docs/decoding.md, `edit`."""

    mask_id: int
    threshold: float
    edit_threshold: float
    max_post_edit_steps: int = 16

    def __call__(self, block: Block, logits: Tensor) -> bool:
        """Write one step into the block; logits float32 [block, vocab]. True once finished."""
        logits = logits.clone()
        logits[:, self.mask_id] = float("-inf")
        best, token = logits.softmax(-1).max(-1)
        p, v = best.tolist(), token.tolist()
        masked = block.masked()
        block.post_steps += not masked
        chosen = [at for at in masked if p[at] > self.threshold]
        if masked and not chosen:
            chosen = [max(masked, key=lambda at: p[at])]
        edits = _edits(block, masked, v, p, self.edit_threshold)
        for at in chosen + edits:
            block.tokens[at], block.original[at] = v[at], False
        if not masked:
            return not edits or block.post_steps >= self.max_post_edit_steps
        return self.max_post_edit_steps == 0 and not block.masked()


@dataclass(frozen=True, slots=True)
class LevenshteinRule:
    """Editing with DELETE and SPLIT (LLaDA2.2). Source: docs/decoding.md, `levenshtein`."""

    mask_id: int
    delete_id: int
    split_id: int
    threshold: float
    edit_threshold: float
    max_post_edit_steps: int = 16

    def __post_init__(self) -> None:
        if self.max_post_edit_steps < 1:
            raise ValueError(
                f"max_post_edit_steps must be at least 1 here, got {self.max_post_edit_steps}"
            )

    def __call__(self, block: Block, logits: Tensor) -> bool:
        """Write one step into the block; logits float32 [block, vocab]. True once finished."""
        size = len(block.tokens)
        masked = block.masked()
        block.step += 1
        block.post_steps += not any(block.original)
        final = (
            block.post_steps >= self.max_post_edit_steps
            or block.step == size + self.max_post_edit_steps + 1
        )
        logits = logits.clone()
        never = [self.mask_id, self.delete_id, self.split_id] if final else [self.mask_id]
        logits[:, never] = float("-inf")
        best, token = logits.softmax(-1).topk(_ALTERNATIVES, dim=-1)
        p, v = best[:, 0].tolist(), token[:, 0].tolist()

        chosen = masked
        if any(block.original) and not final:
            least = min(len(masked), 1 + sum(block.new))
            chosen = [at for at in masked if p[at] > self.threshold]
            if len(chosen) < least:
                chosen = sorted(masked, key=lambda at: (-p[at], at))[:least]
        chosen = chosen + _edits(block, masked, v, p, self.edit_threshold)
        if not chosen:
            return True
        state = tuple(block.tokens), tuple(masked)
        repeats = block.seen[state]
        block.seen[state] += 1
        if repeats and not final:
            worst = min(chosen, key=lambda at: (p[at], at))
            v[worst] = int(token[worst, min(repeats, _ALTERNATIVES - 1)])
        self._write(block, {at: v[at] for at in chosen})
        return final

    def _write(self, block: Block, candidates: dict[int, int]) -> None:
        size = len(block.tokens)
        marks = zip(block.tokens, block.original, block.new, strict=True)
        items: list[tuple[int, bool, bool]] = []
        for at, item in enumerate(marks):
            candidate = candidates.get(at)
            if candidate is None:
                items.append(item)
            elif candidate == self.split_id:
                items += [(self.mask_id, False, True), item]
            elif candidate != self.delete_id:
                items.append((candidate, False, False))
        items = (items + [(self.mask_id, False, True)] * size)[:size]
        block.tokens = [token for token, _, _ in items]
        block.original = [original for _, original, _ in items]
        block.new = [new for _, _, new in items]


def _edits(
    block: Block, masked: list[int], v: list[int], p: list[float], threshold: float
) -> list[int]:
    """Generated positions that hold another token than the candidate, and should not."""
    skip = set(masked)
    return [
        at
        for at in range(block.given, len(block.tokens))
        if at not in skip and v[at] != block.tokens[at] and p[at] > threshold
    ]


class BatchedEditor(BatchedDecoder):
    """Answers questions by `edit`, or by `levenshtein` where the tokenizer has its tokens.

    threshold, edit_threshold: those of the policy's default where None.
    """

    def __init__(
        self,
        model: LLaDA2,
        tokenizer: Tokenizer,
        *,
        block_size: int,
        threshold: float | None = None,
        edit_threshold: float | None = None,
        max_post_edit_steps: int = 16,
        max_new_tokens: int = 128,
        batch: int = 64,
        progress: bool = False,
    ) -> None:
        delete, split = (tokenizer.token_to_id(token) for token in chat.EDIT_TOKENS)
        moves = delete is not None and split is not None
        if threshold is None:
            threshold = 0.5 if moves else 0.7
        if edit_threshold is None:
            edit_threshold = 0.0 if moves else 0.5
        super().__init__(
            model,
            tokenizer,
            block_size=block_size,
            threshold=threshold,
            max_new_tokens=max_new_tokens,
            batch=batch,
            progress=progress,
        )
        self._rule: EditRule | LevenshteinRule
        if delete is None or split is None:
            self._rule = EditRule(self._mask_id, threshold, edit_threshold, max_post_edit_steps)
        else:
            self._rule = LevenshteinRule(
                self._mask_id, delete, split, threshold, edit_threshold, max_post_edit_steps
            )

    @torch.no_grad()
    def _decode(self, prompts: list[list[int]]) -> list[Answer]:
        eos = set(self._eos.tolist())
        texts = [list(prompt) for prompt in prompts]
        forwards = [0] * len(prompts)
        blocks = {row: self._begin(texts[row]) for row in range(len(prompts))}
        while blocks:
            rows = list(blocks)
            logits = self._block_logits([texts[r] + blocks[r].tokens for r in rows])
            for row, scores in zip(rows, logits, strict=True):
                block = blocks[row]
                forwards[row] += 1
                before, final = list(block.tokens), not block.masked()
                if not self._rule(block, scores):
                    continue
                written = block.tokens[block.given :]
                texts[row] += block.tokens
                full = len(texts[row]) >= len(prompts[row]) + self._max_new_tokens
                if full or eos & set(written):
                    del blocks[row]
                else:
                    blocks[row] = self._begin(texts[row])
                    # The engine takes its first step in the forward that found this one final.
                    forwards[row] -= final and block.tokens == before
        return [
            self._answer(texts[row][len(prompt) :], forwards[row])
            for row, prompt in enumerate(prompts)
        ]

    def _begin(self, text: list[int]) -> Block:
        """Cut the incomplete last block off the text and fill it with masks."""
        given = len(text) % self._block
        tokens = text[len(text) - given :]
        del text[len(text) - given :]
        masks = self._block - given
        hidden = [False] * given + [True] * masks
        return Block(tokens + [self._mask_id] * masks, hidden, [False] * self._block, given)

    def _block_logits(self, texts: list[list[int]]) -> Tensor:
        """float32 [rows, block, vocab] of the last block of each text; texts end with a block."""
        device, size = self._model.lm_head.weight.device, self._block
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
        position = torch.arange(width, device=device)
        group = (position // size).expand_as(ids)
        last = torch.tensor([len(text) // size - 1 for text in texts], device=device)
        causal = group[0][:, None] >= group[0][None, :]
        logits = self._model(
            ids,
            position.expand_as(ids),
            causal.expand(len(texts), -1, -1),
            group=group,
            select=group == last[:, None],
            fast=True,
        )
        return logits.view(len(texts), size, -1).cpu()
