"""Steps launched ahead on the device: the tokens of a CPU, and nothing waited for on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from tensor_rounds import EOS, REQUESTS, TensorRounds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

PROMPTS = ([1, 2], [1] * 9, [5, 4, 1, 0, 2, 6])


def texts(device: str, *, overlap: bool, names: list[str]) -> list[tuple[int, ...]]:
    rounds = TensorRounds(device, overlap=overlap)
    sent = [
        rounds.submit(prompt, tokens=30, eos=[EOS], **REQUESTS[name])
        for name in names
        for prompt in PROMPTS
    ]
    rounds.run()
    return [tuple(request.output_ids_through_stop) for request in sent]


@pytest.mark.parametrize("names", [*([name] for name in REQUESTS), list(REQUESTS)], ids=str)
def test_the_tokens_are_those_of_a_cpu(names: list[str]) -> None:
    expected = texts("cpu", overlap=False, names=names)
    assert texts("cuda", overlap=False, names=names) == expected
    assert texts("cuda", overlap=True, names=names) == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_a_launch_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernels are compiled, and what is measured once is measured, in a run before.
    texts("cuda", overlap=True, names=[name])
    rounds = TensorRounds("cuda", overlap=True)
    launch = rounds.rounds.runner.launch

    def watched(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(rounds.rounds.runner, "launch", watched)
    for prompt in PROMPTS:
        rounds.submit(prompt, tokens=30, eos=[EOS], **REQUESTS[name])
    rounds.run()


def test_the_device_never_idles_between_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a result is asked for, the next step is queued already: the stream is not empty."""
    rounds = TensorRounds("cuda", overlap=True)
    runner = rounds.rounds.runner
    forward, launch = runner._forward, runner.launch
    queued: list[bool] = []

    def slow(*args: Any) -> Any:
        torch.cuda._sleep(20_000_000)  # some 10 ms, much more than the host needs for a step
        return forward(*args)

    def watched(*args: Any) -> Any:
        step = launch(*args)
        result = step.result

        def taken() -> Any:
            found = result()
            queued.append(not torch.cuda.current_stream().query())
            return found

        step.result = taken
        return step

    monkeypatch.setattr(runner, "_forward", slow)
    monkeypatch.setattr(runner, "launch", watched)
    rounds.submit([1, 2], tokens=30, eos=[EOS], ignore_eos=True)
    rounds.run()
    assert queued
    assert all(queued)
