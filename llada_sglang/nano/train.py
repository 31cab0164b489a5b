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
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llada_sglang.nano import plot
from llada_sglang.nano.export import (
    export_checkpoint,
)
from llada_sglang.nano.recipe import RECIPES, read_recipe
from llada_sglang.nano.trainer import Trainer


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
