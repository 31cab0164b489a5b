"""Logits of which every probability is written down, for the tests of the reference decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llada_sglang.reference.decode import Decoded, decode_with

VOCAB, DELETE, SPLIT, MASK, EOS = 12, 8, 9, 10, 11

Row = Mapping[int, float]
Script = Callable[[int, list[int]], Row]


class Scripted:
    """`logits_of` for `decode_with`; `seen` holds every canvas it was asked about.

    A script gives the probabilities of some tokens at a position of a canvas; the others share
    what is left, except for the mask id, which has a high logit and must never be predicted.
    A list of scripts has one for each forward, the last one for all that follow.
    """

    def __init__(self, script: Script | Sequence[Script]) -> None:
        self.scripts = [script] if callable(script) else list(script)
        self.seen: list[list[int]] = []

    def __call__(self, ids: Tensor) -> Tensor:
        script = self.scripts[min(len(self.seen), len(self.scripts) - 1)]
        canvas = ids.tolist()
        self.seen.append(canvas)
        return torch.stack([self.row(script(at, canvas)) for at in range(len(canvas))])

    @staticmethod
    def row(given: Row) -> Tensor:
        left = max(0.0, 1.0 - sum(given.values())) / (VOCAB - 1 - len(given))
        if left < 1e-9:
            left = 0.0
        p = [given.get(token, left) for token in range(VOCAB)]
        logits = torch.tensor([math.log(x) if x else -math.inf for x in p])
        logits[MASK] = 50.0
        return logits


def table(rows: Mapping[int, Row], other: Row | None = None) -> Script:
    """The same row at a position whatever the canvas."""
    return lambda at, canvas: rows.get(at, other or {0: 0.2})


def run(
    script: Script | Sequence[Script] | Scripted, prompt: Sequence[int], **options: Any
) -> Decoded:
    """Decode with blocks of 4 and one block of text, unless told otherwise."""
    values: dict[str, Any] = {"block_size": 4, "max_new_tokens": 4, "eos_ids": [EOS]}
    if options.get("policy") == "levenshtein":
        values |= {"delete_id": DELETE, "split_id": SPLIT}
    values |= options
    logits_of = script if isinstance(script, Scripted) else Scripted(script)
    return decode_with(logits_of, prompt, mask_id=MASK, **values)
