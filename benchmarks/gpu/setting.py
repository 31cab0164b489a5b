"""What a run measures on: device, model, and how both engines are started."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.engines import OURS, REPOSITORY, STOCK, ServerSpec, spec
from benchmarks.gpu import plugin, shapes
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.patterns import Pattern
from benchmarks.gpu.store import write_atomically
from llada_sglang.platform.detect import accelerator
from llada_sglang.roofline import gpus
from llada_sglang.roofline.gpus import Gpu

ENGINES = (OURS, STOCK)
READY_SECONDS = 420
"""For a server to answer: the first start on a machine compiles kernels, which takes minutes."""
UNIFORM_EXPERTS = {"SGLANG_SIMULATE_UNIFORM_EXPERTS": "1"}
"""The host's own switch: each token gets eight experts 32 apart, the first drawn at random. What
rows touch is then what the cost model expects, 256 (1 - (31/32)^tokens), in either engine, since
both route by the host's `select_experts`. A CUDA graph keeps what was drawn at its capture."""
STOCK_FLAGS = (
    # Not one scheduler round per forward: rows of one schedule end their blocks together anyway.
    "--no-dllm-fdfo",
    # Its prompts run in the decode graphs; the default would capture others that nothing runs in.
    *("--cuda-graph-backend-prefill", "disabled"),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. rows: block rows of a step; prompt, output: tokens of a request.

    step_prompt: prompt tokens behind the steps, of which `steps` are timed and `profiled` profiled.
    concurrent: requests at once. questions: of nano.
    """

    rows: tuple[int, ...] = (1, 8, 32, 128)
    step_prompt: int = 512
    steps: int = 96
    profiled: int = 24
    prompt: int = 4096
    output: int = 1536
    concurrent: tuple[int, ...] = (1, 32, 128)
    questions: int = 40

    @property
    def running(self) -> int:
        return max(*self.rows, *self.concurrent)


FULL = Sizes()
TRIAL = Sizes((1, 2), 64, 8, 4, 96, 32, (1, 2), 2)  # of the benchmark itself


@dataclass(frozen=True)
class Setting:
    """One run. device: `cuda` or `cpu`; shape: a name of `shapes.SHAPES`.

    flags: more of both servers; stock_flags: more of stock.
    """

    device: str
    shape: str
    flags: str = ""
    stock_flags: str = ""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Setting:
        """From the command line's arguments of the same names."""
        return cls(*(getattr(arguments, name) for name in cls.arguments()))

    @staticmethod
    def arguments() -> tuple[str, ...]:
        return ("device", "shape", "flags", "stock_flags")

    def command_line(self) -> list[str]:
        """The same setting for another process."""
        return [f"--{n.replace('_', '-')}={getattr(self, n)}" for n in self.arguments()]

    @property
    def trial(self) -> bool:
        """Whether the benchmark itself is tried: its table is no result."""
        return self.shape == "tiny"

    @property
    def sizes(self) -> Sizes:
        return TRIAL if self.trial else FULL

    @property
    def name(self) -> str:
        """Of its report and its directory: what is measured differently is kept apart."""
        parts = [self.device_name, self.shape]
        if given := (self.flags, self.stock_flags) if self.flags or self.stock_flags else None:
            parts.append(hashlib.sha256(repr(given).encode()).hexdigest()[:8])
        return "-".join(parts)

    @cached_property
    def work(self) -> Path:
        """Where measurements, logs and the written model are kept."""
        path = REPOSITORY / "build" / "gpu-benchmark" / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @cached_property
    def model(self) -> Path:
        return shapes.write(self.shape, self.work / "model")

    @cached_property
    def device_name(self) -> str:
        if self.device == "cpu":
            return "cpu"
        name = torch.cuda.get_device_name().removeprefix("NVIDIA ")
        return "-".join(name.lower().split())

    @cached_property
    def gpu(self) -> Gpu | None:
        """The cost model's entry of this device, None where it has none."""
        found = [name for name in gpus.GPUS if name in self.device_name]
        return gpus.find(found[0]) if found else None

    def spec(self, engine: str) -> ServerSpec:
        """How to start an engine; stock resolves as many positions as `force` said last."""
        flags = ["--max-running-requests", str(self.sizes.running)]
        flags += ["--load-format", "dummy", "--disable-radix-cache"]
        if self.trial:
            flags += ["--max-total-tokens", "4096"]
        if self.device == "cpu":
            flags += ["--dtype", "float32"]
        if engine == STOCK:
            config = self.work / "forced.yaml"
            config.write_text(f"steps_file: {self._steps_file}\n")
            flags += [*STOCK_FLAGS, "--dllm-algorithm", plugin.ALGORITHM]
            flags += ["--dllm-algorithm-config", str(config)]
        flags += shlex.split(self.flags)
        flags += shlex.split(self.stock_flags) if engine == STOCK else []
        environment = {
            "SGLANG_PLUGINS": plugin.NAME if engine == STOCK else f"llada_sglang,{plugin.NAME}",
            "PYTHONPATH": plugin.install(self.work / "plugin"),
            **(UNIFORM_EXPERTS if self.device == "cuda" else {}),
        }
        return bound(spec(engine, self.model, flags).with_environment(environment))

    def force(self, pattern: Pattern) -> None:
        """Have stock resolve blocks by `pattern` from the next one on; nothing may be running."""
        write_atomically(self._steps_file, f"{pattern.steps}\n")

    def in_words(self, engine: str) -> str:
        """The launch command of a report."""
        started = self.spec(engine)
        variables = [f"{k}={v}" for k, v in started.environment if k.startswith("SGLANG_")]
        flags = " ".join(started.flags).replace("--dllm-algorithm LowConfidence ", "")
        flags = flags.replace(f"{self.work}/", "")
        return " ".join([*variables, "python -m sglang.launch_server --model-path DIR", flags])

    @property
    def _steps_file(self) -> Path:
        return self.work / "steps"


def bound(started: ServerSpec) -> ServerSpec:
    """The same server, bound to this process."""
    return replace(started, command=guarded(started.command))


def require_device(device: str) -> None:
    """Raise SystemExit where the device is not here, or another one is."""
    found = accelerator()
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here. Run this on a machine with an NVIDIA GPU; "
            "`--device cpu --shape tiny` tries the benchmark itself and lands no result."
        )
    if device == "cpu" and found is not None:
        raise SystemExit(f"--device cpu is for machines without an accelerator, here is {found}.")


def inherited_environment(extra: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The environment of a worker process that is to be one of the engines."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLADA_SGLANG_")}
    return {**kept, **dict(extra)}
