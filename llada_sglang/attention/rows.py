"""Attention of a batch of block rows over a paged KV cache, in plain torch.

A row is q_len consecutive queries of one request that see its first kv_len positions, all of
them, without a causal mask. Rows of one forward may share a request; the cache already holds
what every row wrote in this layer. Cost: q_len x kv_len per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Neighbouring rows of one request are attended together, up to this many queries: they share
# one gather of their prefix, and one operator call.
_QUERIES_PER_SPAN = 256
# Spans are batched while padding adds no more than this part, or this many positions ...
_PADDING_RATIO = 1.25
_PADDING_FREE = 256
# ... and while their keys stay this few positions, which bounds the temporary memory.
_POSITIONS_PER_GROUP = 32768


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Spans that one call attends: [spans] x [rows per span x q_len] queries.

    tokens: int64 [spans * rows * q_len], indices into the forward's tokens; None for all in order.
    pages: int64 [spans, pages], padded with a span's last page.
    visible: bool [spans, 1, queries, positions] or, where all queries of a span see the same,
    [spans, 1, 1, positions]; None where nothing is padded.
    """

    spans: int
    tokens: Tensor | None
    pages: Tensor
    visible: Tensor | None


@dataclass(frozen=True, slots=True)
class _Span:
    request: int
    rows: tuple[int, ...]
    kv_lens: tuple[int, ...]

    @property
    def kv_len(self) -> int:
        return self.kv_lens[-1]


def plan_rows(
    requests: Sequence[int],
    kv_lens: Sequence[int],
    q_lens: Sequence[int],
    req_to_token: Tensor,
    page_size: int,
) -> tuple[RowGroup, ...]:
    """Decide which rows are attended together; done once per forward, used by every layer.

    requests, kv_lens, q_lens: one entry per row, in the order of the forward's tokens; requests
    are rows of `req_to_token`, the integer [requests, positions] table of cache slots. kv_lens
    and every page's slots must be whole, aligned pages of page_size.
    """
    starts = [0]
    for q_len in q_lens:
        starts.append(starts[-1] + q_len)
    groups: list[RowGroup] = []
    for q_len in sorted(set(q_lens)):
        rows = [row for row, length in enumerate(q_lens) if length == q_len and q_len > 0]
        for spans in _batches(_spans(rows, requests, kv_lens, q_len)):
            groups.append(_group(spans, q_len, starts, req_to_token, page_size))
    return tuple(groups)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    groups: Sequence[RowGroup],
    page_size: int,
    scaling: float,
) -> Tensor:
    """Attend every row; the softmax is in float32.

    query: [tokens, query heads, dim]; keys, values: the layer's cache, [slots, kv heads, dim],
    slots a multiple of page_size. Returns [tokens, query heads, value dim].
    """
    kv_heads, dim = keys.shape[1:]
    fold = query.shape[1] // kv_heads
    out = query.new_empty(query.shape[0], query.shape[1], values.shape[2])
    for group in groups:
        n = group.spans
        q = query if group.tokens is None else query[group.tokens]
        # The query heads of a kv head become further queries of it: no copies of K and V.
        q = q.view(n, -1, kv_heads, fold, dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(n, kv_heads, -1, dim)
        visible = group.visible
        if visible is not None and visible.shape[2] > 1:
            visible = visible.repeat(1, 1, fold, 1)
        k = _gather(keys, group.pages, page_size).to(q.dtype)
        v = _gather(values, group.pages, page_size).to(q.dtype)
        o = scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling)
        o = o.view(n, kv_heads, fold, -1, o.shape[-1]).permute(0, 3, 1, 2, 4)
        if group.tokens is None:
            return o.reshape(out.shape)
        out[group.tokens] = o.reshape(-1, *out.shape[1:])
    return out


def _gather(cache: Tensor, pages: Tensor, page_size: int) -> Tensor:
    """[slots, heads, dim] -> [spans, heads, positions, dim]"""
    paged = cache.view(-1, page_size, *cache.shape[1:])
    return paged[pages].flatten(1, 2).transpose(1, 2)


def _spans(
    rows: Sequence[int], requests: Sequence[int], kv_lens: Sequence[int], q_len: int
) -> list[_Span]:
    most_rows = max(1, _QUERIES_PER_SPAN // q_len)
    ordered = sorted(rows, key=lambda row: (requests[row], kv_lens[row]))
    spans: list[list[int]] = []
    for row in ordered:
        if spans:
            last = spans[-1]
            near = kv_lens[row] - kv_lens[last[0]] < most_rows * q_len
            if requests[row] == requests[last[0]] and near and len(last) < most_rows:
                last.append(row)
                continue
        spans.append([row])
    return [
        _Span(requests[span[0]], tuple(span), tuple(kv_lens[row] for row in span)) for span in spans
    ]


def _batches(spans: list[_Span]) -> list[list[_Span]]:
    """Group spans of equal row count and similar kv_len."""
    batches: list[list[_Span]] = []
    held = 0
    for span in sorted(spans, key=lambda s: (len(s.rows), s.kv_len)):
        if batches:
            batch = batches[-1]
            padded = span.kv_len * (len(batch) + 1)
            held += span.kv_len
            if (
                len(span.rows) == len(batch[0].rows)
                and padded <= max(held * _PADDING_RATIO, held + _PADDING_FREE)
                and padded <= _POSITIONS_PER_GROUP
            ):
                batch.append(span)
                continue
        batches.append([span])
        held = span.kv_len
    return batches


def _group(
    spans: list[_Span], q_len: int, starts: list[int], req_to_token: Tensor, page_size: int
) -> RowGroup:
    device = req_to_token.device
    spans = sorted(spans, key=lambda span: span.rows[0])
    rows = [row for span in spans for row in span.rows]
    counts = torch.tensor([span.kv_len // page_size for span in spans], device=device)
    column = torch.arange(int(counts.max()), device=device).expand(len(spans), -1)
    column = torch.minimum(column, counts.unsqueeze(1) - 1) * page_size
    requests = torch.tensor([span.request for span in spans], device=device)
    pages = req_to_token[requests.unsqueeze(1), column].long() // page_size

    kv_lens = torch.tensor([span.kv_lens for span in spans], device=device)
    visible = None
    longest = int(kv_lens.max())
    if int(kv_lens.min()) < longest:
        per_query = kv_lens if kv_lens.shape[1] == 1 else kv_lens.repeat_interleave(q_len, 1)
        visible = torch.arange(longest, device=device) < per_query[:, None, :, None]

    contiguous = all(b == a + 1 for a, b in pairwise(rows))
    tokens = None
    if not (contiguous and rows[0] == 0 and (len(rows) + 1) == len(starts)):
        first = torch.tensor([starts[row] for row in rows], device=device)
        tokens = (first.unsqueeze(1) + torch.arange(q_len, device=device)).flatten()
    return RowGroup(spans=len(spans), tokens=tokens, pages=pages, visible=visible)
