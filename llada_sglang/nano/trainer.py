"""One training run of nano: its model, optimizers, data and state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from llada_sglang.nano import batches, chat, evaluate
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.corruption import Corruptor, editing_segment, plant_own_tokens
from llada_sglang.nano.editors import BatchedEditor
from llada_sglang.nano.edits import Editing
from llada_sglang.nano.export import (
    BLOCK_SIZE,
    initialise,
    nano_config,
    start_from,
)
from llada_sglang.nano.loss import balance_experts, masked_loss
from llada_sglang.nano.optim import build_optimizers
from llada_sglang.nano.recipe import Phase, Recipe
from llada_sglang.nano.tokenizer import add_edit_tokens, token_id, train_tokenizer
from llada_sglang.reference.checkpoint import load_model


class Trainer:
    """Model, optimizers and position in the recipe; `state.pt` in `out` holds all of it.

    start: a checkpoint directory to take weights and tokenizer from instead of random ones.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        seed: int,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        self.recipe, self.out, self.seed, self.device = recipe, out, seed, device
        self.tokenizer = run_tokenizer(out, seed, start)
        if recipe.variant == "levenshtein":
            add_edit_tokens(self.tokenizer)
        self.config = nano_config(self.tokenizer, recipe.variant)
        model = initialise(self.config, seed=seed)
        if start is not None:
            start_from(model, load_model(start))
        self.model = model.to(device)
        self.optimizers = build_optimizers(
            self.model, muon_lr=recipe.muon_lr, adam_lr=recipe.adam_lr
        )
        self.step = 0
        self.mask_id = token_id(self.tokenizer, chat.MASK)
        self.fill_id = token_id(self.tokenizer, chat.END_OF_TEXT)
        self.editing = None
        if recipe.variant in ("edit", "levenshtein"):
            self.editing = Editing(
                self.mask_id,
                self.fill_id,
                self.config.get("delete_token_id"),
                self.config.get("split_token_id"),
                recipe.keep_weight,
                recipe.fill_weight,
                recipe.action_weight,
            )

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.recipe.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """The phase a step belongs to, and how far into it the step is, in [0, 1)."""
        for phase in self.recipe.phases:
            if step < phase.steps:
                return phase, step / phase.steps
            step -= phase.steps
        raise IndexError("step is past the last phase")

    def rate(self, step: int) -> float:
        """Learning rate of a step as a share of the peak, with a warm-up of 100 steps."""
        phase, done = self.phase_at(step)
        share = phase.rate[0] + (phase.rate[1] - phase.rate[0]) * done
        return share * min(1.0, (step + 1) / 100)

    def batch(self, step: int, phase: Phase) -> batches.Batch:
        """The batch of a step: a function of the seed and the step alone, so resuming is exact."""
        rng = random.Random(f"{self.seed}/{step}")
        stream = batches.Documents(
            self.tokenizer, rng, dict(self.recipe.weights), self.recipe.history_share
        )
        segments: Iterator[batches.Segment]
        if not phase.block_size:
            segments = (batches.autoregressive_segment(document) for document in stream)
        elif self.editing is not None:
            corruptor = self.corruptor(self.editing)
            segments = (
                editing_segment(
                    document, rng, corruptor, block_size=phase.block_size, width=phase.width
                )
                for document in stream
            )
        else:
            segments = (
                batches.diffusion_segment(
                    document,
                    rng,
                    block_size=phase.block_size,
                    mask_id=self.mask_id,
                    fill_id=self.fill_id,
                    fill_weight=self.recipe.fill_weight,
                    width=phase.width,
                    ahead=phase.ahead,
                )
                for document in stream
            )
        packed, count = batches.pack(segments, rows=phase.rows, width=phase.width)
        return batches.collate(
            packed,
            count,
            width=phase.width,
            pad_id=self.fill_id,
            block_size=phase.block_size or None,
        ).to(self.device)

    def corruptor(self, editing: Editing) -> Corruptor:
        """Noisy blocks for this tokenizer: digits are single tokens, and text ids come first."""
        digits = tuple(token_id(self.tokenizer, digit) for digit in "0123456789")
        return Corruptor(editing, digits, vocabulary=self.fill_id)

    def train_step(self) -> dict[str, float]:
        """One update; returns loss, accuracy of masked tokens, and the size of the batch."""
        phase, _ = self.phase_at(self.step)
        batch = self.batch(self.step, phase)
        if self.editing is not None and phase.block_size:
            self.model.eval()
            rng = random.Random(f"{self.seed}/{self.step}/own")
            plant_own_tokens(self.model, batch, self.editing, rng, share=self.recipe.own_share)
        self.model.train()
        select = batch.labels != batches.IGNORE
        labels, weight = batch.labels[select], batch.weight[select]
        logits = self.model(
            batch.ids, batch.positions, batch.mask, group=batch.group, select=select, fast=True
        )
        loss, right = masked_loss(logits, labels, weight, cap=phase.cap)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        share = self.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance_experts(self.model, self.recipe.bias_rate * share)
        self.step += 1
        return {
            "step": self.step,
            "loss": float(loss.detach()),
            "token_accuracy": float(right),
            "documents": batch.documents,
        }

    def evaluate(self, per_family: int) -> list[evaluate.Score]:
        """Exact match and TPF on held-out prompts, with the weights as they are now.

        Decoded as the variant's checkpoint will be by default.
        """
        self.model.eval()
        decoder: evaluate.AnswerFn
        if self.editing is None:
            decoder = BatchedDecoder(
                self.model, self.tokenizer, block_size=BLOCK_SIZE, threshold=0.95
            )
        else:
            decoder = BatchedEditor(self.model, self.tokenizer, block_size=BLOCK_SIZE)
        return evaluate.evaluate(decoder, seed=self.seed + 1, per_family=per_family)

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        self.tokenizer.save(str(self.out / "tokenizer.json"))
        part = self.out / "state.pt.part"
        torch.save(state, part)
        part.replace(self.out / "state.pt")

    def resume(self) -> bool:
        """Go on from `state.pt` if there is one; the learning rates stay those of the recipe."""
        path = self.out / "state.pt"
        if not path.is_file():
            return False
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        self.step = state["step"]
        return True


def run_tokenizer(out: Path, seed: int, start: Path | None = None) -> Tokenizer:
    """The tokenizer of a run: its state's, else that of where it starts from, else a new one."""
    for directory in (out, start):
        if directory is not None and (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
    return train_tokenizer(seed=seed)
