"""Runs one forward over block rows and applies the policy, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from llada_sglang.decoding.finish import settled_rows
from llada_sglang.scheduler.choice import Choice, Chooser
from llada_sglang.scheduler.details import BlockDetails
from llada_sglang.scheduler.state import MASKED, ActiveRow
from llada_sglang.scheduler.update import Rows, update_rows

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.model_executor.model_runner import ModelRunner

    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.planner import RowSpan
    from llada_sglang.scheduler.state import BlockState


class StepResult(NamedTuple):
    """What the host learns of one step, in the order of its denoise rows.

    canvas: int64 [rows, block], MASKED where still masked. settled: bool [rows]. persisted: bool
    [rows], rows whose input was final already, so that this forward's K/V are the block's.
    details: by row, of the rows that report single tokens. failed: by row, why a constrained row
    cannot go on.
    """

    canvas: np.ndarray
    settled: np.ndarray
    persisted: np.ndarray
    details: dict[int, BlockDetails]
    failed: dict[int, str]


class BlockRunner:
    """Forward, statistics and policy of one step."""

    def __init__(
        self, *, model_runner: ModelRunner, table: CanvasTable, tp_group: GroupCoordinator
    ) -> None:
        self.model_runner = model_runner
        self.table = table
        self.chooser = Chooser(model=model_runner.model, table=table, tp_group=tp_group)
        self.block = table.block
        self.device = table.device
        self._columns = torch.arange(self.block, device=self.device)

    def step(self, states: Sequence[BlockState], spans: Sequence[RowSpan]) -> StepResult | None:
        """Run the rows of `spans`; returns None if none of them denoises.

        Final rows come first and denoise rows last, in the order of `spans`; those of one request
        in the order of its blocks.
        """
        block = self.block
        slots: list[int] = []
        pages: list[int] = []
        starts: list[int] = []
        active: list[ActiveRow] = []
        for span in spans:
            state = states[span.request]
            count = span.final_blocks
            slots += [state.slot] * count
            pages += [state.req.kv.req_pool_idx] * count
            starts += range(span.start, span.start + count * block, block)
            active += [ActiveRow(state, one) for one in state.flight[: span.denoise]]
        finals = len(slots)
        slots += [state.slot for state, _ in active]
        pages += [state.req.kv.req_pool_idx for state, _ in active]
        starts += [one.start for _, one in active]
        least = [0] * finals + [state.least(one) for state, one in active]

        rows = torch.from_numpy(np.array([slots, pages, starts, least], dtype=np.int64))
        rows = rows.to(self.device, non_blocking=True)
        hidden = self._forward(rows, starts)
        if not active:
            return None
        return self._denoise(rows[:, finals:], hidden[finals * block :], active)

    def _forward(self, rows: Tensor, starts: list[int]) -> Tensor:
        """Persist K/V of every row and return hidden states [rows * block, hidden]."""
        slots, pages, first, _ = rows
        position = first[:, None] + self._columns
        batch = len(starts)
        ends = first + self.block
        ends_host = torch.tensor(starts, dtype=torch.int64) + self.block
        slot_ids = self.model_runner.req_to_token_pool.req_to_token[pages[:, None], position]
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.DLLM_EXTEND,
            batch_size=batch,
            input_ids=self.table.tokens[slots[:, None], position].view(-1),
            req_pool_indices=pages,
            seq_lens=ends,
            seq_lens_cpu=ends_host,
            seq_lens_sum=int(ends_host.sum()),
            out_cache_loc=slot_ids.view(-1).long(),
            positions=position.view(-1),
            extend_num_tokens=batch * self.block,
            extend_seq_lens=torch.full((batch,), self.block, dtype=torch.int32, device=self.device),
            extend_prefix_lens=first.int(),
            extend_start_loc=torch.arange(
                0, batch * self.block, self.block, dtype=torch.int32, device=self.device
            ),
            extend_prefix_lens_cpu=starts,
            extend_seq_lens_cpu=[self.block] * batch,
            extend_logprob_start_lens_cpu=[self.block] * batch,
            global_num_token_non_padded_cpu=batch * self.block,
            # Declared by the host for model-private inputs; survives its batch copies.
            model_specific_states={"hidden_only": True},
        )
        output = self.model_runner.forward(forward_batch).logits_output
        return output.hidden_states

    def _denoise(self, rows: Tensor, hidden: Tensor, active: Sequence[ActiveRow]) -> StepResult:
        table = self.table
        slots, _, first, least = rows
        position = first[:, None] + self._columns
        where = (slots[:, None], position)
        canvas, masked = table.tokens[where], table.masked[where]
        choice = self.chooser.choose(hidden, active)
        updated = update_rows(Rows(slots, first, least, canvas, masked), choice, active, table)
        new_canvas, new_masked = updated.canvas, updated.masked
        for row, columns in choice.walked.items():
            new_canvas[row], new_masked[row] = canvas[row], masked[row]
            new_canvas[row, columns] = choice.candidate[row, columns]
            new_masked[row, columns] = False
        table.tokens[where] = new_canvas
        table.masked[where] = new_masked
        settled = settled_rows(
            new_canvas,
            new_masked,
            first,
            stop_ids=table.stop_ids[slots],
            text_start=table.text_start[slots],
            text_end=table.text_end[slots],
        )
        persisted = ~masked.any(dim=-1) & (new_canvas == canvas).all(dim=-1)
        if updated.done is not None and updated.edits is not None:
            settled = torch.where(updated.edits, updated.done, settled)
        for row, source in updated.source.items():
            if row in choice.details:
                choice.details[row] |= {
                    "source": source,
                    "confidence": choice.confidence[row],
                }
        # The step's only device-to-host copy.
        packed = torch.cat(
            [
                new_canvas.masked_fill(new_masked, MASKED),
                torch.stack([settled, persisted], dim=1).long(),
            ],
            dim=1,
        )
        if not choice.details:
            return self._result(packed.cpu().numpy(), choice, {})
        parts = [packed.double().flatten()]
        for tensors in choice.details.values():
            parts += [tensor.double().flatten() for tensor in tensors.values()]
        flat = torch.cat(parts).cpu().numpy()
        report, flat = flat[: packed.numel()].astype(np.int64), flat[packed.numel() :]
        details = {}
        for row, tensors in choice.details.items():
            arrays = {}
            for name, tensor in tensors.items():
                array = flat[: tensor.numel()].reshape(tensor.shape)
                arrays[name] = array.astype(np.int64) if name == "source" else array
                flat = flat[tensor.numel() :]
            details[row] = BlockDetails(**arrays)
        return self._result(report.reshape(packed.shape), choice, details)

    @staticmethod
    def _result(report: np.ndarray, choice: Choice, details: dict[int, BlockDetails]) -> StepResult:
        settled, persisted = report[:, -2].astype(bool), report[:, -1].astype(bool)
        settled[choice.ended] = True
        return StepResult(report[:, :-2], settled, persisted, details, choice.failed)
