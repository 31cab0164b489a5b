"""Train nano: `python -m llada_sglang.nano.train --out DIR`.

LLaDA2.0's recipe in small (report, sections 3 and 4): autoregressive first, then block diffusion
with the block size warmed up 4, 16, 32, held, and decayed with a CAP confidence term. Seeded, and
resumable: run the same command again and it goes on from the last state in DIR.

`--variant edit` and `--variant levenshtein` teach a trained checkpoint (`--from DIR`) to edit, as
LLaDA2.1 and LLaDA2.2 do: see `nano.corruption`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from llada_sglang.nano import batches, chat, evaluate, plot
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.corruption import Corruptor, editing_segment, plant_own_tokens
from llada_sglang.nano.editors import BatchedEditor
from llada_sglang.nano.edits import Editing
from llada_sglang.nano.export import (
    BLOCK_SIZE,
    export_checkpoint,
    initialise,
    nano_config,
    start_from,
)
from llada_sglang.nano.loss import balance_experts, masked_loss
from llada_sglang.nano.optim import build_optimizers
from llada_sglang.nano.recipe import RECIPES, Phase, Recipe, read_recipe
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


def run(trainer: Trainer, *, save_every: int, eval_every: int, per_family: int) -> None:
    """Train to the end of the recipe, logging to metrics.jsonl and redrawing loss.png."""
    log = trainer.out / "metrics.jsonl"
    started = time.monotonic()
    bar = tqdm(total=trainer.total_steps, initial=trainer.step, mininterval=5, smoothing=0.02)
    mean = math.nan
    while trainer.step < trainer.total_steps:
        phase, _ = trainer.phase_at(trainer.step)
        metrics = trainer.train_step()
        mean = metrics["loss"] if math.isnan(mean) else 0.98 * mean + 0.02 * metrics["loss"]
        bar.update()
        bar.set_postfix(phase=phase.name, loss=f"{mean:.3f}", refresh=False)
        last = trainer.step == trainer.total_steps
        records: list[dict[str, Any]] = []
        if trainer.step % 10 == 0 or last:
            seconds = round(time.monotonic() - started, 1)
            records.append({**metrics, "phase": phase.name, "seconds": seconds})
        if (trainer.step % eval_every == 0 and phase.block_size >= 16) or last:
            scores = trainer.evaluate(per_family)
            records.append({"step": trainer.step, "scores": [asdict(s) for s in scores]})
            short = " ".join(
                f"{s.family}={s.accuracy:.2f}/{s.tokens_per_forward:.1f}" for s in scores
            )
            bar.write(f"step {trainer.step}: {short}")
        with log.open("a") as sink:
            sink.writelines(json.dumps(record) + "\n" for record in records)
        if trainer.step % save_every == 0 or last:
            trainer.save()
            plot.draw_training(log, trainer.out / "loss.png")
    bar.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, required=True, help="run directory, resumed if it exists"
    )
    parser.add_argument("--variant", choices=sorted(RECIPES), default="base")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="DIR",
        help="checkpoint to start from instead of random weights; the variants need one",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, default=0, help="torch threads on CPU; 0 keeps torch's"
    )
    parser.add_argument(
        "--init-only", action="store_true", help="export untrained weights and stop"
    )
    parser.add_argument(
        "--recipe", type=Path, help="JSON of phases and numbers instead of the default"
    )
    parser.add_argument("--save-every", type=int, default=200, help="steps between saved states")
    parser.add_argument("--eval-every", type=int, default=400, help="steps between evaluations")
    parser.add_argument(
        "--per-family", type=int, default=8, help="questions per family and evaluation"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.variant]
    if arguments.recipe is not None:
        recipe = replace(read_recipe(arguments.recipe), variant=arguments.variant)
    elif arguments.variant != "base" and arguments.start is None and not arguments.init_only:
        parser.error(f"--variant {arguments.variant} needs --from DIR: its recipe is a short one")
    trainer = Trainer(
        recipe,
        arguments.out,
        seed=arguments.seed,
        device=torch.device(arguments.device),
        start=arguments.start,
    )
    if not arguments.init_only:
        trainer.out.mkdir(parents=True, exist_ok=True)
        trainer.resume()
        run(
            trainer,
            save_every=arguments.save_every,
            eval_every=arguments.eval_every,
            per_family=arguments.per_family,
        )
    target = arguments.out if arguments.init_only else arguments.out / "checkpoint"
    export_checkpoint(trainer.model, trainer.tokenizer, trainer.config, target)
    print(f"checkpoint written to {target}")


if __name__ == "__main__":
    main()
