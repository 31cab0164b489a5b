"""Constrained decoding of a block: walk from the frontier, as far as the model is sure.

A grammar's state is known only behind the resolved prefix. So a constrained row resolves from left
to right: the logits of the first masked position are masked by the grammar, a token is chosen and
accepted, the grammar advances, and the walk goes on to the next position with the logits of the
same forward, until one is not sure enough. What the grammar determines by itself costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    before: Sequence[int] = (),
) -> list[tuple[int, float]]:
    """Resolve a prefix of consecutive masked positions; the grammar advances with it.

    logits: float32 [positions, vocab], overwritten where looked at. before: tokens in front of
    the first position, a few suffice. At least `least` positions are resolved, the rest while
    the confidence under the grammar is above `threshold`; the walk ends with the grammar.
    Returns (token, confidence) of the resolved positions, in order. Raises NoLegalTokenError,
    and what the grammar backend raises.
    """
    positions, vocab = logits.shape
    text = _Utf8(tokenizer, before)
    out: list[tuple[int, float]] = []
    while len(out) < positions and not grammar.is_terminated():
        last = out[-1][0] if out else (before[-1] if before else None)
        for token in _determined(grammar, tokenizer, last)[: positions - len(out)]:
            grammar.accept_token(token)
            text.add(token)
            out.append((token, 1.0))
        if len(out) == positions:
            break
        at = len(out)
        row = logits[at : at + 1]
        # A new one each time: not every backend overwrites, or can reset, a used one.
        mask = grammar.allocate_vocab_mask(vocab, 1, logits.device)
        grammar.fill_vocab_mask(mask, 0)
        _apply(grammar, row, mask)
        token, confidence = _choose(row, at, pick, text)
        if at >= least and confidence <= threshold:
            break
        grammar.accept_token(token)
        text.add(token)
        out.append((token, confidence))
    return out


def _choose(row: Tensor, at: int, pick: Pick, text: _Utf8) -> tuple[int, float]:
    while bool(torch.isfinite(row).any()):
        token, confidence = pick(row, at)
        if not text.breaks(token):
            return token, confidence
        row[0, token] = -torch.inf
    raise NoLegalTokenError("the grammar allows no token of this vocabulary here")


class _Utf8:
    """Whether the text so far ends inside a character, and which tokens would break it.

    Tokens of a byte-level vocabulary may be parts of characters, and grammar backends let them
    spell surrogates, which are no text in UTF-8.
    """

    BAD = "\ufffd"

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._open: list[int] = []
        # A character has four bytes, so as many tokens at most. A run that decodes to one
        # replacement begins a character; more of them are the end of one that is cut off.
        for size in range(1, 5):
            run = [int(token) for token in before[-size:]]
            shown = tokenizer.decode(run)
            if not shown.endswith(self.BAD):
                self._open = []
                break
            if shown == self.BAD:
                self._open = run

    def add(self, token: int) -> None:
        self._open.append(token)
        if not self._decode(self._open).endswith(self.BAD):
            self._open = []

    def breaks(self, token: int) -> bool:
        shown = self._decode([*self._open, token])
        return self.BAD in shown[:-1]


def illegal_json_ids(tokenizer: Any, vocab: int) -> list[int]:
    """Ids of tokens that no JSON text holds and that grammars still allow (xgrammar 0.2.7).

    Raw control characters, which must be escaped in a string (blanks between values are no loss:
    JSON never needs a line break), and bytes that never stand in UTF-8.
    """
    ids = range(min(vocab, len(tokenizer)))
    found = []
    for index, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        # A byte-level vocabulary writes byte b < 32 as U+0100 + b, and b >= 0xae as U+0000 + b.
        if token and (
            any(ord(c) < 0x20 or 0x100 <= ord(c) < 0x120 for c in token)
            or (token in _NEVER_IN_UTF8 and tokenizer.decode([index]) == _Utf8.BAD)
        ):
            found.append(index)
    return found


_NEVER_IN_UTF8 = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))


def _apply(grammar: BaseGrammarObject, row: Tensor, mask: Tensor) -> None:
    moved = grammar.move_vocab_mask(mask, row.device)
    if row.is_cuda:
        grammar.apply_vocab_mask(row, moved)
        return
    # llguidance compiles its mask: seconds at the first request, and nothing gained on a CPU.
    with torch.compiler.set_stance("force_eager"):
        grammar.apply_vocab_mask(row, moved)


def _determined(grammar: BaseGrammarObject, tokenizer: Any, last: int | None) -> list[int]:
    """Tokens of the text that must follow, whatever the model says.

    last: the token before it. Where the tokenizer would write the two together in another way than
    the model began, nothing is forced: text in tokens the model never saw confuses it.
    """
    try:
        helper = grammar.try_jump_forward(tokenizer)
    except UnicodeDecodeError:
        return []  # xgrammar: the text begins or ends inside a character
    if not helper:
        return []
    ids, text = helper
    if ids:
        return list(ids)  # llguidance knows the tokenizer and gives tokens
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < 2 or tokenizer.decode(ids) != text:
        return []
    if last is not None:
        joined = tokenizer.encode(tokenizer.decode([last]) + text, add_special_tokens=False)
        if list(joined) != [last, *ids]:
            return []
    # The last one is left to the model: the tokenizer might merge it with what comes behind.
    return list(ids[:-1])
