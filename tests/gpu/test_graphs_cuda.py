"""Block rows as CUDA graphs against the same rows run eagerly, in the host's real worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import host_worker
import pytest
import torch
from host_worker import BLOCK, Row, random_ids
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, combine_shards
from llada_sglang.kernels import vocab_statistics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from checkpoints import VOCABULARY, write_llada2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

ROW_BUDGET = 24
CONTEXT = 1024
EDGES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 23, 24]
MASK = VOCABULARY - 1

# Wide enough for the kernels of a GPU; see write_llada2 for the rest.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rotary_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128,
}


# Of a token's hidden state, where two forwards multiply in parts of other sizes. A router's tie may
# fall otherwise then, which moves the token it falls for.
TOLERANCE, SAME_TOKENS = 3e-2, 0.97


class Setting(NamedTuple):
    """A worker with graphs installed. head: of its model. exact: equal to eager in every bit, where
    both have the same padding rows."""

    runner: Any
    head: Any
    exact: bool


def attend_in_one_shape(backend: Any) -> None:
    """Give a worker attention that computes a row alike in every forward, graphs included.

    Every row reads CONTEXT positions and masks those behind its end: one shape, no host values.
    """
    from llada_sglang.attention.torch_backend import BlockRowTorchBackend

    class Masked(BlockRowTorchBackend):
        captures_block_rows = True

        def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None: ...

        def init_forward_metadata(self, forward_batch: Any) -> None: ...

        def graph_attention_bytes(self, rows: int) -> int:
            return 0

        def forward_extend(
            self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, **kwargs: Any
        ) -> Tensor:
            from sglang.srt.mem_cache.memory_pool import KVWriteLoc

            pool = self.token_to_kv_pool
            if k is not None:  # else the fused rotary kernel has stored them
                pool.set_kv_buffer(layer, KVWriteLoc(batch.out_cache_loc, None), k, v)
            slots = self.req_to_token_pool.req_to_token[batch.req_pool_indices, :CONTEXT].long()
            seen = torch.arange(CONTEXT, device=q.device) < batch.seq_lens[:, None]
            rows, heads = batch.batch_size, layer.tp_q_head_num
            queries = q.view(rows, BLOCK, heads, -1).transpose(1, 2)
            keys, values = (
                cache[slots].transpose(1, 2).repeat_interleave(heads // cache.shape[1], dim=1)
                for cache in (
                    pool.get_key_buffer(layer.layer_id),
                    pool.get_value_buffer(layer.layer_id),
                )
            )
            scores = queries.float() @ keys.float().transpose(2, 3) * layer.scaling
            scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
            out = (scores.softmax(dim=-1) @ values.float()).to(q.dtype)
            return out.transpose(1, 2).reshape(q.shape[0], -1)

    assert type(backend) is BlockRowTorchBackend
    backend.__class__ = Masked


@pytest.fixture(scope="module", params=["exact", "served"])
def setting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setting]:
    """bfloat16, with attention in torch, or on whatever backend this device gets."""
    from sglang.srt.distributed.parallel_state import get_tp_group

    from llada_sglang.graphs.crossover import Crossover
    from llada_sglang.graphs.setup import install

    exact = request.param == "exact"
    model = write_llada2(tmp_path_factory.mktemp(request.param), **SHAPE)
    flags: dict[str, Any] = {"context_length": CONTEXT, "max_total_tokens": 64 * CONTEXT}
    if exact:
        flags["attention_backend"] = "block_row_torch"
    with host_worker.started(model, device="cuda", dtype="bfloat16", **flags) as worker:
        runner = worker.model_runner
        if exact:
            attend_in_one_shape(runner.attn_backend)

        def statistics(picked: Tensor) -> ShardStatistics:
            logits = runner.model.head_logits(picked)
            return vocab_statistics(logits, vocab_start=0, mask_id=MASK)

        def combine(local: ShardStatistics) -> tuple[Tensor, Tensor]:
            return combine_shards(ShardStatistics(*(field[None] for field in local)))

        head = install(
            runner,
            given=runner.server_args,
            block=BLOCK,
            row_budget=ROW_BUDGET,
            statistics=statistics,
            combine=combine,
            tp_group=get_tp_group(),
        )
        assert head is not None, "the log says why there are no graphs"
        body = runner.decode_cuda_graph_runner
        # What was measured is one thing, that all sizes are right another.
        body.measured, body.crossover = body.crossover, Crossover.always(body.capture_bs)
        yield Setting(runner, head, exact)


def lay_out(runner: Any, requests: int, seed: int) -> None:
    """Give requests 1, 2, ... random pages of the pool."""
    host_worker.lay_out(runner, requests=requests, blocks=CONTEXT // BLOCK, seed=seed)


def spread(rows: int) -> list[Row]:
    """Rows of eight requests at various lengths, several of one request in order."""
    return [(1 + row % 8, (row // 8 + 3 * (row % 8)) * BLOCK) for row in range(rows)]


def block_rows(runner: Any, rows: Sequence[Row], seed: int = 0) -> Any:
    """A batch as `BlockRunner` builds it, of random tokens."""
    return host_worker.block_rows(runner, rows, random_ids(len(rows), VOCABULARY, seed))


def cache(runner: Any) -> list[Tensor]:
    buffers = runner.token_to_kv_pool
    return [*buffers.k_buffer, *buffers.v_buffer]


def fill_cache(runner: Any) -> None:
    """The same prefix for every run, as `forward` only writes its own rows."""
    generator = torch.Generator(device="cuda").manual_seed(7)
    for tensor in cache(runner):
        tensor.normal_(generator=generator)


def eagerly(runner: Any, batch: Any) -> Tensor:
    graphs, runner.decode_cuda_graph_runner = runner.decode_cuda_graph_runner, None
    try:
        return runner.forward(batch).logits_output.hidden_states
    finally:
        runner.decode_cuda_graph_runner = graphs


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Nearly all tokens, in all columns."""
    far = (got.float() - expected.float()).abs() > TOLERANCE * (1 + expected.float().abs())
    assert (~far.any(dim=-1)).float().mean() >= SAME_TOKENS


@contextmanager
def host_sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rows", EDGES)
def test_a_graph_computes_what_the_eager_forward_does(setting: Setting, rows: int) -> None:
    """Exactly where both compute alike, given the same padding rows; else closely."""
    runner, body = setting.runner, setting.runner.decode_cuda_graph_runner
    lay_out(runner, requests=8, seed=rows)
    batch = block_rows(runner, spread(rows))

    fill_cache(runner)
    assert body.can_run_graph(batch)
    output = runner.forward(batch)
    assert output.can_run_graph
    got = output.logits_output.hidden_states.clone()
    written = [tensor.clone() for tensor in cache(runner)]

    fill_cache(runner)
    before = [tensor.clone() for tensor in cache(runner)]
    if setting.exact:
        padded = body._inputs.load(batch, 0, rows, body.bs)
        expected = eagerly(runner, padded)[: rows * BLOCK]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    else:
        assert_close(got, eagerly(runner, batch))
    untouched = torch.ones(len(written[0]), dtype=torch.bool, device="cuda")
    untouched[batch.out_cache_loc] = False
    untouched[:BLOCK] = False  # the page of padding rows
    for now, then in zip(written, before, strict=True):
        assert torch.equal(now[untouched], then[untouched])


def test_replays_of_changing_batches_do_not_mix(setting: Setting) -> None:
    """Sizes share static buffers, memory and plans: every replay has to find its own."""
    runner = setting.runner
    lay_out(runner, requests=8, seed=1)
    batches = [block_rows(runner, spread(rows)[::-1], seed=rows) for rows in (24, 1, 7, 24, 3)]
    first = []
    for batch in batches:
        fill_cache(runner)
        first.append(runner.forward(batch).logits_output.hidden_states.clone())
    for batch, expected in zip(batches[::-1], first[::-1], strict=True):
        fill_cache(runner)
        again = runner.forward(batch).logits_output.hidden_states
        if setting.exact:
            torch.testing.assert_close(again, expected, rtol=0, atol=0)
        else:
            assert_close(again, expected)


@pytest.mark.parametrize("positions", [1, 31, 32, 33, 64, 65, 512, 700])
def test_the_head_as_a_graph_is_the_head(setting: Setting, positions: int) -> None:
    runner, head = setting.runner, setting.head
    lay_out(runner, requests=8, seed=2)
    fill_cache(runner)
    hidden = runner.forward(block_rows(runner, spread(24))).logits_output.hidden_states
    denoise = hidden[BLOCK:]
    where = torch.randperm(len(denoise), device="cuda")[:positions]
    assert head.covers(denoise)
    candidate, confidence = head.run(denoise, where)
    logits = runner.model.head_logits(denoise[where]).double()
    logits[:, MASK] = -torch.inf
    best = logits.softmax(dim=-1).amax(dim=-1)
    # In bfloat16 two logits may be equal, or the product another of another size.
    near = logits.gather(1, candidate[:, None])[:, 0] >= logits.max(dim=-1).values - 2e-2
    assert bool(near.all())
    torch.testing.assert_close(confidence.double(), best, rtol=2e-2, atol=1e-4)


def test_a_step_waits_for_nothing(setting: Setting) -> None:
    runner, head = setting.runner, setting.head
    lay_out(runner, requests=8, seed=3)
    batch = block_rows(runner, spread(5))
    where = torch.arange(100, device="cuda")
    for guard in (torch.no_grad, host_sync_is_an_error):
        with guard():
            hidden = runner.forward(batch).logits_output.hidden_states
            head.run(hidden, where)


def test_the_memory_of_graphs_stays_within_the_plan(setting: Setting) -> None:
    """The plan counts a whole forward's activations; the driver's part is a guess, hence twice.
    What is loaded with the first kernels of a process is in no plan."""
    from sglang.srt.distributed.parallel_state import get_tp_group

    from llada_sglang.graphs.plan import GraphOptions, plan_graphs
    from llada_sglang.graphs.setup import GIB, _shape

    runner = setting.runner
    plan = plan_graphs(
        _shape(runner, BLOCK, get_tp_group()),
        GraphOptions(),
        row_budget=ROW_BUDGET,
        free_bytes=64 * GIB,
        attention_bytes=getattr(runner.attn_backend, "graph_attention_bytes", lambda rows: 0),
    )
    assert plan is not None
    assert list(plan.rows) == runner.decode_cuda_graph_runner.capture_bs
    assert 0 < runner.graph_memory_usage["decode"] * GIB <= 2 * plan.nbytes + GIB // 2


def test_small_forwards_were_measured_to_be_faster_as_graphs(setting: Setting) -> None:
    """A forward of this shape takes the device microseconds and the host milliseconds."""
    body = setting.runner.decode_cuda_graph_runner
    assert all(body.measured.parts(rows, body.capture_bs) for rows in (1, 2, 3, 4))
