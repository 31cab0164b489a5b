"""The head over some positions of a step: what leads the vocabulary there, or all its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, combine_shards
from llada_sglang.kernels import vocab_statistics
from llada_sglang.kernels.head_statistics import head_statistics

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator

    from llada_sglang.graphs.head import HeadGraphs

CPU_HEAD_BYTES = 64 << 20
DEVICE_HEAD_BYTES = 1 << 30
"""Most bytes of logits alive at once; a wider head is run in chunks of positions. Each chunk
reads the head's weights again, which a cache forgives and an accelerator's memory does not."""


class Head:
    """lm_head, sharded over the ranks of `tp_group`; no token is ever the mask.

    model: offers `head_logits`, `plain_head`, `vocab_shard_range`, `lm_head` and `config`.
    graphs: what runs `leading` where it covers the hidden states.
    """

    def __init__(
        self, *, model: Any, mask_id: int, device: torch.device, tp_group: GroupCoordinator
    ) -> None:
        self.graphs: HeadGraphs | None = None
        self._model = model
        self._mask_id = mask_id
        self._device = device
        self._tp_group = tp_group

    @property
    def vocab_size(self) -> int:
        """Tokens of the whole vocabulary."""
        return int(self._model.config.vocab_size)

    @property
    def positions_in_full(self) -> int:
        """At how many positions the whole vocabulary's logits may be alive at once."""
        return self._most_positions // self._tp_group.world_size

    @property
    def _most_positions(self) -> int:
        start, end = self._model.vocab_shard_range()
        most = CPU_HEAD_BYTES if self._device.type == "cpu" else DEVICE_HEAD_BYTES
        return int(most // (4 * (end - start)))

    def leading(self, hidden: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable token and its probability at some positions.

        hidden: [positions, hidden]. where: int64 [some]. Returns (int64 [some], float32 [some]).
        """
        if self.graphs is not None and self.graphs.covers(hidden):
            return self.graphs.run(hidden, where)
        weight = self._model.plain_head() if self._device.type == "cpu" else None
        if weight is not None:
            start, _ = self._model.vocab_shard_range()
            picked = hidden[where].to(weight.dtype)
            return self.combine(
                head_statistics(picked, weight, vocab_start=start, mask_id=self._mask_id)
            )
        chunks = where.split(max(1, self._most_positions))
        parts = [self.statistics(hidden[chunk]) for chunk in chunks]
        return self.combine(ShardStatistics(*map(torch.cat, zip(*parts, strict=True))))

    def statistics(self, hidden: Tensor) -> ShardStatistics:
        """Statistics of this rank's part of the vocabulary. hidden: [positions, hidden]."""
        start, _ = self._model.vocab_shard_range()
        return vocab_statistics(
            self._model.head_logits(hidden), vocab_start=start, mask_id=self._mask_id
        )

    def combine(self, local: ShardStatistics) -> tuple[Tensor, Tensor]:
        """Candidate and confidence from the statistics of all ranks; `local` are this one's."""
        return combine_shards(self._gather(local))

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits, the mask's at -inf and none NaN or +inf.

        hidden: [positions, hidden]. Returns float32 [positions, vocab].
        """
        logits = self._gather_logits(self._model.head_logits(hidden).float())
        logits[:, self._mask_id] = -torch.inf
        # One NaN must not decide a block, nor +inf turn a softmax into NaN.
        limit = torch.finfo(torch.float32).max
        return logits.nan_to_num(nan=-torch.inf, posinf=limit, neginf=-torch.inf)

    def _gather(self, local: ShardStatistics) -> ShardStatistics:
        """Stack the statistics of all vocabulary shards: three numbers per position."""
        if self._tp_group.world_size == 1:
            return ShardStatistics(*(field[None] for field in local))
        # Token ids are exact in float64, so that one collective carries everything.
        packed = torch.stack([field.double() for field in local])
        shards = self._tp_group.all_gather(packed[None], dim=0)
        maximum, token, sum_exp = shards.unbind(dim=1)
        return ShardStatistics(maximum.float(), token.long(), sum_exp.float())

    def _gather_logits(self, local: Tensor) -> Tensor:
        """The logits of all vocabulary shards, float32 [positions, vocab]."""
        if self._tp_group.world_size == 1:
            return local
        # Shards differ in width where the vocabulary does not divide; collectives want equals.
        width = self._model.lm_head.num_embeddings_per_partition
        padded = torch.nn.functional.pad(local, (0, width - local.shape[1]), value=-torch.inf)
        gathered = self._tp_group.all_gather(padded.contiguous(), dim=-1)
        return gathered[:, : self.vocab_size].contiguous()
