"""Launching a step waits for nothing: no value the device computes is looked at on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensor_rounds import EOS, REQUESTS, TensorRounds
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sglang.decoding.policies.threshold import Threshold
from llada_sglang.decoding.statistics import ShardStatistics
from llada_sglang.scheduler import runner as runner_module


class _Reads(TorchFunctionMode):
    """Fails where Python asks a tensor for its values. On a GPU each of these waits for it."""

    FORBIDDEN = frozenset(
        getattr(Tensor, name)
        for name in (
            *("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__"),
            *("__index__", "__array__", "__contains__", "masked_select", "unique"),
        )
    )

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in self.FORBIDDEN:
            raise AssertionError(f"host sync: {function.__name__}")
        return function(*args, **(kwargs or {}))


class _Shapes(TorchDispatchMode):
    """Fails at operations whose result's size, or a scalar, depends on values on the device."""

    FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal")

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.name()
        if name.startswith(self.FORBIDDEN):
            raise AssertionError(f"host sync: {name}")
        if name.startswith(("aten::index.", "aten::index_put")):
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    raise AssertionError(f"host sync: {name} by a mask")
        return function(*args, **(kwargs or {}))


def statistics_without_a_look(logits: Tensor, *, vocab_start: int, mask_id: int) -> Any:
    """What the kernel of a GPU computes; the torch twin for CPUs asks first whether it must."""
    logits = logits.float().clone()
    logits[:, mask_id - vocab_start] = -torch.inf
    top, token = logits.max(dim=-1)
    return ShardStatistics(top, token + vocab_start, (logits - top[:, None]).exp().sum(dim=-1))


def guarded(monkeypatch: pytest.MonkeyPatch, overlap: bool) -> tuple[TensorRounds, list[int]]:
    """Rounds whose every launch is watched; the list counts them."""
    for module in ("choice", "head"):
        name = f"llada_sglang.scheduler.{module}.vocab_statistics"
        monkeypatch.setattr(name, statistics_without_a_look)
    monkeypatch.setattr("llada_sglang.decoding.sampling.can_look", lambda values: False)
    rounds = TensorRounds("cpu", overlap=overlap)
    runner, launches = rounds.rounds.runner, [0]
    launch: Callable[..., Any] = runner.launch

    def watched(*args: Any) -> Any:
        launches[0] += 1
        with _Reads(), _Shapes():
            return launch(*args)

    monkeypatch.setattr(runner, "launch", watched)
    return rounds, launches


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_launch_looks_at_no_value(
    name: str, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, launches = guarded(monkeypatch, overlap)
    for prompt in ([1, 2], [1] * 9):
        rounds.submit(prompt, tokens=10, eos=[EOS], **REQUESTS[name])
    rounds.run()
    assert launches[0] > 3


def test_rows_of_all_kinds_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, launches = guarded(monkeypatch, overlap=True)
    for options in REQUESTS.values():
        rounds.submit([1, 2, 3], tokens=12, eos=[EOS], **options)
    rounds.run()
    assert launches[0] > 3


@pytest.mark.parametrize("look", ["item", "tolist", "numpy", "cpu", "bool", "mask", "nonzero"])
def test_a_look_at_a_value_is_noticed(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, _ = guarded(monkeypatch, overlap=True)

    def looks(policy: Threshold, step: Any) -> Tensor:
        found = step.confidence > 0.5
        {
            "item": lambda: found.sum().item(),
            "tolist": found.tolist,
            "numpy": found.numpy,
            "cpu": found.cpu,
            "bool": lambda: bool(found.any()),
            "mask": lambda: step.canvas[found],
            "nonzero": found.nonzero,
        }[look]()
        return found

    monkeypatch.setattr(Threshold, "propose", looks)
    rounds.submit([1, 2], tokens=10, eos=[EOS])
    with pytest.raises(AssertionError, match="host sync"):
        rounds.run()


def test_the_report_is_the_only_download(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, launches = guarded(monkeypatch, overlap=True)
    shapes = []
    download = runner_module.Download

    def counted(tensor: Tensor) -> Any:
        shapes.append(tuple(tensor.shape))
        return download(tensor)

    monkeypatch.setattr(runner_module, "Download", counted)
    request = rounds.submit([1, 2], tokens=10, eos=[EOS])
    record = rounds.records[request.rid]
    assert record.options.reports, "of a traced request everything comes down in one piece"
    rounds.run()
    assert len(shapes) == launches[0]
    assert all(len(shape) == 1 for shape in shapes)
