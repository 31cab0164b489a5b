"""Rounds over a model of tensor operations only, on any device: what a launch does is all real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from modelled_rounds import ModelledRounds
from torch import Tensor

from llada_sglang.decoding.penalties import Penalties
from llada_sglang.decoding.policy import Checkpoint
from llada_sglang.decoding.sampling import Sampling
from llada_sglang.scheduler.canvas import CanvasTable
from llada_sglang.scheduler.runner import BlockRunner

BLOCK, VOCAB, MASK, EOS = 4, 11, 3, 7
SLOTS, WIDTH = 16, 256

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "steps": {"custom": {"policy": "steps", "steps": 2}},
    "entropy": {"custom": {"policy": "entropy"}},
    "credit": {"custom": {"policy": "credit"}},
    "factor": {"custom": {"policy": "factor"}},
    "hierarchical": {"custom": {"policy": "hierarchical"}},
    "edit": {"custom": {"policy": "edit"}},
    "sampled edit": {
        "custom": {"policy": "edit", "threshold": 0.2, "edit_threshold": 0.6},
        "sampling": Sampling(temperature=0.9, seed=4),
    },
    "levenshtein": {"custom": {"policy": "levenshtein"}},
    "lookahead": {"custom": {"lookahead": 3, "lookahead_start": 0.0}},
    "sampled": {"sampling": Sampling(temperature=0.9, seed=4)},
    "filtered": {"sampling": Sampling(temperature=0.9, top_k=5, top_p=0.8, min_p=0.05, seed=4)},
    "penalised": {"penalties": Penalties(frequency=0.5, repetition=1.2)},
    "biased": {"penalties": Penalties(bias=((2, 1.5), (5, -3.0)))},
    "late stop": {"min_new_tokens": 5},
}
"""Arguments of `submit`, by what the request asks for."""


class TensorModel:
    """The model runner and the model in one. Logits depend on the position,
    its token and the one before it in the block."""

    def __init__(self, device: torch.device | str) -> None:
        generator = torch.Generator().manual_seed(3)
        self.embedding = (2 * torch.randn(VOCAB, VOCAB, generator=generator)).to(device)
        pages = torch.arange(SLOTS * WIDTH, dtype=torch.int32, device=device)
        self.req_to_token_pool = SimpleNamespace(req_to_token=pages.view(SLOTS, WIDTH))
        self.config = SimpleNamespace(vocab_size=VOCAB)
        self.model = self

    def forward(self, batch: Any) -> Any:
        hidden = self.embedding[batch.input_ids].view(-1, BLOCK, VOCAB)
        hidden = (hidden + 0.5 * hidden.roll(1, dims=1)).view(-1, VOCAB)
        hidden = hidden + 0.3 * (batch.positions % 7)[:, None] * self.embedding[0]
        return SimpleNamespace(logits_output=SimpleNamespace(hidden_states=hidden))

    def head_logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()

    def plain_head(self) -> None:
        return None

    def vocab_shard_range(self) -> tuple[int, int]:
        return 0, VOCAB


class TensorRounds(ModelledRounds):
    """`ModelledRounds` with every tensor on `device` and the runner's own forward."""

    def __init__(self, device: torch.device | str, **options: Any) -> None:
        super().__init__(lambda ids: ids, Checkpoint(BLOCK, MASK, 9, 10), vocab=VOCAB, **options)
        self.table = CanvasTable(slots=SLOTS, width=WIDTH, block=BLOCK, mask_id=MASK, device=device)
        self.rounds.table = self.table
        self.rounds.runner = BlockRunner(
            model_runner=TensorModel(device),  # type: ignore[arg-type]
            table=self.table,
            tp_group=SimpleNamespace(world_size=1),  # type: ignore[arg-type]
        )
        # What these pages hold is not this model's business.
        self.kv._check = lambda state: None  # type: ignore[method-assign]
