"""What the scheduler knows of a diffusion request, on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llada_sglang.config import DecodeParams
from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.options import TokenOptions

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

MASKED = -1
"""Stands for a masked position in canvases on the host."""


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
