"""Per-request state that changes every step, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llada_sglang.decoding.policy import Policy, StateSpec
from llada_sglang.scheduler.state import MASKED
from llada_sglang.scheduler.transfer import upload


class CanvasTable:
    """Tokens, masks and decoding parameters of all running requests, by slot.

    tokens: int64 [slots, width], prompt, committed and candidate tokens by absolute position;
    masked positions hold the mask id. masked: bool [slots, width]; a literal mask id in a
    prompt is a token like any other, so masks are never told by id.
    begun, finished: bool [slots, blocks], of blocks that are edited: whether one has taken a step,
    and whether it has taken its last, behind which nothing of it changes.
    parameters: float64 [slots, parameters], what policies read, in an order of their own.
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
        blocks = -(-width // block)
        self.begun = torch.zeros((slots, blocks), dtype=torch.bool, device=device)
        self.finished = torch.zeros((slots, blocks), dtype=torch.bool, device=device)
        self.parameters = torch.zeros((slots, 4), dtype=torch.float64, device=device)
        self.stop_ids = torch.full((slots, 4), -1, dtype=torch.int64, device=device)
        self.text_start = torch.zeros(slots, dtype=torch.int64, device=device)
        self.text_end = torch.zeros(slots, dtype=torch.int64, device=device)
        self._free = list(range(slots - 1, -1, -1))
        self._states: dict[str, StateTable] = {}

    def state_of(self, policy: Policy) -> StateTable:
        """The tensors that a policy keeps of its blocks; made when it is first used."""
        if policy.name not in self._states:
            self._states[policy.name] = StateTable(policy.state(), self.device)
        return self._states[policy.name]

    @property
    def states_in_use(self) -> int:
        """Rows of policy state that are taken, of all policies."""
        return sum(table.in_use for table in self._states.values())

    @property
    def free_slots(self) -> int:
        """How many more requests the table can hold."""
        return len(self._free)

    def acquire(
        self,
        context: Sequence[int] | np.ndarray,
        *,
        numbers: Sequence[float],
        stop_ids: Sequence[int],
        text_start: int,
        text_end: int,
    ) -> int:
        """Take a slot and fill it; positions behind `context` are masked. Returns the slot."""
        slot = self._free.pop()
        tokens = upload(np.array(context, dtype=np.int64), self.device)
        length = tokens.numel()
        self.tokens[slot, :length] = tokens
        self.tokens[slot, length:] = self.mask_id
        self.masked[slot, :length] = False
        self.masked[slot, length:] = True
        self.begun[slot] = False
        self.finished[slot] = False
        self._set_numbers(slot, numbers)
        self._set_stops(slot, stop_ids)
        self.text_start[slot] = text_start
        self.text_end[slot] = text_end
        return slot

    def restore(self, slot: int, start: int, canvas: np.ndarray) -> None:
        """Put back an unresolved block. canvas: int64 [block], MASKED at masked positions."""
        masked = upload(canvas == MASKED, self.device)
        tokens = upload(canvas, self.device)
        end = start + self.block
        self.masked[slot, start:end] = masked
        self.tokens[slot, start:end] = torch.where(masked, self.mask_id, tokens)

    def release(self, slot: int) -> None:
        """Give a slot back."""
        assert slot not in self._free, f"canvas slot {slot} freed twice"
        self._free.append(slot)

    def _set_numbers(self, slot: int, numbers: Sequence[float]) -> None:
        missing = len(numbers) - self.parameters.shape[1]
        if missing > 0:
            self.parameters = torch.nn.functional.pad(self.parameters, (0, missing))
        if numbers:
            self.parameters[slot, : len(numbers)] = upload(
                np.array(numbers, dtype=np.float64), self.device
            )

    def _set_stops(self, slot: int, stop_ids: Sequence[int]) -> None:
        missing = len(stop_ids) - self.stop_ids.shape[1]
        if missing > 0:
            self.stop_ids = torch.nn.functional.pad(self.stop_ids, (0, missing), value=-1)
        self.stop_ids[slot] = -1
        if stop_ids:
            self.stop_ids[slot, : len(stop_ids)] = upload(np.array(stop_ids), self.device)


class StateTable:
    """The tensors that one policy keeps of its blocks in flight, by row; grows as needed."""

    def __init__(self, specs: Mapping[str, StateSpec], device: torch.device) -> None:
        self.specs = specs
        self.tensors = {
            name: torch.empty((0, *spec.shape), dtype=spec.dtype, device=device)
            for name, spec in specs.items()
        }
        self._free: list[int] = []
        self._rows = 0

    def acquire(self, saved: Mapping[str, Tensor] | None = None) -> int:
        """Take a row: fresh, or with what `save` returned."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        for name, tensor in self.tensors.items():
            tensor[row] = self.specs[name].fill if saved is None else saved[name]
        return row

    def save(self, row: int) -> dict[str, Tensor]:
        """A copy of a row."""
        return {name: tensor[row].clone() for name, tensor in self.tensors.items()}

    def release(self, row: int) -> None:
        """Give a row back."""
        assert row not in self._free, f"policy state row {row} freed twice"
        self._free.append(row)

    @property
    def in_use(self) -> int:
        """Rows that are taken."""
        return self._rows - len(self._free)

    def _grow(self) -> None:
        more = max(8, self._rows)
        for name, tensor in self.tensors.items():
            self.tensors[name] = torch.cat([tensor, tensor.new_zeros((more, *tensor.shape[1:]))])
        self._free += range(self._rows + more - 1, self._rows - 1, -1)
        self._rows += more
