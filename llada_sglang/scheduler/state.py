"""What the scheduler knows of a diffusion request, on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llada_sglang.config import DecodeParams
from llada_sglang.scheduler.options import TokenOptions

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

MASKED = -1
"""Stands for a masked position in canvases on the host."""


@dataclass(slots=True)
class BlockDetails:
    """What is reported of single tokens of a block, by column.

    confidence: float [block], at acceptance. logprob: float [block]; top_values, top_ids:
    [block, k]; id_values: [block, ids], of the ids asked for; None where not asked for. step: int
    [block], the step of the block that unmasked the token, -1 where it is masked or given.
    """

    confidence: np.ndarray
    logprob: np.ndarray | None = None
    top_values: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    id_values: np.ndarray | None = None
    step: np.ndarray | None = None

    def take(self, columns: np.ndarray, new: BlockDetails, step: int) -> None:
        """Take over what a step says of the columns it unmasked."""
        assert self.step is not None
        self.step[columns] = step
        for name in ("confidence", "logprob", "top_values", "top_ids", "id_values"):
            mine, theirs = getattr(self, name), getattr(new, name)
            if mine is not None and theirs is not None:
                mine[columns] = theirs[columns]

    @classmethod
    def like(cls, other: BlockDetails) -> BlockDetails:
        """An empty one with the fields of another."""
        empty = {
            name: None if value is None else np.zeros_like(value)
            for name in ("confidence", "logprob", "top_values", "top_ids", "id_values")
            for value in (getattr(other, name),)
        }
        return cls(step=np.full(other.confidence.shape, -1, dtype=np.int64), **empty)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Provisional:
    """An unresolved block after a step, for streams that show it.

    start: absolute position of its first token. step: steps taken. canvas: int64 [block], MASKED
    at masked positions.
    """

    start: int
    step: int
    canvas: np.ndarray


@dataclass(slots=True)
class RequestRecord:
    """What stays with a request from admission check to its last chunk, over retractions.

    stop_ids: every token id that ends the request. schedule: least positions to unmask at each
    step of a block. Both are set at admission, when the budget is known.
    """

    params: DecodeParams
    options: TokenOptions = field(default_factory=TokenOptions)
    stop_ids: tuple[int, ...] = ()
    schedule: tuple[int, ...] = ()
    prefill_forwards: int = 0
    denoise_forwards: int = 0
    # The unresolved block at retraction: its start, its canvas, and how many steps it took.
    saved_front: int = -1
    saved_canvas: np.ndarray | None = None
    saved_step: int = 0
    saved_details: BlockDetails | None = None
    provisional: Provisional | None = None


@dataclass(slots=True, eq=False)
class BlockState:
    """A running request: where its blocks stand and which slots it holds.

    slot: row of the canvas table. committed, front: absolute positions, multiples of the block
    size; KV is persisted below `committed`, tokens are final below `front`. text_start, text_end:
    the first generated position and the first one past the budget. prompt_front: `front` at
    admission; final blocks below it are prefill rows, those above it commit rows. canvas: int64
    [block], a mirror of the active block with MASKED at masked positions. order: admission order,
    for retraction. published: whether the prompt's blocks were shown to the tree.
    """

    req: Req
    record: RequestRecord
    slot: int
    order: int
    committed: int
    front: int
    text_start: int
    text_end: int
    prompt_front: int
    canvas: np.ndarray
    step: int = 0
    published: bool = False
    details: BlockDetails | None = None
    denoises: bool = field(init=False)

    def __post_init__(self) -> None:
        # max_new_tokens = 0 only warms the prefix cache.
        self.denoises = self.text_end > self.text_start
