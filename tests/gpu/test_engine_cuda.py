"""The real scheduler over nano on the device: launching a step waits for nothing."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))

from inprocess import InProcessEngine
from policy_cases import EDITING, UNMASKING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

FLAGS = ("--dtype", "bfloat16", "--max-total-tokens", "8192", "--max-running-requests", "8")
SAMPLED = {"temperature": 1.0, "top_p": 0.9}


def submit_all(engine: InProcessEngine, seed: int) -> None:
    """Requests of every policy, a third of them sampled, that come while others run."""
    rng = random.Random(seed)
    for at, case in enumerate(({}, *UNMASKING, *EDITING)):
        prompt = [rng.randrange(700) for _ in range(rng.randrange(1, 150))]
        sampling: dict[str, Any] = SAMPLED if at % 3 == 2 else {}
        custom = {"custom_params": case} if case else {}
        engine.submit(prompt, max_new_tokens=70, ignore_eos=True, **sampling, **custom)
        for _ in range(rng.randrange(3)):
            engine.tick()
    engine.run()


def test_no_launch_waits_for_the_device(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InProcessEngine(str(nano), *FLAGS, "--cuda-graph-max-bs-decode", "8")
    rounds = engine.scheduler.rounds
    assert rounds.overlap
    assert engine.scheduler.tp_worker.model_runner.decode_cuda_graph_runner is not None
    # Kernels are compiled, and what is measured once is measured, in a run before.
    submit_all(engine, 1)
    launch, launches = rounds.runner.launch, []

    def watched(*args: Any) -> Any:
        launches.append(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(rounds.runner, "launch", watched)
    submit_all(engine, 2)
    assert len(launches) >= 20
    assert all(answer.finish["type"] == "length" for answer in engine.answers.values())
