"""Block-row attention against one query at a time, on the host's memory layout."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from llada_sglang.attention.rows import attend, plan_rows

KV_HEADS, DIM = 2, 16


class Pool:
    """A paged cache with pages dealt out at random, as a radix cache leaves them."""

    def __init__(self, page: int, pages: int, requests: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.page = page
        self.keys = torch.randn(pages * page, KV_HEADS, DIM, generator=generator)
        self.values = torch.randn(pages * page, KV_HEADS, DIM, generator=generator)
        per_request = length // page
        order = torch.randperm(pages, generator=generator)[: requests * per_request]
        slots = order[:, None] * page + torch.arange(page)
        self.req_to_token = slots.view(requests, length).to(torch.int32)


def brute_force(
    query: Tensor, pool: Pool, rows: list[tuple[int, int, int]], scaling: float
) -> Tensor:
    """One row and one head at a time, token by token slots, in float64.

    rows: (request, kv_len, q_len) in the order of the queries.
    """
    out = torch.empty_like(query)
    fold = query.shape[1] // KV_HEADS
    start = 0
    for request, kv_len, q_len in rows:
        slots = [int(slot) for slot in pool.req_to_token[request, :kv_len]]
        for head in range(query.shape[1]):
            k = pool.keys[slots, head // fold].double()
            v = pool.values[slots, head // fold].double()
            scores = query[start : start + q_len, head].double() @ k.T * scaling
            out[start : start + q_len, head] = (scores.softmax(-1) @ v).to(query.dtype)
        start += q_len
    return out


def run(pool: Pool, rows: list[tuple[int, int, int]], heads: int, page: int) -> None:
    tokens = sum(q_len for _, _, q_len in rows)
    query = torch.randn(tokens, heads, DIM, generator=torch.Generator().manual_seed(9))
    requests, kv_lens, q_lens = zip(*rows, strict=True)
    groups = plan_rows(requests, kv_lens, q_lens, pool.req_to_token, page)
    got = attend(query, pool.keys, pool.values, groups, page, 0.3)
    torch.testing.assert_close(got, brute_force(query, pool, rows, 0.3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [KV_HEADS, 4 * KV_HEADS])
@pytest.mark.parametrize("seed", range(8))
def test_rows_of_any_mix_see_exactly_their_own_kv_len(seed: int, heads: int) -> None:
    rng = random.Random(seed)
    block = rng.choice([4, 8])
    pool = Pool(block, pages=200, requests=6, length=block * 30, seed=seed)
    cells = [(request, (i + 1) * block, block) for request in range(6) for i in range(30)]
    run(pool, rng.sample(cells, rng.randint(1, 24)), heads, block)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_a_whole_prompt_in_one_forward_is_block_causal(order: str) -> None:
    block = 8
    pool = Pool(block, pages=64, requests=1, length=block * 64, seed=3)
    rows = [(0, (i + 1) * block, block) for i in range(64)]
    if order == "descending":
        rows.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(rows)
    run(pool, rows, 2 * KV_HEADS, block)


def test_commit_and_denoise_rows_of_many_requests_share_a_call() -> None:
    block = 8
    pool = Pool(block, pages=200, requests=9, length=block * 20, seed=5)
    rows = [(r, (10 + r % 2 + i) * block, block) for r in range(9) for i in range(2)]
    requests, kv_lens, q_lens = zip(*rows, strict=True)
    (group,) = plan_rows(requests, kv_lens, q_lens, pool.req_to_token, block)
    assert len(group.calls) == 2
    run(pool, rows, 2 * KV_HEADS, block)


def test_rows_of_different_widths_and_lengths_off_the_page_grid() -> None:
    pool = Pool(4, pages=40, requests=3, length=48, seed=7)
    run(pool, [(0, 13, 5), (1, 48, 1), (2, 7, 7), (0, 20, 5)], 2 * KV_HEADS, page=1)


def test_a_cache_page_of_several_blocks_is_read_block_by_block() -> None:
    pool = Pool(16, pages=12, requests=2, length=64, seed=8)
    run(pool, [(0, 8, 8), (0, 24, 8), (1, 40, 8)], KV_HEADS, page=8)


def test_padding_never_reads_another_requests_garbage() -> None:
    """Pages past a row's own kv_len may hold anything, even NaN."""
    block = 4
    pool = Pool(block, pages=20, requests=2, length=block * 8, seed=2)
    rows = [(0, block * 2, block), (1, block * 3, block)]
    owned = torch.zeros(pool.keys.shape[0], dtype=torch.bool)
    for request, kv_len, _ in rows:
        owned[pool.req_to_token[request, :kv_len].long()] = True
    pool.keys[~owned] = float("nan")
    pool.values[~owned] = float("nan")
    run(pool, rows, 2 * KV_HEADS, block)


def test_a_long_prompt_is_gathered_once_and_never_masked() -> None:
    """128 rows of one request: no copy of the prefix per row, no mask of all queries."""
    block, blocks = 32, 128
    table = torch.arange(block * blocks, dtype=torch.int32).view(1, -1)
    kv_lens = [(i + 1) * block for i in range(blocks)]
    (group,) = plan_rows([0] * blocks, kv_lens, [block] * blocks, table, block)
    assert group.pages.tolist() == [list(range(blocks))]
    assert [call.kv_len for call in group.calls] == kv_lens
    assert all(call.visible is None for call in group.calls)


def test_batches_are_bounded_in_padding_and_in_size() -> None:
    rng = random.Random(4)
    block, requests = 32, 200
    table = torch.zeros(requests, 4096, dtype=torch.int32)
    kv_lens = [rng.randint(1, 128) * block for _ in range(requests)]
    groups = plan_rows(range(requests), kv_lens, [block] * requests, table, block)
    gathered = [group.pages.numel() * block for group in groups]
    assert max(gathered) <= 32768
    assert sum(gathered) <= 1.1 * sum(kv_lens)
    assert len(groups) <= 40
