"""Page numbers out of the table of cache slots: as a list per segment, or as a table.

The host's table holds a slot per position; its pools hand out whole, aligned pages, so every
page_size-th entry over page_size is a page number. The kernels' own page lists are that much
shorter than lists of slots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def write_page_list(
    req_to_token: Tensor,
    requests: Tensor,
    first_page: Tensor,
    indptr: Tensor,
    out: Tensor,
    *,
    page_size: int,
    max_pages: int,
) -> None:
    """Write pages first_page[i] ... of request i to out[indptr[i] : indptr[i + 1]], for all i.

    req_to_token: int32 [table rows, positions]. requests: integer [segments]. first_page: int32
    [segments]. indptr: int32 [segments + 1]. out: int32 or int64, at least indptr[-1] long.
    max_pages: no segment has more. One kernel on a GPU, which the host does not wait for.
    """
    if req_to_token.is_cuda:
        from llada_sglang.attention.page_indices_kernel import launch_page_list

        launch_page_list(
            req_to_token,
            requests,
            first_page,
            indptr,
            out,
            page_size=page_size,
            max_pages=max_pages,
        )
        return
    counts = (indptr[1:] - indptr[:-1]).long()
    total = int(counts.sum())
    segment = torch.repeat_interleave(counts, output_size=total)
    page = first_page[segment].long() + torch.arange(total) - indptr[segment].long()
    out[:total] = req_to_token[requests[segment].long(), page * page_size] // page_size


def write_page_table(
    req_to_token: Tensor,
    requests: Tensor,
    first_page: Tensor | None,
    kv_lens: Tensor,
    table: Tensor,
    lens: Tensor,
    *,
    page_size: int,
) -> None:
    """Write the pages of kv_lens[i] positions from first_page[i] on to table[i], for all i.

    requests: integer [segments]. first_page: int32 [segments], or None for 0. kv_lens: integer
    [segments]. table: int32 [segments, pages], rows of any stride, wide enough; entries behind a
    segment's pages keep what they hold. lens: int32 [segments], becomes kv_lens. Everything is on
    the device and may be captured into a graph.
    """
    if req_to_token.is_cuda:
        from llada_sglang.attention.page_indices_kernel import launch_page_table

        launch_page_table(
            req_to_token, requests, first_page, kv_lens, table, lens, page_size=page_size
        )
        return
    lens.copy_(kv_lens)
    page = torch.arange(table.shape[1]).expand_as(table)
    held = page * page_size < kv_lens[:, None]
    if first_page is not None:
        page = page + first_page[:, None]
    page = torch.where(held, page, 0).long()
    slots = req_to_token[requests.long()[:, None], page * page_size]
    table.copy_(torch.where(held, slots // page_size, table))
