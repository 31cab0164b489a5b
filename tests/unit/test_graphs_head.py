"""The head's graphs give what the head gives, at any positions of the body's buffer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from graph_recorder import EagerRecorder
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, combine_shards
from llada_sglang.graphs.head import HeadGraphs
from llada_sglang.graphs.setup import gathers_in_graph
from llada_sglang.kernels import vocab_statistics

TOKENS, HIDDEN, VOCAB, MASK = 256, 48, 333, 300
SIZES = [8, 16, 64]


@pytest.fixture
def buffer() -> Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(1))


def expected(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: the argmax and its probability, the mask id being impossible."""
    logits = (hidden.double() @ weight.double().T).index_fill(1, torch.tensor([MASK]), -torch.inf)
    confidence, candidate = logits.softmax(dim=-1).max(dim=-1)
    return candidate, confidence.float()


def head_graphs(
    buffer: Tensor, weight: Tensor, recorder: EagerRecorder, *, in_graph: bool = True
) -> HeadGraphs:
    def combine(local: ShardStatistics) -> tuple[Tensor, Tensor]:
        recorder.recorded.append(("combine", local.maximum.numel()))
        return combine_shards(ShardStatistics(*(field[None] for field in local)))

    graphs = HeadGraphs(
        buffer,
        sizes=SIZES,
        statistics=lambda picked: vocab_statistics(picked @ weight.T, vocab_start=0, mask_id=MASK),
        combine=combine,
        combine_in_graph=in_graph,
        recorder=recorder,
    )
    graphs.capture()
    recorder.recorded.clear()
    return graphs


@pytest.mark.parametrize("in_graph", [True, False])
@pytest.mark.parametrize(
    ("positions", "sizes"),
    [(1, [8]), (8, [8]), (9, [16]), (64, [64]), (65, [64, 8]), (150, [64, 64, 64])],
)
def test_any_number_of_positions_anywhere(
    buffer: Tensor, weight: Tensor, positions: int, sizes: list[int], in_graph: bool
) -> None:
    recorder = EagerRecorder()
    graphs = head_graphs(buffer, weight, recorder, in_graph=in_graph)
    first = 32  # the denoise rows of a forward come after its final ones
    hidden = buffer[first:]
    where = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(2))[:positions]
    assert graphs.covers(hidden)
    candidate, confidence = graphs.run(hidden, where)
    assert recorder.replayed == [("head", size) for size in sizes]
    right = expected(buffer[first + where], weight)
    assert torch.equal(candidate, right[0])
    torch.testing.assert_close(confidence, right[1])
    assert candidate.dtype == torch.int64
    assert confidence.dtype == torch.float32
    # Ranks are combined in what is recorded, at its full size, or outside, for real positions.
    combined = [count for kind, count in recorder.recorded if kind == "combine"]
    assert combined == (sizes if in_graph else _real(positions))


def _real(positions: int) -> list[int]:
    whole, rest = divmod(positions, SIZES[-1])
    return [SIZES[-1]] * whole + ([rest] if rest else [])


def test_positions_of_an_earlier_call_have_no_part_in_a_later_one(
    buffer: Tensor, weight: Tensor
) -> None:
    graphs = head_graphs(buffer, weight, EagerRecorder())
    graphs.run(buffer, torch.arange(200, 255))
    buffer[200:] = torch.nan
    where = torch.arange(5, 14)
    candidate, confidence = graphs.run(buffer, where)
    right = expected(buffer[where], weight)
    assert torch.equal(candidate, right[0])
    torch.testing.assert_close(confidence, right[1])


def test_graphs_captured_outside_of_inference_mode_run_within(
    buffer: Tensor, weight: Tensor
) -> None:
    """The scheduler captures while it is built, and serves in inference mode."""
    graphs = head_graphs(buffer, weight, EagerRecorder())
    with torch.inference_mode():
        where = torch.arange(3, 80)
        candidate, _ = graphs.run(buffer[32:], where)
        assert torch.equal(candidate, expected(buffer[32 + where], weight)[0])


def test_the_head_reads_what_the_body_left_last(buffer: Tensor, weight: Tensor) -> None:
    graphs = head_graphs(buffer, weight, EagerRecorder())
    where = torch.arange(20)
    before = graphs.run(buffer, where)[0].clone()
    buffer.neg_()
    after = graphs.run(buffer, where)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, expected(buffer[where], weight)[0])


def test_hidden_states_of_an_eager_forward_are_not_covered(buffer: Tensor, weight: Tensor) -> None:
    graphs = head_graphs(buffer, weight, EagerRecorder())
    assert not graphs.covers(buffer.clone())
    assert not graphs.covers(buffer[:, :8])


@pytest.mark.parametrize(
    ("world_size", "pynccl", "expected"), [(1, None, True), (2, object(), True), (2, None, False)]
)
def test_ranks_are_combined_in_the_graph_only_where_the_host_can_capture_it(
    world_size: int, pynccl: object, expected: bool
) -> None:
    group = SimpleNamespace(world_size=world_size, pynccl_comm=pynccl)
    assert gathers_in_graph(group) is expected  # type: ignore[arg-type]
