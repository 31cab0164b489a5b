"""What is reported of single tokens: when they were unmasked, how sure, how likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from llada_sglang.scheduler.options import TokenOptions


_PER_TOKEN = ("confidence", "logprob", "top_values", "top_ids", "id_values")


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
    source: np.ndarray | None = None

    def take(
        self, columns: np.ndarray, new: BlockDetails, step: int, source: np.ndarray | None = None
    ) -> None:
        """Take over what a step says of the columns it wrote.

        source: int64 [block], the column each position came from, where positions moved.
        """
        assert self.step is not None
        self.step[columns] = step
        origin = columns if source is None else source[columns]
        for name in _PER_TOKEN:
            mine, theirs = getattr(self, name), getattr(new, name)
            if mine is not None and theirs is not None:
                mine[columns] = theirs[origin]

    def move(self, source: np.ndarray) -> None:
        """Move everything along with its position. source: as in `take`, -1 for a new one."""
        assert self.step is not None
        self.step = np.where(source >= 0, self.step[source], -1)
        for name in _PER_TOKEN:
            if (mine := getattr(self, name)) is not None:
                setattr(self, name, mine[source].copy())

    @classmethod
    def like(cls, other: BlockDetails) -> BlockDetails:
        """An empty one with the fields of another."""
        empty = {
            name: None if value is None else np.zeros_like(value)
            for name in _PER_TOKEN
            for value in (getattr(other, name),)
        }
        return cls(step=np.full(other.confidence.shape, -1, dtype=np.int64), **empty)  # type: ignore[arg-type]


def report(req: Req, options: TokenOptions, details: BlockDetails | None, columns: range) -> None:
    """Append what is reported of the emitted columns of a block to the request's lists."""
    if not options.reports:
        return
    assert details is not None
    assert details.step is not None
    begin, end = columns.start, columns.stop
    if options.trace:
        info = req.customized_info
        info["unmask_step"] += details.step[begin:end].tolist()
        info["unmask_confidence"] += details.confidence[begin:end].tolist()
    if options.logprobs:
        assert details.logprob is not None
        out = req.logprob
        out.output_token_logprobs_val += details.logprob[begin:end].tolist()
        out.output_token_logprobs_idx += req.output_ids[-len(columns) :].tolist()
        if details.top_values is not None and details.top_ids is not None:
            out.output_top_logprobs_val += details.top_values[begin:end].tolist()
            out.output_top_logprobs_idx += details.top_ids[begin:end].astype(np.int64).tolist()
        if details.id_values is not None:
            out.output_token_ids_logprobs_val += details.id_values[begin:end].tolist()
            out.output_token_ids_logprobs_idx += [list(options.logprob_ids)] * len(columns)
