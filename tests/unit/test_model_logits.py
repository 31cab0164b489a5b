"""The served model, in the host's real worker, against the reference: fp32, on one process."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import host_worker
import pytest
import torch
from host_worker import BLOCK
from torch import Tensor

from llada_sglang.reference.checkpoint import load_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from checkpoints import VOCABULARY, write_llada2

Row = tuple[int, int, Tensor]  # request, first position, token ids of the block


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llada2(tmp_path_factory.mktemp("llada2"))


@pytest.fixture(scope="module")
def worker(directory: Path) -> Iterator[Any]:
    flags = {"dtype": "float32", "max_total_tokens": 16384}
    with host_worker.started(directory, device="cpu", **flags) as started:
        yield started


def run_rows(worker: Any, rows: Sequence[Row], *, hidden_only: bool = True) -> Tensor:
    """Logits [rows, block, vocab] of one forward over block rows, in the order given."""
    runner = worker.model_runner
    places = [(request, start) for request, start, _ in rows]
    ids = torch.cat([ids for _, _, ids in rows])
    batch = host_worker.block_rows(runner, places, ids, hidden_only=hidden_only)
    output = runner.forward(batch).logits_output
    if hidden_only:
        assert output.next_token_logits is None
        logits = runner.model.block_logits(output.hidden_states)
    else:
        logits = output.full_logits
    return logits.view(len(rows), BLOCK, -1)


def lay_out(worker: Any, requests: int, blocks: int, seed: int) -> None:
    """Give requests 0, 1, ... random pages of the pool, as a radix cache would."""
    runner = worker.model_runner
    host_worker.lay_out(runner, requests=requests, blocks=blocks, seed=seed, first=0)


def sequence(blocks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (blocks * BLOCK,), generator=generator)


def rows_of(request: int, ids: Tensor) -> list[Row]:
    return [(request, i * BLOCK, block) for i, block in enumerate(ids.split(BLOCK))]


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return load_model(directory)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_blocks_of_mixed_requests_in_one_forward_equal_the_reference(
    worker: Any, reference: Any, order: str
) -> None:
    lay_out(worker, requests=3, blocks=20, seed=1)
    sequences = [sequence(blocks, seed=blocks) for blocks in (1, 3, 20)]
    rows = [row for request, ids in enumerate(sequences) for row in rows_of(request, ids)]
    if order == "shuffled":
        random.Random(0).shuffle(rows)
    got = run_rows(worker, rows)
    for logits, (request, start, _) in zip(got, rows, strict=True):
        expected = reference.block_causal_logits(sequences[request], BLOCK)
        torch.testing.assert_close(logits, expected[start : start + BLOCK], rtol=1e-4, atol=1e-4)


def test_a_commit_row_rides_with_the_next_denoise_row(worker: Any, reference: Any) -> None:
    """The denoise row sees the K/V its own forward writes for the block before it."""
    lay_out(worker, requests=1, blocks=6, seed=4)
    ids = sequence(6, seed=11)
    rows = rows_of(0, ids)
    stale = [(0, 4 * BLOCK, torch.zeros(BLOCK, dtype=torch.int64))]
    run_rows(worker, rows[:4] + stale)
    got = run_rows(worker, rows[4:])
    expected = reference.block_causal_logits(ids, BLOCK)[4 * BLOCK :].view(2, BLOCK, -1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_hosts_own_algorithms_still_get_full_logits(worker: Any, reference: Any) -> None:
    lay_out(worker, requests=1, blocks=2, seed=5)
    ids = sequence(2, seed=12)
    got = run_rows(worker, rows_of(0, ids), hidden_only=False)
    expected = reference.block_causal_logits(ids, BLOCK).view(2, BLOCK, -1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_vocabulary_shard_of_a_single_rank_is_the_whole(worker: Any) -> None:
    model = worker.model_runner.model
    assert model.vocab_shard_range() == (0, VOCABULARY)
    hidden = torch.randn(3, model.config.hidden_size)
    assert model.block_logits(hidden).shape == (3, VOCABULARY)
    assert model.block_logits(hidden.bfloat16()).dtype == torch.float32


def test_nothing_is_compiled_on_the_way(worker: Any) -> None:
    """A compile at the first request takes many seconds on a CPU."""
    import torch._dynamo

    torch._dynamo.reset()
    lay_out(worker, requests=1, blocks=1, seed=6)
    run_rows(worker, rows_of(0, sequence(1, seed=13)))
    assert not torch._dynamo.utils.counters["frames"]


def test_an_expert_bias_stored_in_bfloat16_is_routed_with_in_float32(worker: Any) -> None:
    """LLaDA2.0 stores it in bfloat16, 2.1 in float32."""
    model = worker.model_runner.model
    gate = model.model.layers[1].mlp.gate
    before = gate.expert_bias.data.clone()
    name = "model.layers.1.mlp.gate.expert_bias"
    model.load_weights([(name, before.bfloat16() + 1)])
    assert gate.expert_bias.dtype == torch.float32
    torch.testing.assert_close(gate.expert_bias.data, (before.bfloat16() + 1).float())
    assert model.model.layers[1].mlp.correction_bias.data_ptr() == gate.expert_bias.data_ptr()
    model.load_weights([(name, before)])


def test_partial_weight_updates_are_taken_and_unknown_names_are_not(worker: Any) -> None:
    from llada_sglang.errors import CheckpointError

    model = worker.model_runner.model
    name = "model.norm.weight"
    model.load_weights([(name, model.model.norm.weight.data.clone())])
    with pytest.raises(CheckpointError, match=r"1 unknown \(model\.layers\.0\.surprise\.weight\)"):
        model.load_weights([("model.layers.0.surprise.weight", torch.zeros(1))])
