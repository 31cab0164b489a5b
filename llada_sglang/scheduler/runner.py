"""Runs one forward over block rows and applies the policy, on the device.

Launching waits for nothing: what is on the host goes up through pinned memory, the one report of a
step comes down the same way, and no branch depends on a value the device has computed. So a step
can be given to the device while the one before it is still running.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from llada_sglang.attention.host_forwards import ROW_REQUESTS
from llada_sglang.decoding.finish import settled_rows
from llada_sglang.decoding.policies.threshold import Threshold
from llada_sglang.kernels.threshold import CanvasTensors, threshold_update
from llada_sglang.models.llada2 import HIDDEN_ONLY
from llada_sglang.scheduler.choice import Choice, Chooser
from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.head import Head
from llada_sglang.scheduler.state import MASKED, ActiveRow
from llada_sglang.scheduler.transfer import Download, upload
from llada_sglang.scheduler.update import Rows, update_rows

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.model_executor.model_runner import ModelRunner

    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.state import BlockState


class FinalRows(NamedTuple):
    """Consecutive blocks of a request whose tokens are final: rows for their K/V alone."""

    state: BlockState
    start: int
    blocks: int


class StepResult(NamedTuple):
    """What the host learns of one step, in the order of its denoise rows.

    canvas: int64 [rows, block], MASKED where still masked. settled: bool [rows]; of a gated row
    only where its gate was open. details: by row, of the rows that report single tokens. failed:
    by row, why a constrained row cannot go on.
    """

    canvas: np.ndarray
    settled: np.ndarray
    details: dict[int, BlockDetails]
    failed: dict[int, str]


class Launched:
    """A step the device was given, and its report on the way."""

    def __init__(self, report: Tensor, choice: Choice) -> None:
        """report: int64 [rows, at least block + 1], as `BlockRunner._update` returns it."""
        self._shape = report.shape
        self._choice = choice
        if choice.details:
            parts = [report.double().flatten()]
            for tensors in choice.details.values():
                parts += [tensor.double().flatten() for tensor in tensors.values()]
            # One copy for everything; token ids are exact in float64.
            report = torch.cat(parts)
        self._report = Download(report)

    def result(self) -> StepResult:
        """What became of the rows; waits for the device."""
        choice, size = self._choice, self._shape.numel()
        flat = self._report.wait().ravel()
        # A copy, as what is read here lies in memory that comes and goes with its step.
        report, flat = flat[:size].astype(np.int64), flat[size:]
        details = {}
        for row, tensors in choice.details.items():
            arrays = {}
            for name, tensor in tensors.items():
                array = flat[: tensor.numel()].reshape(tensor.shape)
                arrays[name] = array.astype(np.int64) if name == "source" else array
                flat = flat[tensor.numel() :]
            details[row] = BlockDetails(**arrays)
        report = report.reshape(self._shape)
        block = choice.candidate.shape[1]
        settled = report[:, block].astype(bool)
        settled[choice.ended] = True
        return StepResult(report[:, :block], settled, details, choice.failed)


class BlockRunner:
    """Forward, statistics and policy of one step."""

    def __init__(
        self, *, model_runner: ModelRunner, table: CanvasTable, tp_group: GroupCoordinator
    ) -> None:
        self.model_runner = model_runner
        self.table = table
        self.block = table.block
        self.device = table.device
        self.head = Head(
            model=model_runner.model, mask_id=table.mask_id, device=self.device, tp_group=tp_group
        )
        self.chooser = Chooser(head=self.head, table=table)
        self._columns = torch.arange(self.block, device=self.device)
        # Of as many rows as a forward has had so far: what is the same in every forward.
        self._row_lens = torch.empty(0, dtype=torch.int32, device=self.device)
        self._row_begins = self._row_lens

    def launch(self, finals: Sequence[FinalRows], active: Sequence[ActiveRow]) -> Launched | None:
        """Give the device a forward over these rows and what follows; None if none denoises.

        Final rows come first and denoise rows last, those of one request in the order of its
        blocks, a gated one right behind the block it waits for.
        """
        block = self.block
        slots: list[int] = []
        pages: list[int] = []
        starts: list[int] = []
        for state, start, count in finals:
            slots += [state.slot] * count
            pages += [state.req.kv.req_pool_idx] * count
            starts += range(start, start + count * block, block)
        before = len(slots)
        slots += [row.state.slot for row in active]
        pages += [row.state.req.kv.req_pool_idx for row in active]
        starts += [row.block.start for row in active]
        nothing = [0] * before
        least = nothing + [row.least for row in active]
        gated = nothing + [row.gated for row in active]
        edits = nothing + [row.state.record.policy.edits for row in active]

        host = np.array([slots, pages, starts, least, gated, edits], dtype=np.int64)
        rows = upload(host, self.device)
        hidden = self._forward(rows, starts, pages)
        if not active:
            return None
        if before:
            rows, hidden = rows[:, before:], hidden[before * block :]
        return self._denoise(rows, hidden, active)

    def _forward(self, rows: Tensor, starts: list[int], requests: list[int]) -> Tensor:
        """Persist K/V of every row and return hidden states [rows * block, hidden].

        rows: int64 [6, rows], of each: canvas slot, page-table row, start, least, whether it is
        gated, whether it is edited. starts, requests: what of it the host plans with, starts and
        page-table rows.
        """
        slots, pages, first = rows[:3]
        block, batch = self.block, len(starts)
        if batch > self._row_lens.numel():
            self._row_lens = torch.full((2 * batch,), block, dtype=torch.int32, device=self.device)
            self._row_begins = torch.arange(
                0, 2 * batch * block, block, dtype=torch.int32, device=self.device
            )
        position = first[:, None] + self._columns
        slot_ids = self.model_runner.req_to_token_pool.req_to_token[pages[:, None], position]
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.DLLM_EXTEND,
            batch_size=batch,
            input_ids=self.table.tokens[slots[:, None], position].view(-1),
            req_pool_indices=pages,
            seq_lens=first + block,
            seq_lens_cpu=torch.tensor(starts, dtype=torch.int64).add_(block),
            seq_lens_sum=sum(starts) + batch * block,
            out_cache_loc=slot_ids.view(-1).long(),
            positions=position.view(-1),
            extend_num_tokens=batch * block,
            extend_seq_lens=self._row_lens[:batch],
            extend_prefix_lens=first.int(),
            extend_start_loc=self._row_begins[:batch],
            extend_prefix_lens_cpu=starts,
            extend_seq_lens_cpu=[block] * batch,
            extend_logprob_start_lens_cpu=[block] * batch,
            global_num_token_non_padded_cpu=batch * block,
            # Declared by the host for model-private inputs; survives its batch copies.
            model_specific_states={HIDDEN_ONLY: True, ROW_REQUESTS: requests},
        )
        output = self.model_runner.forward(forward_batch).logits_output
        return output.hidden_states

    def _denoise(self, rows: Tensor, hidden: Tensor, active: Sequence[ActiveRow]) -> Launched:
        """Choose, update, and send the report on its way. rows: as in `_forward`, of `active`."""
        choice = self.chooser.choose(hidden, active)
        return Launched(self._update(rows, choice, active), choice)

    def _update(self, rows: Tensor, choice: Choice, active: Sequence[ActiveRow]) -> Tensor:
        """Apply the policies to the table.

        Returns int64 [rows, block + 1], the new canvas with MASKED at masked positions, then
        whether the block is settled.
        """
        table = self.table
        slots, _, first, least, gated, edits = rows
        position = first[:, None] + self._columns
        closed = None
        if any(row.gated for row in active):
            # The block in front; of a first block this is the end of the row, and has no gate.
            in_front = table.masked[slots[:, None], position - self.block].any(dim=-1)
            closed = gated.bool() & in_front
        if _plain(choice, active):
            column = list(active[0].state.record.numbers).index("threshold")
            return threshold_update(
                CanvasTensors(
                    table.tokens,
                    table.masked,
                    table.parameters[:, column],
                    table.stop_ids,
                    table.text_start,
                    table.text_end,
                ),
                slots,
                first,
                least,
                choice.candidate,
                choice.confidence,
                closed,
            )
        where = (slots[:, None], position)
        canvas, masked = table.tokens[where], table.masked[where]
        text_start = table.text_start[slots]
        before = Rows(slots, position, text_start, least, canvas, masked)
        updated = update_rows(before, choice, active, table)
        new_canvas, new_masked = updated.canvas, updated.masked
        for row, columns in choice.walked.items():
            new_canvas[row], new_masked[row] = canvas[row], masked[row]
            new_canvas[row, columns] = choice.candidate[row, columns]
            new_masked[row, columns] = False
        if updated.done is not None:
            changed = (new_canvas != canvas) | masked | new_masked
            found = updated.done & ~changed.any(dim=-1)
            closed = self._closed_edits(rows, closed, updated.done, found)
        for write in updated.writes:
            write.apply(closed)
        if closed is not None:
            new_canvas = torch.where(closed[:, None], canvas, new_canvas)
            new_masked = torch.where(closed[:, None], masked, new_masked)
        table.tokens[where] = new_canvas
        table.masked[where] = new_masked
        settled = settled_rows(
            new_canvas,
            new_masked,
            first,
            stop_ids=table.stop_ids[slots],
            text_start=text_start,
            text_end=table.text_end[slots],
        )
        if updated.done is not None:
            settled = torch.where(edits.bool(), updated.done, settled)
        for row, source in updated.source.items():
            if row in choice.details:
                choice.details[row] |= {
                    "source": source,
                    "confidence": choice.confidence[row],
                }
        shown = new_canvas.masked_fill(new_masked, MASKED)
        return torch.cat([shown, settled[:, None]], dim=1)

    def _closed_edits(
        self, rows: Tensor, closed: Tensor | None, done: Tensor, found: Tensor
    ) -> Tensor:
        """Which rows must not change anything, bool [rows], where some are edited; notes the rest.

        An edited block changes no more once it is finished. Behind it a gate is open if it was
        finished when this step's forward began, or if this step found it final: then its row of
        this forward saw the final tokens. closed: bool [rows], gated rows behind masks; None where
        no row is gated. done, found: bool [rows], what this step finishes, and finds final.
        """
        table = self.table
        slots, _, first, _, gated, edits = rows
        edited, place = edits.bool(), first // self.block
        finished = edited & table.finished[slots, place]
        shut = finished
        if closed is not None:
            # Row 0 of a forward has no gate, and what is rolled there is not read.
            final = table.finished[slots, place - 1] | found.roll(1)
            shut = finished | torch.where(edited, gated.bool() & ~final, closed)
        counts = edited & ~shut
        table.begun[slots, place] |= counts
        table.finished[slots, place] = finished | (counts & done)
        return shut


def _plain(choice: Choice, active: Sequence[ActiveRow]) -> bool:
    """Whether one launch does for the step: threshold everywhere, and nobody asks for more."""
    return not (choice.walked or choice.details) and all(
        type(row.state.record.policy) is Threshold for row in active
    )
