"""Graphs of block rows in the real scheduler: recorded once, run again for every step.

Only the device's part is left out: what a graph of CUDA would replay is called again, on the same
static buffers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from graph_recorder import EagerRecorder
from inprocess import InProcessEngine
from oracle import Oracle
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from test_rounds_fidelity import ask, check, overlap, questions  # noqa: F401

from llada_sglang.attention.torch_backend import BlockRowTorchBackend
from llada_sglang.graphs.body import BlockRowGraphRunner
from llada_sglang.graphs.crossover import Crossover
from llada_sglang.graphs.head import HeadGraphs

ROWS = [1, 2, 4, 8]
POSITIONS = [32, 64]


class PlannedForGraphs(BlockRowTorchBackend):
    """The torch backend behind the host's interface of graphs."""

    def init_cuda_graph_state(self, *_: object) -> None: ...

    def init_forward_metadata_out_graph(self, batch: object, in_capture: bool = False) -> None:
        self.init_forward_metadata(batch)


@pytest.fixture
def graphs(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[EagerRecorder]:
    recorder = EagerRecorder()
    scheduler = engine.scheduler
    model_runner, runner = scheduler.tp_worker.model_runner, scheduler.rounds.runner
    monkeypatch.setattr(model_runner.attn_backend, "__class__", PlannedForGraphs)
    # The host dispatches to a runner of graphs where the mode says that its device has one.
    monkeypatch.setattr(ForwardMode, "is_cpu_graph", lambda self: self == ForwardMode.DLLM_EXTEND)
    body = BlockRowGraphRunner(model_runner, sizes=ROWS, block=runner.block, recorder=recorder)
    head = HeadGraphs(
        body.hidden,
        sizes=POSITIONS,
        statistics=runner.head.statistics,
        combine=runner.head.combine,
        combine_in_graph=True,
        recorder=recorder,
    )
    with torch.inference_mode():
        body.capture()
        head.capture()
    body.crossover = Crossover(dict.fromkeys(ROWS, 1), in_turns=True)
    monkeypatch.setattr(model_runner, "decode_cuda_graph_runner", body)
    monkeypatch.setattr(runner.head, "graphs", head)
    yield recorder
    scheduler.flush_cache()


def test_every_text_is_the_references(
    engine: InProcessEngine, oracle: Oracle, graphs: EagerRecorder
) -> None:
    rng = random.Random(5)
    sent = []
    for question in questions(engine, 41, 24):
        sent.append((ask(engine, question), question))
        for _ in range(rng.randrange(3)):
            engine.tick()
    engine.run()
    for rid, question in sent:
        check(engine, oracle, rid, question)
    replayed = set(graphs.replayed)
    assert {("body", size) for size in ROWS} <= replayed
    assert {("head", size) for size in POSITIONS} <= replayed
