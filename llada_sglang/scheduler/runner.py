"""Runs one forward over block rows and applies the policy, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from llada_sglang.decoding.finish import settled_rows
from llada_sglang.decoding.statistics import ShardStatistics, combine_shards
from llada_sglang.decoding.threshold import unmask_confident
from llada_sglang.kernels import vocab_statistics
from llada_sglang.scheduler.state import MASKED

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.model_executor.model_runner import ModelRunner

    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.planner import RowSpan
    from llada_sglang.scheduler.state import BlockState

CPU_HEAD_BYTES = 64 << 20
DEVICE_HEAD_BYTES = 1 << 30
"""Most bytes of logits alive at once; a wider head is run in chunks of positions. Each chunk
reads the head's weights again, which a cache forgives and an accelerator's memory does not."""


class StepResult(NamedTuple):
    """What the host learns of one step, in the order of its denoise rows.

    canvas: int64 [rows, block], MASKED where still masked. settled: bool [rows].
    """

    canvas: np.ndarray
    settled: np.ndarray


class BlockRunner:
    """Forward, statistics and policy of one step."""

    def __init__(
        self, *, model_runner: ModelRunner, table: CanvasTable, tp_group: GroupCoordinator
    ) -> None:
        self.model_runner = model_runner
        self.model = model_runner.model
        self.table = table
        self.tp_group = tp_group
        self.block = table.block
        self.device = table.device
        self._columns = torch.arange(self.block, device=self.device)

    def step(self, states: Sequence[BlockState], spans: Sequence[RowSpan]) -> StepResult | None:
        """Run the rows of `spans`; returns None if none of them denoises.

        Final rows come first and denoise rows last, in the order of `spans`.
        """
        block = self.block
        slots: list[int] = []
        pages: list[int] = []
        starts: list[int] = []
        active: list[BlockState] = []
        for span in spans:
            state = states[span.request]
            count = span.final_blocks
            slots += [state.slot] * count
            pages += [state.req.kv.req_pool_idx] * count
            starts += range(span.start, span.start + count * block, block)
            if span.denoise:
                active.append(state)
        finals = len(slots)
        slots += [state.slot for state in active]
        pages += [state.req.kv.req_pool_idx for state in active]
        starts += [state.front for state in active]
        steps = [0] * finals + [min(state.step, block - 1) for state in active]

        rows = torch.from_numpy(np.array([slots, pages, starts, steps], dtype=np.int64))
        rows = rows.to(self.device, non_blocking=True)
        hidden = self._forward(rows, starts)
        if not active:
            return None
        masked = np.stack([state.canvas for state in active]) == MASKED
        return self._denoise(rows[:, finals:], hidden[finals * block :], masked)

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

    def _denoise(self, rows: Tensor, hidden: Tensor, masked_host: np.ndarray) -> StepResult:
        table = self.table
        slots, _, first, steps = rows
        position = first[:, None] + self._columns
        where = (slots[:, None], position)
        canvas, masked = table.tokens[where], table.masked[where]

        # The host mirrors every mask, so that finding them costs no device sync.
        flat = torch.from_numpy(np.flatnonzero(masked_host)).to(self.device, non_blocking=True)
        found, certain = self._head(hidden, flat)
        candidate = torch.zeros_like(canvas)
        candidate.view(-1)[flat] = found
        confidence = torch.zeros(canvas.shape, dtype=torch.float32, device=self.device)
        confidence.view(-1)[flat] = certain

        canvas, masked = unmask_confident(
            canvas,
            masked,
            candidate,
            confidence,
            threshold=table.threshold[slots][:, None],
            min_tokens=table.schedule[slots, steps][:, None],
        )
        table.tokens[where] = canvas
        table.masked[where] = masked
        settled = settled_rows(
            canvas,
            masked,
            first,
            stop_ids=table.stop_ids[slots],
            text_start=table.text_start[slots],
            text_end=table.text_end[slots],
        )
        # The step's only device-to-host copy.
        packed = torch.cat([canvas.masked_fill(masked, MASKED), settled[:, None].long()], dim=1)
        report = packed.cpu().numpy()
        return StepResult(report[:, :-1], report[:, -1].astype(bool))

    def _head(self, hidden: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Candidate and confidence at the masked positions `where` of `hidden`."""
        start, end = self.model.vocab_shard_range()
        most = CPU_HEAD_BYTES if self.device.type == "cpu" else DEVICE_HEAD_BYTES
        chunk = max(1, most // (4 * (end - start)))
        parts = [
            vocab_statistics(
                self.model.head_logits(hidden[rows]),
                vocab_start=start,
                mask_id=self.table.mask_id,
            )
            for rows in where.split(chunk)
        ]
        local = ShardStatistics(*(torch.cat(field) for field in zip(*parts, strict=True)))
        return combine_shards(self._gather(local))

    def _gather(self, local: ShardStatistics) -> ShardStatistics:
        """Stack the statistics of all vocabulary shards: three numbers per position."""
        if self.tp_group.world_size == 1:
            return ShardStatistics(*(field[None] for field in local))
        # Token ids are exact in float64, so that one collective carries everything.
        packed = torch.stack([field.double() for field in local])
        shards = self.tp_group.all_gather(packed[None], dim=0)
        maximum, token, sum_exp = shards.unbind(dim=1)
        return ShardStatistics(maximum.float(), token.long(), sum_exp.float())
