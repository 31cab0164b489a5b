"""What a training step minimises, and what it moves besides: the experts' biases."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llada_sglang.reference.model import LLaDA2
from llada_sglang.reference.moe import MoE


def masked_loss(
    logits: Tensor, labels: Tensor, weight: Tensor, *, cap: float
) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy, plus `cap` times the mean entropy where the argmax is right already.

    logits float32 [tokens, vocab]; labels int64 and weight float32 [tokens]. Returns the loss and
    the share of right tokens, both scalars. Source: LLaDA2.0 report, confidence-aware parallel.
    """
    logs = logits.log_softmax(-1)
    right = logits.argmax(-1) == labels
    loss = (F.nll_loss(logs, labels, reduction="none") * weight).sum() / weight.sum()
    if cap:
        entropy = -(logs.exp() * logs).sum(-1)
        sure = weight * right
        loss = loss + cap * (entropy * sure).sum() / sure.sum().clamp(min=1.0)
    return loss, (right * weight).sum() / weight.sum()


@torch.no_grad()
def balance_experts(model: LLaDA2, rate: float) -> None:
    """Move each expert's bias against its load (loss-free balancing, arXiv 2408.15664)."""
    for layer in model.model.layers:
        if isinstance(layer.mlp, MoE) and layer.mlp.load is not None:
            load = layer.mlp.load.float()
            layer.mlp.gate.expert_bias += rate * (load.mean() - load).sign()
