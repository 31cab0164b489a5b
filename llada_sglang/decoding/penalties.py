"""Penalties and biases on logits, defined for positions that resolve in any order.

Autoregressive decoding penalises what stands before a position. A block's positions resolve in
any order and several at once, so here everything counts that is resolved when the step begins,
wherever it stands, and all masked positions of a request see the same counts. Tokens that are
unmasked in the same step do not see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """What one request does to its logits. Neutral by default.

    frequency, presence: subtracted per occurrence, and once, of a token in the resolved output.
    repetition: positive logits of any token of the prompt or the resolved output are divided by
        it, negative ones multiplied.
    bias: (token id, value) pairs, added.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def counts(self) -> bool:
        """Whether they depend on the tokens so far."""
        return bool(self.frequency or self.presence or self.repetition != 1.0)

    @property
    def any(self) -> bool:
        """Whether they change anything."""
        return self.counts or bool(self.bias)


def penalize(
    logits: Tensor, penalties: Penalties, tokens: Tensor, resolved: Tensor, text_start: int
) -> None:
    """Apply what depends on the tokens so far to the logits of one request, in place.

    logits: float32 [positions, vocab]. tokens: int64 [length], the request's tokens from position
    0 on; resolved: bool [length], which of them count. text_start: where its output begins.
    Order as in SGLang: repetition, then frequency and presence; `add_bias` comes last.
    """
    # Scattering weights instead of selecting tokens keeps the shapes, and the host, out of it.
    seen = torch.zeros(logits.shape[1], dtype=logits.dtype, device=logits.device)
    weight = resolved.to(logits.dtype)
    count = seen.scatter_add(0, tokens[text_start:], weight[text_start:])
    if penalties.repetition != 1.0:
        seen = seen.scatter_add(0, tokens, weight)
        scaled = torch.where(
            logits > 0, logits / penalties.repetition, logits * penalties.repetition
        )
        logits.copy_(torch.where(seen > 0, scaled, logits))
    logits -= penalties.frequency * count + penalties.presence * (count > 0)


def add_bias(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    """Add `values` [n] to the logits [positions, vocab] of the token ids [n], in place."""
    logits[:, ids] += values.to(logits.dtype)
