"""Forwards through the static buffers of graphs, padding included, in the host's real worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import host_worker
import pytest
import torch
from graph_recorder import EagerRecorder
from host_worker import BLOCK, Row, lay_out, random_ids
from test_model_logits import directory, worker  # noqa: F401  (fixtures)
from torch import Tensor

from llada_sglang.graphs.body import BlockRowGraphRunner
from llada_sglang.graphs.crossover import Crossover
from llada_sglang.graphs.inputs import padding_batch
from llada_sglang.graphs.plan import GraphOptions
from llada_sglang.graphs.recorder import HostRecorder
from llada_sglang.graphs.setup import obstacle

SIZES = [1, 2, 4, 8]


@pytest.fixture(scope="module")
def model_runner(worker: Any) -> Any:  # noqa: F811
    """The worker's model runner, whose attention plans for graphs as it does eagerly."""
    from llada_sglang.attention.torch_backend import BlockRowTorchBackend

    class PlansForGraphs(BlockRowTorchBackend):
        """What runs again is Python here, so a plan of the static batch is all a replay needs."""

        def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
            assert max_num_tokens == max_bs * BLOCK

        def init_forward_metadata_out_graph(self, batch: Any, in_capture: bool = False) -> None:
            self.init_forward_metadata(batch)

    runner = worker.model_runner
    assert type(runner.attn_backend) is BlockRowTorchBackend
    runner.attn_backend.__class__ = PlansForGraphs
    return runner


@pytest.fixture
def recorder() -> EagerRecorder:
    return EagerRecorder()


@pytest.fixture
def graphs(model_runner: Any, recorder: EagerRecorder) -> Iterator[BlockRowGraphRunner]:
    runner = BlockRowGraphRunner(model_runner, sizes=SIZES, block=BLOCK, recorder=recorder)
    with torch.no_grad():
        runner.capture()
        Pool(model_runner).zero_()
        yield runner


class Pool:
    """All K and V of the host's pool, layer by layer: [slots, heads, dim] each."""

    def __init__(self, model_runner: Any) -> None:
        buffers = model_runner.token_to_kv_pool
        self.tensors: list[Tensor] = [*buffers.k_buffer, *buffers.v_buffer]

    def zero_(self) -> None:
        for tensor in self.tensors:
            tensor.zero_()

    def copy(self) -> Tensor:
        """[2 * layers, slots, heads, dim]"""
        return torch.stack(self.tensors)


def block_rows(model_runner: Any, rows: Sequence[Row], seed: int = 0) -> Any:
    """A batch as `BlockRunner` builds it, of random tokens."""
    return host_worker.block_rows(model_runner, rows, random_ids(len(rows), 512, seed))


def rows_of_blocks(request: int, first: int, last: int) -> list[Row]:
    return [(request, block * BLOCK) for block in range(first, last)]


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        ([(1, 0)], 1),
        ([(1, 0), (1, 32)], 2),
        ([(2, 0), (1, 0), (1, 32)], 4),
        (rows_of_blocks(1, 0, 5), 8),
        ([*rows_of_blocks(1, 0, 4), *rows_of_blocks(3, 0, 3)], 8),
    ],
    ids=lambda value: f"{len(value)}rows" if isinstance(value, list) else f"of{value}",
)
def test_a_padded_forward_is_the_eager_one_and_leaves_the_rest_of_the_pool_alone(
    model_runner: Any,
    graphs: BlockRowGraphRunner,
    recorder: EagerRecorder,
    rows: list[Row],
    size: int,
) -> None:
    lay_out(model_runner, requests=3, blocks=8, seed=len(rows))
    batch = block_rows(model_runner, rows)
    expected = model_runner.forward(batch).logits_output.hidden_states.clone()
    written = Pool(model_runner).copy()
    Pool(model_runner).zero_()

    assert graphs.can_run_graph(batch)
    output = graphs.execute(batch)
    assert recorder.replayed == [("body", size)]
    assert output.next_token_logits is None
    torch.testing.assert_close(output.hidden_states, expected, rtol=0, atol=0)
    # Slots [0, block) are the page of padding rows.
    assert torch.equal(Pool(model_runner).copy()[:, BLOCK:], written[:, BLOCK:])
    assert graphs.bs == size


def test_padding_rows_write_to_the_padding_page_and_read_nothing_else(
    model_runner: Any, graphs: BlockRowGraphRunner
) -> None:
    """Whatever a larger batch left in the buffers, and whatever the pool holds."""
    lay_out(model_runner, requests=3, blocks=8, seed=3)
    large = block_rows(model_runner, [*rows_of_blocks(1, 0, 4), *rows_of_blocks(2, 0, 4)])
    graphs.execute(large)
    small = block_rows(model_runner, rows_of_blocks(3, 0, 5), seed=1)
    graphs.execute(small)
    padding = graphs.hidden[5 * BLOCK :].clone()
    before = Pool(model_runner).copy()
    touched = small.out_cache_loc.unique()

    # Now with NaN wherever neither the rows nor the padding belong.
    others = torch.ones(before.shape[1], dtype=torch.bool)
    others[touched] = False
    others[:BLOCK] = False
    for tensor in Pool(model_runner).tensors:
        tensor[others] = torch.nan
    hidden = graphs.execute(small).hidden_states
    assert not hidden.isnan().any()
    assert torch.equal(graphs.hidden[5 * BLOCK :], padding)
    after = Pool(model_runner).copy()
    assert after[:, others].isnan().all()
    assert torch.equal(after[:, touched], before[:, touched])
    assert after[:, :BLOCK].any(), "the padding rows wrote somewhere else"
    Pool(model_runner).zero_()


@pytest.mark.parametrize("replayed", [False, True])
def test_forwards_that_are_timed_read_a_long_prefix_and_touch_the_padding_page_alone(
    model_runner: Any, graphs: BlockRowGraphRunner, replayed: bool
) -> None:
    batch = padding_batch(3, BLOCK, 512, "cpu", kv_len=6 * BLOCK)
    lens: list[list[int]] = []
    plan = model_runner.attn_backend.init_forward_metadata

    def seen(planned: Any) -> None:
        assert planned.seq_lens.tolist() == planned.seq_lens_cpu.tolist()
        assert planned.extend_prefix_lens.tolist() == list(planned.extend_prefix_lens_cpu)
        lens.append(planned.seq_lens.tolist())
        plan(planned)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner.attn_backend, "init_forward_metadata", seen)
        if replayed:
            graphs.execute(batch)
        else:
            model_runner.forward(batch)
    assert lens[-1] == [6 * BLOCK] * 3 + [BLOCK] * (1 if replayed else 0)
    assert not Pool(model_runner).copy()[:, BLOCK:].any()


def test_metadata_is_planned_for_the_padded_batch(
    model_runner: Any, graphs: BlockRowGraphRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr(
        type(model_runner.attn_backend),
        "init_forward_metadata_out_graph",
        lambda self, batch, in_capture=False: (
            planned.append((batch, in_capture)),
            self.init_forward_metadata(batch),
        ),
    )
    lay_out(model_runner, requests=3, blocks=8, seed=4)
    graphs.execute(block_rows(model_runner, [(2, 96), (3, 0), (1, 32)]))
    [(batch, in_capture)] = planned
    assert not in_capture
    assert batch.batch_size == 4
    assert batch.forward_mode.is_dllm_extend()
    assert batch.req_pool_indices.tolist() == [2, 3, 1, 0]
    for lengths in (batch.seq_lens, batch.seq_lens_cpu):
        assert lengths.tolist() == [128, 32, 64, 32]
    assert batch.seq_lens_sum == 256
    for prefixes in (batch.extend_prefix_lens.tolist(), batch.extend_prefix_lens_cpu):
        assert prefixes == [96, 0, 32, 0]
    assert batch.extend_seq_lens.tolist() == batch.extend_seq_lens_cpu == [32] * 4
    assert batch.out_cache_loc[-BLOCK:].tolist() == list(range(BLOCK))
    assert batch.positions[-BLOCK:].tolist() == list(range(BLOCK))
    assert batch.positions[:BLOCK].tolist() == list(range(96, 128))


def test_the_static_batch_never_moves(model_runner: Any, graphs: BlockRowGraphRunner) -> None:
    """Captured kernels read addresses, so nothing may be replaced by a new tensor."""
    names = (
        "input_ids", "positions", "out_cache_loc", "req_pool_indices", "seq_lens",
        "extend_prefix_lens", "extend_seq_lens", "extend_start_loc",
    )  # fmt: skip

    def addresses(batch: Any) -> list[int]:
        return [getattr(batch, name).data_ptr() for name in names]

    lay_out(model_runner, requests=2, blocks=8, seed=5)
    batch = graphs._inputs.batch(4)
    before = addresses(batch)
    graphs.execute(block_rows(model_runner, rows_of_blocks(1, 0, 3)))
    graphs.execute(block_rows(model_runner, rows_of_blocks(2, 2, 6)))
    assert graphs._inputs.batch(4) is batch
    assert addresses(batch) == before
    # All sizes view the same buffers, so that they cost the memory of the largest.
    assert addresses(graphs._inputs.batch(8))[:6] == before[:6]


def test_graphs_captured_outside_of_inference_mode_run_within(
    model_runner: Any, graphs: BlockRowGraphRunner
) -> None:
    """The scheduler captures while it is built, and serves in inference mode."""
    lay_out(model_runner, requests=1, blocks=8, seed=10)
    expected = graphs.execute(block_rows(model_runner, rows_of_blocks(1, 0, 3))).hidden_states
    expected = expected.clone()
    with torch.inference_mode():
        batch = block_rows(model_runner, rows_of_blocks(1, 0, 3))
        assert torch.equal(graphs.execute(batch).hidden_states, expected)


def test_sizes_are_recorded_largest_first(
    graphs: BlockRowGraphRunner, recorder: EagerRecorder
) -> None:
    assert recorder.recorded == [("body", size) for size in (8, 4, 2, 1)]


def test_more_rows_than_the_largest_graph_run_in_turns(
    model_runner: Any, graphs: BlockRowGraphRunner, recorder: EagerRecorder
) -> None:
    """Later turns read what earlier ones left in the pool: prompt, committed and open blocks."""
    lay_out(model_runner, requests=3, blocks=16, seed=6)
    rows = [*rows_of_blocks(1, 0, 13), *rows_of_blocks(2, 0, 4), (3, 0), (1, 13 * BLOCK)]
    batch = block_rows(model_runner, rows)
    expected = model_runner.forward(batch).logits_output.hidden_states.clone()
    written = Pool(model_runner).copy()
    Pool(model_runner).zero_()

    assert not graphs.can_run_graph(batch)
    graphs.crossover = Crossover(dict.fromkeys(SIZES, 1), in_turns=True)
    assert graphs.can_run_graph(batch)
    hidden = graphs.execute(batch).hidden_states
    assert recorder.replayed == [("body", 8), ("body", 8), ("body", 4)]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-6)
    now = Pool(model_runner).copy()[:, BLOCK:]
    torch.testing.assert_close(now, written[:, BLOCK:], rtol=0, atol=1e-6)


def test_only_block_rows_without_logits_run_as_graphs(
    model_runner: Any, graphs: BlockRowGraphRunner
) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    lay_out(model_runner, requests=1, blocks=2, seed=7)
    batch = block_rows(model_runner, [(1, 0)])
    assert graphs.can_run_graph(batch)
    batch.model_specific_states = None
    assert not graphs.can_run_graph(batch)
    batch = block_rows(model_runner, [(1, 0)])
    batch.forward_mode = ForwardMode.EXTEND
    assert not graphs.can_run_graph(batch)


def test_forwards_that_the_attention_runs_better_eagerly_are_left_to_it(
    model_runner: Any, graphs: BlockRowGraphRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(model_runner, requests=2, blocks=8, seed=9)
    monkeypatch.setattr(
        type(model_runner.attn_backend),
        "prefers_eager",
        lambda self, batch: batch.seq_lens_sum > 1000,
        raising=False,
    )
    assert graphs.can_run_graph(block_rows(model_runner, [(1, 0), (2, 32)]))
    assert not graphs.can_run_graph(block_rows(model_runner, rows_of_blocks(1, 0, 8)))


def test_without_padding_only_exact_sizes_run_as_graphs(
    model_runner: Any, recorder: EagerRecorder
) -> None:
    runner = BlockRowGraphRunner(
        model_runner, sizes=SIZES, block=BLOCK, recorder=recorder, padding=False
    )
    lay_out(model_runner, requests=1, blocks=8, seed=8)
    fits = [
        runner.can_run_graph(block_rows(model_runner, rows_of_blocks(1, 0, n))) for n in range(1, 9)
    ]
    assert [n for n, fit in enumerate(fits, 1) if fit] == SIZES


def test_the_host_keeps_row_and_page_zero_for_padding(model_runner: Any) -> None:
    """Real pools: neither is ever handed out, and no request's row shows slot 0 by itself."""
    pool_of_rows = model_runner.req_to_token_pool
    assert 0 not in pool_of_rows.free_slots
    assert not pool_of_rows.req_to_token[0].any()
    allocator = model_runner.token_to_kv_pool_allocator
    assert int(allocator.get_all_free_pages().min()) == 1
    # And there is a page 0 beside what the allocator hands out.
    slots = model_runner.token_to_kv_pool.k_buffer[0].shape[0]
    assert slots == allocator.size + BLOCK


def test_the_hosts_backend_warms_up_twice_and_captures_once(
    model_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's real backend; only the device's graph and the context around it are not."""
    captured: list[str] = []

    class DeviceGraph:
        def replay(self) -> None:
            captured.append("replay")

    @contextmanager
    def capturing(cuda_graph: DeviceGraph, pool: Any, stream: Any) -> Iterator[None]:
        captured.append("begin")
        yield
        captured.append("end")

    device = model_runner.eager_runner.device_module
    monkeypatch.setattr(torch.cuda, "CUDAGraph", DeviceGraph)
    monkeypatch.setattr(device, "graph", capturing, raising=False)
    recorder = HostRecorder(model_runner.eager_runner)
    recorder.record(
        ("body", 4), lambda: captured.append("run"), lambda: captured.append("after warmup")
    )
    assert captured == ["run", "after warmup"] * 2 + ["begin", "run", "end"]
    recorder.replay(("body", 4))
    assert captured[-1] == "replay"
    with pytest.raises(KeyError):
        recorder.replay(("head", 4))


def test_a_cpu_runs_no_graphs_and_says_so(model_runner: Any) -> None:
    assert obstacle(model_runner, GraphOptions()) == "the device is cpu"
