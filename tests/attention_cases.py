"""Forwards of block rows as a scheduler makes them, and attention by the book to compare with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
Row = tuple[int, int]  # row of the table of cache slots, kv_len


@dataclass(frozen=True, slots=True)
class Forward:
    """req_to_token: int32 [requests, positions]; row 0 and page 0 belong to padding. rows: in the
    order of the forward."""

    req_to_token: Tensor
    rows: list[Row]
    pages: int

    @property
    def requests(self) -> list[int]:
        return [request for request, _ in self.rows]

    @property
    def kv_lens(self) -> list[int]:
        return [kv_len for _, kv_len in self.rows]

    @property
    def real(self) -> int:
        """How many rows come before the padding."""
        return sum(request != 0 for request in self.requests)

    def slots(self, row: int) -> list[int]:
        """Cache slots that a row reads, in order: the definition; of padding, slot 0 alone."""
        request, kv_len = self.rows[row]
        return self.req_to_token[request, :kv_len].tolist()


def mixed_forward(
    seed: int, *, requests: int = 5, blocks: int = 24, page: int = BLOCK, padding: int = 0
) -> Forward:
    """Prefill, commit, denoise and lookahead rows of requests that share radix prefixes.

    Pages are dealt at random. Final rows come first and denoise rows last; a prompt may bring many
    rows, after a hit of any length.
    """
    rng = random.Random(seed)
    per_request = -(-blocks * BLOCK // page)
    total = 1 + requests * per_request
    order = rng.sample(range(1, total), total - 1)
    table = torch.zeros(1 + requests, per_request * page, dtype=torch.int32)
    dealt: list[list[int]] = []
    for request in range(requests):
        own = order[request * per_request : (request + 1) * per_request]
        if dealt and rng.random() < 0.5:
            hit = rng.randint(1, per_request)
            own = rng.choice(dealt)[:hit] + own[hit:]
        dealt.append(own)
        slots = torch.tensor(own)[:, None] * page + torch.arange(page)
        table[1 + request] = slots.view(-1)

    final: list[Row] = []
    denoise: list[Row] = []
    for request in rng.sample(range(1, requests + 1), requests):
        start = rng.randrange(blocks)
        left = blocks - start
        kind = rng.choice(["prefill", "whole", "denoise", "commit", "lookahead"])
        first, ahead = 0, 1
        if kind == "prefill":
            first, ahead = rng.randint(1, left), 0
        elif kind == "whole":
            first = left - 1
        elif kind == "commit":
            first = min(1, left - 1)
        elif kind == "lookahead":
            first, ahead = min(1, left - 1), rng.randint(1, max(1, left - 1))
        ends = [(start + i + 1) * BLOCK for i in range(first + ahead)]
        final += [(request, end) for end in ends[:first]]
        denoise += [(request, end) for end in ends[first:]]
    return Forward(table, final + denoise + [(0, BLOCK)] * padding, total)


def prompt_forward(start: int, blocks: int, *, padding: int = 0) -> Forward:
    """Rows of one request in ascending order, behind `start` blocks of prefix."""
    count = start + blocks
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)) + 1
    table = torch.zeros(2, count * BLOCK, dtype=torch.int32)
    table[1] = (order[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)
    rows = [(1, (start + i + 1) * BLOCK) for i in range(blocks)]
    return Forward(table, rows + [(0, BLOCK)] * padding, count + 1)


def attend_slots(
    query: Tensor, keys: Tensor, values: Tensor, slots: Sequence[int], scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention of some queries to some cache slots, in float64, head by head.

    query: [queries, heads, dim]; keys, values: [slots, kv heads, dim]. Returns float64 output
    [queries, heads, dim] and log-sum-exp to base e [queries, heads].
    """
    fold = query.shape[1] // keys.shape[1]
    k = keys[list(slots)].double().repeat_interleave(fold, dim=1)
    v = values[list(slots)].double().repeat_interleave(fold, dim=1)
    scores = torch.einsum("qhd,khd->qhk", query.double(), k) * scaling
    return torch.einsum("qhk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def attend_rows(
    forward: Forward, query: Tensor, keys: Tensor, values: Tensor, scaling: float
) -> Tensor:
    """Every row that is no padding by its definition; float64 [tokens, heads, dim]."""
    parts = [
        attend_slots(part, keys, values, forward.slots(row), scaling)[0]
        for row, part in enumerate(query.split(BLOCK)[: forward.real])
    ]
    return torch.cat(parts)


def merge_natural(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs over disjoint keys and their log-sum-exps to base e, made one."""
    lse = torch.logaddexp(lse_a, lse_b)
    out = a * (lse_a - lse)[..., None].exp() + b * (lse_b - lse)[..., None].exp()
    return out.to(a.dtype), lse
