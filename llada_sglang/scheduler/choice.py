"""A candidate and a confidence for every masked position of a step, however a request wants them.

Rows that ask for the argmax share one pass over the head's weights. Rows that ask for more get
their logits in full, and only they pay for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llada_sglang.decoding.penalties import add_bias, penalize
from llada_sglang.decoding.policy import RowView
from llada_sglang.decoding.sampling import draw, uniform
from llada_sglang.decoding.statistics import ShardStatistics, combine_shards
from llada_sglang.kernels import vocab_statistics
from llada_sglang.scheduler.grammar import illegal_json_ids, walk
from llada_sglang.scheduler.state import MASKED
from llada_sglang.scheduler.transfer import upload

if TYPE_CHECKING:
    from llada_sglang.decoding.sampling import Sampling
    from llada_sglang.scheduler.canvas import CanvasTable
    from llada_sglang.scheduler.head import Head
    from llada_sglang.scheduler.state import ActiveRow, BlockState

logger = logging.getLogger(__name__)

FORBIDDEN = -1e30
"""Logit of a stop id before min_new_tokens: finite, so that it can still be chosen where a grammar
allows nothing else."""


@dataclass(slots=True)
class Choice:
    """Candidates of one step. candidate: int64 [rows, block]; confidence: float32 [rows, block].

    Both are read where candidates were wanted only. features: what policies read of the logits,
    [rows, block, ...]. details: per reporting row, tensors of the fields of BlockDetails. walked:
    per constrained row, the columns it resolved. ended: rows whose grammar is through. failed: by
    row, why its grammar cannot go on.
    """

    candidate: Tensor
    confidence: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    details: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    walked: dict[int, np.ndarray] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


class Chooser:
    """What becomes of a step's hidden states."""

    def __init__(self, *, head: Head, table: CanvasTable) -> None:
        self.head = head
        self.table = table
        self.block = table.block
        self.device = table.device
        self._illegal_json_ids: Tensor | None = None

    def choose(self, hidden: Tensor, active: Sequence[ActiveRow]) -> Choice:
        """A candidate and its confidence for every position that may change.

        hidden: [rows * block, hidden]. Rows that ask for more than the argmax take the general
        path, and only they pay for it.
        """
        block = self.block
        # The host mirrors every mask, so that finding them costs no device sync. Where the step
        # before is still running the mirror is one step old: it has masks that are gone, whose
        # candidates nobody reads, and misses none.
        wanted = np.concatenate([row.block.canvas for row in active]) == MASKED
        wanted = wanted.reshape(len(active), block)
        special = [index for index, row in enumerate(active) if row.state.record.special]
        for index in special:
            state = active[index].state
            if state.record.policy.edits:
                wanted[index, max(0, state.text_start - active[index].block.start) :] = True
        shape = (len(active), block)
        choice = Choice(
            torch.zeros(shape, dtype=torch.int64, device=self.device),
            torch.zeros(shape, dtype=torch.float32, device=self.device),
        )
        general = [index for index in special if active[index].state.record.general]
        plain = wanted
        if general:
            plain = wanted.copy()
            plain[general] = False
        where = np.flatnonzero(plain)
        if where.size:
            flat = upload(where, self.device)
            found, certain = self.head.leading(hidden, flat)
            choice.candidate.view(-1)[flat] = found
            choice.confidence.view(-1)[flat] = certain
        if general:
            for index, columns, logits in self._general_logits(hidden, wanted, general):
                self._choose_row(choice, index, active[index], columns, logits)
        for index in special:
            if active[index].state.record.options.reports:
                confidence = choice.confidence[index]
                choice.details.setdefault(index, {})["confidence"] = confidence
        return choice

    def _general_logits(
        self, hidden: Tensor, wanted: np.ndarray, rows: Sequence[int]
    ) -> Iterator[tuple[int, np.ndarray, Tensor]]:
        """Yield (row, its wanted columns, their logits float32 [columns, vocab]) row by row."""
        columns = {row: np.flatnonzero(wanted[row]) for row in rows}
        # Several rows share a product with the head as long as their logits fit.
        budget = max(self.block, self.head.positions_in_full)
        for chunk in _chunks(rows, [columns[row].size for row in rows], budget):
            where = np.concatenate([row * self.block + columns[row] for row in chunk])
            logits = self.head.logits(hidden[upload(where, self.device)])
            begin = 0
            for row in chunk:
                size = columns[row].size
                yield row, columns[row], logits[begin : begin + size]
                begin += size

    def _choose_row(
        self,
        choice: Choice,
        row: int,
        active: ActiveRow,
        columns: np.ndarray,
        logits: Tensor,
    ) -> None:
        """Candidates of one row on the general path; `logits` are overwritten."""
        state, one = active.state, active.block
        table, options, params = self.table, state.record.options, state.record.params
        policy = params.policy
        if options.penalties.counts:
            end = max(state.flight[-1].start, one.start) + self.block
            slot = state.slot
            penalize(
                logits,
                options.penalties,
                table.tokens[slot, :end],
                ~table.masked[slot, :end],
                state.text_start,
            )
        if options.penalties.bias:
            ids, values = map(np.array, zip(*options.penalties.bias, strict=True))
            add_bias(logits, upload(ids, self.device), upload(values, self.device))
        early = int((columns + one.start < state.text_start + options.min_new_tokens).sum())
        # One id after the other: a list of them would have to be copied to the device first.
        if early:
            for stop in state.record.stop_ids:
                logits[:early, stop] = FORBIDDEN
        for illegal in policy.illegal_ids:
            logits[:, illegal] = -torch.inf
        at = upload(columns, self.device)
        noise = self._noise(active, columns) if options.sampling.temperature > 0.0 else None
        if state.record.policy_reads and policy.reads_logits(params.values):
            self._read(choice, row, active, at, logits, noise)
        sampling = options.sampling
        raw = logits.clone() if options.logprobs else logits
        grammar = state.req.grammar if options.constrained else None
        if grammar is None:
            token, confidence = self._pick(logits, sampling, noise)
        else:
            if options.json:
                logits[:, self._illegal_json(state)] = -torch.inf

            def pick(one: Tensor, index: int) -> tuple[int, float]:
                some = None if noise is None else noise[index : index + 1]
                token, confidence = self._pick(one, sampling, some)
                return int(token), float(confidence)

            room = max(1, min(columns.size, int(state.text_end - one.start - columns[0])))
            try:
                found = walk(
                    grammar,
                    logits[:room],
                    pick,
                    # A policy without a threshold of its own walks as its schedule says.
                    threshold=params.values.get("threshold", 1.0),
                    least=active.least,
                    tokenizer=state.req.tokenizer,
                    before=state.req.output_ids[-4:],
                )
                if grammar.is_terminated():
                    choice.ended.append(row)
            except Exception as error:  # a broken grammar ends its request, not the server
                logger.warning("request %s: %s", state.req.rid, error, exc_info=True)
                choice.failed[row] = str(error)
                found = []
            columns, at = columns[: len(found)], at[: len(found)]
            raw = raw[: len(found)]
            choice.walked[row] = columns
            token = torch.tensor([t for t, _ in found], dtype=torch.int64, device=self.device)
            confidence = torch.tensor([c for _, c in found], device=self.device)
        choice.candidate[row, at] = token
        choice.confidence[row, at] = confidence.float()
        if options.logprobs:
            choice.details[row] = self._logprobs(state, raw, token, at)

    def _read(
        self,
        choice: Choice,
        row: int,
        active: ActiveRow,
        at: Tensor,
        logits: Tensor,
        noise: Tensor | None,
    ) -> None:
        """Show the logits of a row to its policy, and keep what it reads."""
        state, one = active.state, active.block
        policy, where = state.record.policy, slice(one.start, one.start + self.block)
        tensors = self.table.state_of(policy)
        found = policy.read(
            logits,
            RowView(
                canvas=self.table.tokens[state.slot, where],
                masked=self.table.masked[state.slot, where],
                columns=at,
                step=active.step,
                numbers=state.record.numbers,
                state={n: tensor[one.state_row] for n, tensor in tensors.tensors.items()},
                pick=lambda some: self._pick(some, state.record.options.sampling, noise),
            ),
        )
        for name, values in found.items():
            if name not in choice.features:
                shape = (*choice.candidate.shape, *values.shape[1:])
                choice.features[name] = values.new_zeros(shape)
            choice.features[name][row, at] = values

    def _illegal_json(self, state: BlockState) -> Tensor:
        if self._illegal_json_ids is None:
            found = illegal_json_ids(state.req.tokenizer, self.head.vocab_size)
            self._illegal_json_ids = torch.tensor(found, dtype=torch.int64, device=self.device)
        return self._illegal_json_ids

    def _noise(self, active: ActiveRow, columns: np.ndarray) -> Tensor:
        """A number in [0, 1) for each of some columns of a row, float64 [columns]."""
        seed, one = active.state.record.options.sampling.seed, active.block
        if not active.unsure:
            return upload(uniform(seed, columns + one.start, active.step), self.device)
        either = np.stack([uniform(seed, columns + one.start, step) for step in (0, active.step)])
        begun = self.table.begun[active.state.slot, one.start // self.block]
        return upload(either, self.device).index_select(0, begun.long()[None])[0]

    def _pick(
        self, logits: Tensor, sampling: Sampling, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Candidate and confidence per position. noise: as of `_noise`; None at temperature 0."""
        if noise is not None:
            return draw(logits, sampling, noise)
        statistics = vocab_statistics(logits.clone(), vocab_start=0, mask_id=self.table.mask_id)
        return combine_shards(ShardStatistics(*(part[None] for part in statistics)))

    def _logprobs(
        self, state: BlockState, logits: Tensor, token: Tensor, at: Tensor
    ) -> dict[str, Tensor]:
        """Log-probabilities at the columns `at`, spread over the block.

        They are those of the distribution the token was drawn from before any filter cut it:
        after penalties, bias and temperature, as SGLang reports them.
        """
        options = state.record.options
        scores = (logits.double() / (options.sampling.temperature or 1.0)).log_softmax(dim=-1)

        def spread(values: Tensor) -> Tensor:
            out = torch.zeros(
                (self.block, *values.shape[1:]), dtype=torch.float64, device=self.device
            )
            out[at] = values.double()
            return out

        found = {"logprob": spread(scores.gather(1, token[:, None])[:, 0])}
        if options.top_logprobs:
            top = scores.topk(min(options.top_logprobs, scores.shape[1]), dim=-1)
            found |= {"top_values": spread(top.values), "top_ids": spread(top.indices)}
        if options.logprob_ids:
            ids = upload(np.array(options.logprob_ids), self.device)
            found["id_values"] = spread(scores[:, ids])
        return found


def _chunks(rows: Sequence[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Consecutive rows whose sizes sum to at most `budget`; a greater row comes alone."""
    chunk: list[int] = []
    used = 0
    for row, size in zip(rows, sizes, strict=True):
        if chunk and used + size > budget:
            yield chunk
            chunk, used = [], 0
        chunk.append(row)
        used += size
    if chunk:
        yield chunk
