"""The Triton kernel behind `page_indices`; imported only where one can run."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGES = 256
"""Pages one program writes: 8192 positions at pages of 32."""

WARPS = 4


# Rows are views into a buffer of the step, and their number is part of every address behind them:
# what these are multiples of must not make another kernel in the middle of serving.
@triton.jit(
    do_not_specialize=["out_stride"],
    do_not_specialize_on_alignment=["requests", "first_page", "bounds", "out", "lens"],
)
def _write_pages(
    req_to_token,
    table_stride,
    requests,
    first_page,
    bounds,
    out,
    out_stride,
    lens,
    PAGE_SIZE: tl.constexpr,  # noqa: N803
    PAGES: tl.constexpr,  # noqa: N803
    LIST: tl.constexpr,  # noqa: N803
    FIRST: tl.constexpr,  # noqa: N803
):
    """Program (segment, part). bounds: indptr of a list, or positions read for a table."""
    segment, part = tl.program_id(0), tl.program_id(1)
    bound = tl.load(bounds + segment)
    if LIST:
        target = out + bound
        count = tl.load(bounds + segment + 1) - bound
    else:
        target = out + segment.to(tl.int64) * out_stride
        count = (bound + PAGE_SIZE - 1) // PAGE_SIZE
        if part == 0:
            tl.store(lens + segment, bound.to(tl.int32))
    offset = part * PAGES + tl.arange(0, PAGES)
    page = offset
    if FIRST:
        page += tl.load(first_page + segment)
    held = offset < count
    # A table of thousands of requests by a long context does not fit 32 bits.
    source = req_to_token + tl.load(requests + segment).to(tl.int64) * table_stride
    slot = tl.load(source + page * PAGE_SIZE, mask=held, other=0)
    tl.store(target + offset, slot // PAGE_SIZE, mask=held)


def launch_page_list(
    req_to_token: Tensor,
    requests: Tensor,
    first_page: Tensor,
    indptr: Tensor,
    out: Tensor,
    *,
    page_size: int,
    max_pages: int,
) -> None:
    """`page_indices.write_page_list` as one kernel."""
    grid = (len(requests), max(1, triton.cdiv(max_pages, PAGES)))
    with torch.cuda.device_of(req_to_token):
        _write_pages[grid](
            req_to_token,
            req_to_token.stride(0),
            requests,
            first_page,
            indptr,
            out,
            0,
            out,
            PAGE_SIZE=page_size,
            PAGES=PAGES,
            LIST=True,
            FIRST=True,
            num_warps=WARPS,
        )


def launch_page_table(
    req_to_token: Tensor,
    requests: Tensor,
    first_page: Tensor | None,
    kv_lens: Tensor,
    table: Tensor,
    lens: Tensor,
    *,
    page_size: int,
) -> None:
    """`page_indices.write_page_table` as one kernel."""
    grid = (len(requests), max(1, triton.cdiv(table.shape[1], PAGES)))
    with torch.cuda.device_of(req_to_token):
        _write_pages[grid](
            req_to_token,
            req_to_token.stride(0),
            requests,
            requests if first_page is None else first_page,
            kv_lens,
            table,
            table.stride(0),
            lens,
            PAGE_SIZE=page_size,
            PAGES=PAGES,
            LIST=False,
            FIRST=first_page is not None,
            num_warps=WARPS,
        )
