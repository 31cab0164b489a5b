"""Attention of a batch of block rows over a paged KV cache, in plain torch.

A row is q_len consecutive queries of one request that see its first kv_len positions, all of
them, without a causal mask. Rows of one forward may share a request; the cache already holds
what every row wrote in this layer. Cost: q_len x kv_len per row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Requests are batched while padding adds no more than this part, or this many positions, ...
_PADDING_RATIO = 1.05
_PADDING_FREE = 256
# ... and while their keys stay this few positions, which bounds the temporary memory.
_POSITIONS_PER_GROUP = 32768


@dataclass(frozen=True, slots=True)
class RowCall:
    """One row of each request of a group: one operator call.

    tokens: where their queries are among the forward's tokens, a slice for a single request,
    else int64 [requests * q_len]. kv_len: the longest of the rows.
    visible: bool [requests, 1, 1, kv_len], or None where all rows are as long.
    """

    tokens: slice | Tensor
    kv_len: int
    visible: Tensor | None


@dataclass(frozen=True, slots=True)
class RequestGroup:
    """Requests of similar length whose keys and values are gathered once, for all their rows.

    pages: int64 [requests, pages], padded with a request's own last page, so that padding never
    reads what may not be finite.
    """

    pages: Tensor
    calls: tuple[RowCall, ...]


def plan_rows(
    requests: Sequence[int],
    kv_lens: Sequence[int],
    q_lens: Sequence[int],
    req_to_token: Tensor,
    page_size: int,
) -> tuple[RequestGroup, ...]:
    """Decide which rows are attended together; done once per forward, used by every layer.

    requests, kv_lens, q_lens: one entry per row, in the order of the forward's tokens; requests
    are rows of `req_to_token`, the integer [requests, positions] table of cache slots. kv_lens
    and the slots of every page must be whole, aligned pages of page_size.
    """
    starts = [0]
    for q_len in q_lens:
        starts.append(starts[-1] + q_len)
    rows_of: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(requests, q_lens, strict=True)):
        rows_of[key].append(row)
    for rows in rows_of.values():
        rows.sort(key=kv_lens.__getitem__)

    # Only requests with as many rows of the same width can share calls.
    alike: defaultdict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for (_, q_len), rows in rows_of.items():
        if q_len:
            alike[q_len, len(rows)].append(rows)

    groups = []
    for (q_len, _), members in alike.items():
        for batch in _batches(members, kv_lens):
            pages = _page_table(
                [requests[rows[0]] for rows in batch],
                [kv_lens[rows[-1]] for rows in batch],
                req_to_token,
                page_size,
            )
            calls = tuple(
                _call(rank, kv_lens, starts, q_len, req_to_token.device)
                for rank in zip(*batch, strict=True)
            )
            groups.append(RequestGroup(pages, calls))
    return tuple(groups)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    groups: Sequence[RequestGroup],
    page_size: int,
    scaling: float,
) -> Tensor:
    """Attend every row; the softmax is in float32.

    query: [tokens, query heads, dim]; keys, values: the layer's cache, [slots, kv heads, dim],
    slots a multiple of page_size. Returns [tokens, query heads, value dim].
    """
    kv_heads = keys.shape[1]
    fold = query.shape[1] // kv_heads
    out = query.new_empty(query.shape[0], query.shape[1], values.shape[2])
    for group in groups:
        n = group.pages.shape[0]
        k = _gather(keys, group.pages, page_size).to(query.dtype)
        v = _gather(values, group.pages, page_size).to(query.dtype)
        for call in group.calls:
            # The query heads of a kv head become further queries of it: no copies of K and V.
            q = query[call.tokens].view(n, -1, kv_heads, fold, query.shape[2])
            q = q.permute(0, 2, 3, 1, 4).flatten(2, 3)
            o = scaled_dot_product_attention(
                q,
                k[:, :, : call.kv_len],
                v[:, :, : call.kv_len],
                attn_mask=call.visible,
                scale=scaling,
            )
            o = o.unflatten(2, (fold, -1)).permute(0, 3, 1, 2, 4)
            out[call.tokens] = o.reshape(-1, *out.shape[1:])
    return out


def _gather(cache: Tensor, pages: Tensor, page_size: int) -> Tensor:
    """[slots, heads, dim] -> [requests, heads, positions, dim]"""
    paged = cache.view(-1, page_size, *cache.shape[1:])
    return paged[pages].flatten(1, 2).transpose(1, 2)


def _batches(members: list[list[int]], kv_lens: Sequence[int]) -> list[list[list[int]]]:
    """Split requests, each the list of its rows, into batches of similar length."""
    batches: list[list[list[int]]] = []
    held = 0
    for rows in sorted(members, key=lambda rows: kv_lens[rows[-1]]):
        kv_len = kv_lens[rows[-1]]
        if batches:
            held += kv_len
            padded = kv_len * (len(batches[-1]) + 1)
            allowed = max(held * _PADDING_RATIO, held + _PADDING_FREE)
            if padded <= min(allowed, _POSITIONS_PER_GROUP):
                batches[-1].append(rows)
                continue
        batches.append([rows])
        held = kv_len
    return batches


def _page_table(
    requests: list[int], kv_lens: list[int], req_to_token: Tensor, page_size: int
) -> Tensor:
    """int64 [requests, pages of the longest]"""
    if len(requests) == 1:
        slots = req_to_token[requests[0], : kv_lens[0] : page_size].unsqueeze(0)
    else:
        device = req_to_token.device
        last = torch.tensor(kv_lens, device=device).unsqueeze(1) - page_size
        first = torch.arange(0, max(kv_lens), page_size, device=device)
        rows = torch.tensor(requests, device=device).unsqueeze(1)
        slots = req_to_token[rows, torch.minimum(first, last)]
    return slots.long() // page_size


def _call(
    rows: Sequence[int],
    kv_lens: Sequence[int],
    starts: Sequence[int],
    q_len: int,
    device: torch.device,
) -> RowCall:
    lengths = [kv_lens[row] for row in rows]
    longest = max(lengths)
    if len(rows) == 1:
        return RowCall(slice(starts[rows[0]], starts[rows[0]] + q_len), longest, None)
    first = torch.tensor([starts[row] for row in rows], device=device)
    tokens = (first.unsqueeze(1) + torch.arange(q_len, device=device)).flatten()
    visible = None
    if min(lengths) < longest:
        seen = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
        visible = seen[:, None, None, :]
    return RowCall(tokens, longest, visible)
