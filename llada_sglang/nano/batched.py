"""Threshold decoding of many prompts at once: quick enough to measure nano while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from llada_sglang.nano import chat, tasks
from llada_sglang.nano.evaluate import Answer
from llada_sglang.nano.tokenizer import token_id
from llada_sglang.reference.model import LLaDA2


class BatchedDecoder:
    """Answers questions by the rule of `llada_sglang.reference.decode`, steps = block size.

    No cache: a step computes the rows' whole prefixes again. Rows are independent, and finished
    rows leave the batch.
    """

    def __init__(
        self,
        model: LLaDA2,
        tokenizer: Tokenizer,
        *,
        block_size: int,
        threshold: float,
        max_new_tokens: int = 128,
        batch: int = 64,
        progress: bool = False,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._block = block_size
        self._threshold = threshold
        self._max_new_tokens = max_new_tokens
        self._batch = batch
        self._progress = progress
        self._mask_id = token_id(tokenizer, chat.MASK)
        edits = [tokenizer.token_to_id(token) for token in chat.EDIT_TOKENS]
        self._forbidden = [self._mask_id, *(token for token in edits if token is not None)]
        self._eos = torch.tensor(
            [token_id(tokenizer, chat.END_OF_TEXT), token_id(tokenizer, chat.ROLE_END)]
        )

    def __call__(self, examples: Sequence[tasks.Example]) -> list[Answer]:
        prompts = [
            self._tokenizer.encode(chat.render_prompt(e.messages, e.tools)).ids for e in examples
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: dict[int, Answer] = {}
        starts = range(0, len(order), self._batch)
        for start in tqdm(starts, f"threshold {self._threshold}", disable=not self._progress):
            chosen = order[start : start + self._batch]
            decoded = self._decode([prompts[i] for i in chosen])
            answers.update(zip(chosen, decoded, strict=True))
        return [answers[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _decode(self, prompts: list[list[int]]) -> list[Answer]:
        device = self._model.lm_head.weight.device
        block, eos = self._block, self._eos.to(device)
        starts = torch.tensor([len(p) for p in prompts], device=device)
        width = -(-(int(starts.max()) + self._max_new_tokens) // block) * block
        canvas = torch.full((len(prompts), width), self._mask_id, device=device)
        for row, prompt in enumerate(prompts):
            canvas[row, : len(prompt)] = torch.tensor(prompt, device=device)
        position = torch.arange(width, device=device)
        masked = position >= starts[:, None]
        current = starts // block
        forwards = torch.zeros_like(starts)
        limit = starts + self._max_new_tokens
        alive = torch.arange(len(prompts), device=device)
        causal = (position // block)[:, None] >= (position // block)[None, :]
        while len(alive):
            end = int(current[alive].max() + 1) * block
            ids, now = canvas[alive, :end], current[alive, None]
            active = masked[alive, :end] & (position[:end] // block == now)
            logits = self._model(
                ids,
                position[:end].expand_as(ids),
                causal[:end, :end].expand(len(alive), -1, -1),
                group=(position[:end] // block).expand_as(ids),
                select=active,
                fast=True,
            )
            forwards[alive] += 1
            self._unmask(canvas, masked, alive, active, logits)
            generated = (position >= starts[alive, None]) & ~masked[alive]
            is_eos = torch.isin(canvas[alive], eos) & generated
            is_eos &= (masked[alive] & (position // block == now)).cumsum(1) == 0
            resolved = ~(masked[alive] & (position // block == now)).any(1)
            current[alive] += resolved
            full = ~(masked[alive] & (position < limit[alive, None])).any(1)
            alive = alive[~(is_eos.any(1) | full)]
        return [
            self._answer(canvas[r, len(p) :].tolist(), int(forwards[r]))
            for r, p in enumerate(prompts)
        ]

    def _unmask(
        self, canvas: Tensor, masked: Tensor, alive: Tensor, active: Tensor, logits: Tensor
    ) -> None:
        logits[:, self._forbidden] = float("-inf")
        best, token = logits.softmax(-1).max(-1)
        confidence = torch.full(active.shape, -1.0, device=active.device)
        confidence[active] = best
        candidate = torch.zeros(active.shape, dtype=torch.long, device=active.device)
        candidate[active] = token
        chosen = confidence > self._threshold
        chosen[torch.arange(len(alive), device=active.device), confidence.argmax(1)] = True
        rows, columns = (chosen & active).nonzero(as_tuple=True)
        canvas[alive[rows], columns] = candidate[rows, columns]
        masked[alive[rows], columns] = False

    def _answer(self, ids: list[int], forwards: int) -> Answer:
        ids = ids[: self._max_new_tokens]
        eos = self._eos.tolist()
        size = next((i for i, token in enumerate(ids) if token in eos), len(ids))
        text = self._tokenizer.decode(ids[:size], skip_special_tokens=True)
        return Answer(text, min(size + 1, len(ids)), forwards)
