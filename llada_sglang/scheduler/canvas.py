"""Per-request state that changes every step, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llada_sglang.scheduler.state import MASKED


class CanvasTable:
    """Tokens, masks and decoding parameters of all running requests, by slot.

    tokens: int64 [slots, width], prompt, committed and candidate tokens by absolute position;
    masked positions hold the mask id. masked: bool [slots, width]; a literal mask id in a
    prompt is a token like any other, so masks are never told by id.
    threshold: float32 [slots]; schedule: int64 [slots, block], least positions per step;
    stop_ids: int64 [slots, stops], padded with -1; text_start, text_end: int64 [slots].
    """

    def __init__(
        self, *, slots: int, width: int, block: int, mask_id: int, device: torch.device | str
    ) -> None:
        self.block = block
        self.mask_id = mask_id
        self.device = torch.device(device)
        self.tokens = torch.full((slots, width), mask_id, dtype=torch.int64, device=device)
        self.masked = torch.ones((slots, width), dtype=torch.bool, device=device)
        self.threshold = torch.zeros(slots, dtype=torch.float32, device=device)
        self.schedule = torch.ones((slots, block), dtype=torch.int64, device=device)
        self.stop_ids = torch.full((slots, 4), -1, dtype=torch.int64, device=device)
        self.text_start = torch.zeros(slots, dtype=torch.int64, device=device)
        self.text_end = torch.zeros(slots, dtype=torch.int64, device=device)
        self._free = list(range(slots - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        """How many more requests the table can hold."""
        return len(self._free)

    def acquire(
        self,
        context: Sequence[int] | np.ndarray,
        *,
        threshold: float,
        schedule: Sequence[int],
        stop_ids: Sequence[int],
        text_start: int,
        text_end: int,
    ) -> int:
        """Take a slot and fill it; positions behind `context` are masked. Returns the slot."""
        slot = self._free.pop()
        tokens = torch.as_tensor(np.asarray(context, dtype=np.int64)).to(self.device)
        length = tokens.numel()
        self.tokens[slot, :length] = tokens
        self.tokens[slot, length:] = self.mask_id
        self.masked[slot, :length] = False
        self.masked[slot, length:] = True
        self.threshold[slot] = threshold
        padded = list(schedule) + [self.block] * (self.block - len(schedule))
        self.schedule[slot] = torch.tensor(padded, device=self.device)
        self._set_stops(slot, stop_ids)
        self.text_start[slot] = text_start
        self.text_end[slot] = text_end
        return slot

    def restore(self, slot: int, start: int, canvas: np.ndarray) -> None:
        """Put back an unresolved block. canvas: int64 [block], MASKED at masked positions."""
        masked = torch.from_numpy(canvas == MASKED).to(self.device)
        tokens = torch.from_numpy(canvas).to(self.device)
        end = start + self.block
        self.masked[slot, start:end] = masked
        self.tokens[slot, start:end] = torch.where(masked, self.mask_id, tokens)

    def release(self, slot: int) -> None:
        """Give a slot back."""
        assert slot not in self._free, f"canvas slot {slot} freed twice"
        self._free.append(slot)

    def _set_stops(self, slot: int, stop_ids: Sequence[int]) -> None:
        missing = len(stop_ids) - self.stop_ids.shape[1]
        if missing > 0:
            self.stop_ids = torch.nn.functional.pad(self.stop_ids, (0, missing), value=-1)
        self.stop_ids[slot] = -1
        if stop_ids:
            self.stop_ids[slot, : len(stop_ids)] = torch.tensor(list(stop_ids), device=self.device)
