"""The planned queries, pages and lengths of a forward, against a model that knows only slots."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attention_cases import BLOCK, Forward, mixed_forward, prompt_forward
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sglang.attention.page_indices import write_page_list, write_page_table
from llada_sglang.attention.paged_plan import (
    PagedPlan,
    blocks_per_tile,
    plan_rows,
    plan_tiles,
    segment_ints,
    segment_views,
    upload,
)

CPU = torch.device("cpu")
FORWARDS = st.builds(
    mixed_forward,
    st.integers(0, 10**6),
    requests=st.integers(1, 6),
    blocks=st.integers(1, 40),
    padding=st.integers(0, 3),
)


def slots_read(plan: PagedPlan, forward: Forward, page: int) -> list[list[int]]:
    """Slots each segment reads, as a kernel finds them: page list, indptr, last page's length."""
    segments = upload(plan, page, CPU)
    pages = torch.full((plan.pages,), -1, dtype=torch.int32)
    requests = torch.tensor(forward.requests)[plan.rows.long()]
    write_page_list(
        forward.req_to_token,
        requests,
        segments.first_page,
        segments.kv_indptr,
        pages,
        page_size=page,
        max_pages=plan.max_pages,
    )
    read = []
    for i in range(plan.segments):
        own = pages[segments.kv_indptr[i] : segments.kv_indptr[i + 1]].long()
        slots = (own[:, None] * page + torch.arange(page)).view(-1)
        count = (len(own) - 1) * page + int(segments.last_page_len[i])
        assert count == int(segments.kv_lens[i])
        read.append(slots[:count].tolist())
    return read


def queries(plan: PagedPlan) -> list[range]:
    bounds = plan.qo_indptr.tolist()
    return [range(a, b) for a, b in pairwise(bounds)]


@given(FORWARDS, st.sampled_from([1, 16, BLOCK]))
@settings(max_examples=60, deadline=None)
def test_every_row_reads_exactly_its_own_slots_in_order(forward: Forward, page: int) -> None:
    plan = plan_rows(forward.kv_lens, block=BLOCK, page_size=page)
    assert queries(plan) == [range(i * BLOCK, (i + 1) * BLOCK) for i in range(len(forward.rows))]
    read = slots_read(plan, forward, page)
    assert read[: forward.real] == [forward.slots(row) for row in range(forward.real)]
    # A row of padding stays within the page that nothing is read from.
    assert all(0 <= slot < BLOCK for slots in read[forward.real :] for slot in slots)
    # As large as needed and no larger.
    assert plan.pages == sum(kv_len // page for kv_len in forward.kv_lens)


@given(FORWARDS, st.integers(2, 8), st.integers(0, 20 * BLOCK))
@settings(max_examples=120, deadline=None)
def test_tiles_and_tails_together_read_each_slot_of_a_row_once(
    forward: Forward, tile: int, min_prefix: int
) -> None:
    plan = plan_tiles(
        forward.requests,
        forward.kv_lens,
        block=BLOCK,
        page_size=BLOCK,
        tile=tile,
        min_prefix=min_prefix,
    )
    seen: list[list[int]] = [[] for _ in range(len(forward.rows) * BLOCK)]
    if plan is None:
        assert not tileable(forward, min_prefix)
        return
    # The queries of the shared pass are a gather of the forward's.
    for where, slots in zip(
        queries(plan.prefix), slots_read(plan.prefix, forward, BLOCK), strict=True
    ):
        assert BLOCK < len(where) <= tile * BLOCK
        assert len(slots) >= max(min_prefix, BLOCK)
        for token in plan.tokens[where.start : where.stop].tolist():
            seen[token] += slots
    for where, slots in zip(
        queries(plan.tails), slots_read(plan.tails, forward, BLOCK), strict=True
    ):
        for token in where:
            seen[token] += slots
    for token, slots in enumerate(seen[: forward.real * BLOCK]):
        assert slots == forward.slots(token // BLOCK)


def tileable(forward: Forward, min_prefix: int) -> bool:
    """Whether two adjacent rows are consecutive blocks of a request behind enough prefix."""
    return any(
        a[0] == b[0] and b[1] == a[1] + BLOCK and a[1] - BLOCK >= max(min_prefix, BLOCK)
        for a, b in pairwise(forward.rows)
    )


def test_a_long_prompt_reads_its_prefix_once_per_tile() -> None:
    forward = prompt_forward(start=128, blocks=64)
    alone = plan_rows(forward.kv_lens, block=BLOCK, page_size=BLOCK)
    tiled = plan_tiles(
        forward.requests, forward.kv_lens, block=BLOCK, page_size=BLOCK, tile=4, min_prefix=4096
    )
    assert tiled is not None
    assert tiled.prefix.segments == 16
    assert tiled.prefix.pages + tiled.tails.pages < 0.3 * alone.pages
    # Inside a tile the tails are one to four blocks long.
    assert tiled.tails.kv_lens.tolist() == [BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK] * 16


def test_rows_of_two_requests_that_happen_to_continue_each_other_are_no_tile() -> None:
    kv_lens = [200 * BLOCK, 201 * BLOCK, 202 * BLOCK]
    assert plan_tiles([1, 2, 3], kv_lens, block=BLOCK, page_size=BLOCK, tile=4) is None
    assert plan_tiles([1, 1, 1], kv_lens, block=BLOCK, page_size=BLOCK, tile=4) is not None
    assert plan_tiles([1, 1, 1], kv_lens, block=BLOCK, page_size=BLOCK, tile=1) is None


@pytest.mark.parametrize(("query", "kv", "blocks"), [(16, 4, 1), (32, 4, 1), (2, 1, 2), (4, 4, 4)])
def test_a_tile_is_as_many_blocks_as_fill_the_kernels(query: int, kv: int, blocks: int) -> None:
    assert blocks_per_tile(query, kv, BLOCK) == blocks


def test_a_buffer_that_keeps_its_address_serves_any_row_count() -> None:
    buffer = torch.full((segment_ints(8),), -7, dtype=torch.int32)
    for rows in (8, 3, 5):
        plan = plan_rows([(i + 1) * BLOCK for i in range(rows)], block=BLOCK, page_size=BLOCK)
        there = upload(plan, BLOCK, CPU, into=buffer)
        for view, again in zip(there, segment_views(buffer, rows), strict=True):
            assert view.data_ptr() == again.data_ptr()
            assert (view.data_ptr() - buffer.data_ptr()) % 256 == 0
        assert there.qo_indptr.tolist() == [i * BLOCK for i in range(rows + 1)]
        assert there.kv_indptr.tolist() == plan.kv_indptr.tolist()
        assert there.last_page_len.tolist() == [BLOCK] * rows


@given(FORWARDS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_page_table_holds_the_pages_of_each_row_and_nothing_behind(
    forward: Forward, shifted: bool
) -> None:
    kv_lens = torch.tensor(forward.kv_lens)
    first = None
    if shifted:  # as the tails of a tile
        first = ((kv_lens // BLOCK - 1) // 2).int()
        kv_lens = kv_lens - first * BLOCK
    wide = torch.full((len(kv_lens), forward.req_to_token.shape[1] // BLOCK + 3), -1)
    table = wide.int()[:, :-1]
    lens = torch.empty(len(kv_lens), dtype=torch.int32)
    write_page_table(
        forward.req_to_token,
        torch.tensor(forward.requests),
        first,
        kv_lens,
        table,
        lens,
        page_size=BLOCK,
    )
    assert lens.tolist() == kv_lens.tolist()
    for row in range(len(forward.rows)):
        begin = 0 if first is None else int(first[row]) * BLOCK
        expected = [slot // BLOCK for slot in forward.slots(row)[begin::BLOCK]]
        assert table[row].tolist() == expected + [-1] * (table.shape[1] - len(expected))
