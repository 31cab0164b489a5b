"""Constrained decoding of a block: walk from the frontier, as far as the model is sure.

A grammar's state is known only behind the resolved prefix. So a constrained row resolves from left
to right: the logits of the first masked position are masked by the grammar, a token is chosen and
accepted, the grammar advances, and the walk goes on to the next position with the logits of the
same forward, until one is not sure enough. What the grammar determines by itself costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

Pick = Callable[[Tensor, int], tuple[int, float]]
"""Chooses from logits [1, vocab] at the n-th position of a walk; (token, confidence in [0, 1])."""


class NoLegalTokenError(RuntimeError):
    """The grammar allows no token the model may produce."""


def walk(
    grammar: BaseGrammarObject,
    logits: Tensor,
    pick: Pick,
    *,
    threshold: float,
    least: int,
    tokenizer: Any,
) -> list[tuple[int, float]]:
    """Resolve a prefix of consecutive masked positions; the grammar advances with it.

    logits: float32 [positions, vocab], overwritten where looked at. At least `least` positions
    are resolved, the rest while the confidence under the grammar is above `threshold`; the walk
    ends with the grammar. Returns (token, confidence) of the resolved positions, in order.
    Raises NoLegalTokenError, and what the grammar backend raises.
    """
    positions, vocab = logits.shape
    out: list[tuple[int, float]] = []
    while len(out) < positions and not grammar.is_terminated():
        for token in _determined(grammar, tokenizer)[: positions - len(out)]:
            grammar.accept_token(token)
            out.append((token, 1.0))
        if len(out) == positions:
            break
        at = len(out)
        row = logits[at : at + 1]
        # A new one each time: not every backend overwrites, or can reset, a used one.
        mask = grammar.allocate_vocab_mask(vocab, 1, logits.device)
        grammar.fill_vocab_mask(mask, 0)
        grammar.apply_vocab_mask(row, grammar.move_vocab_mask(mask, logits.device))
        if not bool(torch.isfinite(row).any()):
            raise NoLegalTokenError("the grammar allows no token of this vocabulary here")
        token, confidence = pick(row, at)
        if at >= least and confidence <= threshold:
            break
        grammar.accept_token(token)
        out.append((token, confidence))
    return out


def _determined(grammar: BaseGrammarObject, tokenizer: Any) -> list[int]:
    """Tokens of the text that must follow, whatever the model says."""
    helper = grammar.try_jump_forward(tokenizer)
    if not helper:
        return []
    ids, text = helper
    if ids:
        return list(ids)  # llguidance knows the tokenizer and gives tokens
    # The last one is left to the model: the tokenizer might merge it with what comes behind.
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < 2 or tokenizer.decode(ids) != text:
        return []
    return list(ids[:-1])
