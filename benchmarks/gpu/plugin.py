"""A host plugin for the servers measured on a GPU: random weights, and stock's forced schedule.

`install` writes a directory for PYTHONPATH that makes this file a plugin of the host. Ours loads it
beside our own, stock loads it alone. It changes two things, the first in both engines alike:

- `--load-format dummy` fills every weight between -0.001 and 0.001, so that activations vanish and
  all logits are one. Here weights have the scale of a trained model's, norms are 1 and the router's
  bias is 0. Which experts run is not up to them: all masks are one embedding, so that any random
  router sends most tokens of a step to the same few (`setting.py` has the host draw them instead).
- `--dllm-algorithm ForcedSchedule` is stock's LowConfidence with a fixed number of positions per
  step. Its cost is LowConfidence's: argmax, softmax, gather; then a sort of 32 numbers a row.

The installed copy runs without this repository: only the standard library, torch and the host.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAME = "gpu_benchmark"
ALGORITHM = "ForcedSchedule"
GROUP = "sglang.srt.plugins"
APPLIED = f"{NAME}: weights have the scale of a trained model's"
"""What a server's log says if the plugin was loaded: the host goes on without a failing one."""

ANNOUNCED = "steps per block from now on"


def install(directory: Path) -> str:
    """Write the plugin into `directory`; returns the PYTHONPATH under which the host finds it."""
    info = directory / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {NAME}:register\n")
    shutil.copyfile(__file__, directory / f"{NAME}.py")
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(directory), *([inherited] if inherited else [])])


def register() -> None:
    """Entry point: hook both into this process."""
    from sglang.srt.dllm.algorithm import algo_name_to_cls
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.model_loader.weight_utils.initialize_dummy_weights",
        initialize,
        HookType.AROUND,
    )
    algo_name_to_cls[ALGORITHM] = forced_schedule()


def initialize(original: Callable[..., None], model: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND `initialize_dummy_weights`: weights in 16 bits or more get the scale of trained ones.

    Matrices [.., out, in] are normal with a deviation of 1 / sqrt(in), embeddings of 1.
    """
    import torch

    original(model, *args, **kwargs)
    for index, (name, weight) in enumerate(model.named_parameters()):
        if not weight.is_floating_point() or torch.finfo(weight.dtype).bits < 16:
            continue
        if "norm" in name:
            weight.data.fill_(1)
        elif weight.dim() < 2:
            weight.data.zero_()
        elif "scale" not in name:
            generator = torch.Generator(weight.device).manual_seed(index)
            spread = 1.0 if "word_embeddings" in name else weight.shape[-1] ** -0.5
            weight.data.normal_(0, spread, generator=generator)
    print(APPLIED, file=sys.stderr, flush=True)


def forced_schedule() -> type:
    """Stock's LowConfidence, resolving as many positions per step as a schedule says.

    Parameter `steps_file` of the algorithm's configuration: a file that holds the steps per block.
    It is read anew for every block, so one server can run all schedules; whoever changes it waits
    until nothing runs. A block whose beginning is the prompt's has fewer masks and is done earlier.
    """
    import torch
    from sglang.srt.dllm.algorithm.low_confidence import LowConfidence

    class ForcedSchedule(LowConfidence):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.steps_file = Path(config.algorithm_config["steps_file"])
            self.steps = 0

        def init_step_state(self, forward_batch: Any) -> list[Any]:
            # Called when blocks begin; each row's state stays with it until its block ends.
            steps = read_steps(self.steps_file, self.block_size)
            if steps != self.steps:
                self.steps = steps
                print(announcement(steps), file=sys.stderr, flush=True)
            base, rest = divmod(self.block_size, steps)
            counts = [base + (step < rest) for step in range(steps)]
            return [iter(counts) for _ in range(forward_batch.batch_size)]

        def step(self, forward_batch: Any, full_logits: Any, states: list[Any]) -> list[bool]:
            rows, vocab = forward_batch.batch_size, full_logits.shape[-1]
            logits = full_logits.view(rows, self.block_size, vocab)
            input_ids = forward_batch.input_ids.view(rows, self.block_size)
            masked = input_ids == self.mask_id
            if forward_batch.dllm_prompt_mask is not None:
                masked = torch.where(forward_batch.dllm_prompt_mask, False, masked)
            done = masked.sum(dim=1) == 0

            x = torch.argmax(logits, dim=-1)
            probs = torch.nn.functional.softmax(logits, dim=-1)
            confidence = torch.gather(probs, dim=-1, index=x.unsqueeze(-1)).squeeze(-1)
            confidence = torch.where(masked, confidence, -float("inf"))

            counts = torch.tensor(list(_next_counts(states)), device=input_ids.device)
            order = torch.argsort(confidence, dim=1, descending=True, stable=True)
            rank = torch.empty_like(order).scatter_(
                1, order, torch.arange(self.block_size, device=order.device).expand_as(order)
            )
            accepted = masked & (rank < counts[:, None])
            # A position that predicts its own mask would never be resolved.
            x = torch.where(x == self.mask_id, 0, x)
            forward_batch.input_ids.copy_(torch.where(accepted, x, input_ids).view(-1))
            return done.tolist()

    return ForcedSchedule


def read_steps(file: Path, block: int) -> int:
    """The steps per block that `file` holds; ValueError where it does not hold such a number."""
    text = file.read_text().strip()
    if not text.isdecimal() or not 1 <= int(text) <= block:
        raise ValueError(f"{file} must hold a number of steps in [1, {block}], got {text[:40]!r}.")
    return int(text)


def announcement(steps: int) -> str:
    """What a server's log says when the number of steps changes."""
    return f"{NAME}: {steps} {ANNOUNCED}"


def _next_counts(states: list[Any]) -> Iterator[int]:
    """Of a block that has had all its steps nothing is left to accept."""
    return (next(state, 0) for state in states)
