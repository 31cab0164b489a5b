"""Threshold decoding of one request, everything recomputed at every step: the definition.

Nothing here is shared with `llada_sglang.decoding`; the engine must give these tokens exactly.
Source: LLaDA2.0 report, section 5.4, and `generate` of the published modelling code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llada_sglang.reference.model import LLaDA2
from llada_sglang.reference.tokens import GREEDY, TokenRules, choose, noise, penalized

LogitsFn = Callable[[Tensor], Tensor]

_FORBIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class Decoded:
    """One finished request.

    output_ids: the generated ids; with finish_reason "stop" the last one is the EOS.
    steps_per_block: denoise forwards of each block that was generated into, in order.
    unmask_step, confidence: for every output id, the step of its block that unmasked it (from 0)
        and the probability it had then. logprob: for every output id, its log-probability then,
        after penalties, bias and temperature and before any filter.
    """

    output_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    steps_per_block: tuple[int, ...]
    unmask_step: tuple[int, ...]
    confidence: tuple[float, ...]
    logprob: tuple[float, ...] = ()

    @property
    def forwards(self) -> int:
        """Denoise forwards; tokens per forward is len(output_ids) / forwards."""
        return sum(self.steps_per_block)


def unmask_schedule(
    block_size: int, max_new_tokens: int, *, steps: int, minimal_topk: int
) -> list[int]:
    """Least number of positions to unmask at each step of a block; sums to block_size."""
    gen_length = -(-max_new_tokens // block_size) * block_size
    count = max(1, min(steps, block_size, gen_length // minimal_topk))
    return [block_size // count + (1 if s < block_size % count else 0) for s in range(count)]


def grade(probability: float) -> float:
    """Probabilities closer than 2^-14 of their value count as equal, and the lower position wins.

    Our addition to the published rule: behind an empty prompt all masked positions are equal in
    exact arithmetic, and rounding must not choose among them.
    """
    return round(math.log(probability) * 2**14) if probability > 0.0 else -math.inf


def decode(
    model: LLaDA2,
    prompt_ids: Sequence[int],
    *,
    block_size: int,
    mask_id: int,
    eos_ids: Collection[int],
    max_new_tokens: int,
    threshold: float = 0.95,
    steps: int = 32,
    minimal_topk: int = 1,
    eos_early_stop: bool = True,
    ignore_eos: bool = False,
    rules: TokenRules = GREEDY,
) -> Decoded:
    """Decode one prompt with the reference model, on the model's device."""
    device = model.lm_head.weight.device
    return decode_with(
        lambda ids: model.block_causal_logits(ids.to(device), block_size).cpu(),
        prompt_ids,
        block_size=block_size,
        mask_id=mask_id,
        eos_ids=eos_ids,
        max_new_tokens=max_new_tokens,
        threshold=threshold,
        steps=steps,
        minimal_topk=minimal_topk,
        eos_early_stop=eos_early_stop,
        ignore_eos=ignore_eos,
        rules=rules,
    )


def decode_with(
    logits_of: LogitsFn,
    prompt_ids: Sequence[int],
    *,
    block_size: int,
    mask_id: int,
    eos_ids: Collection[int],
    max_new_tokens: int,
    threshold: float = 0.95,
    steps: int = 32,
    minimal_topk: int = 1,
    eos_early_stop: bool = True,
    ignore_eos: bool = False,
    rules: TokenRules = GREEDY,
) -> Decoded:
    """Decode one prompt with any `logits_of`: int64 [length] -> float32 [length, vocab].

    `logits_of` is called with whole blocks only, from position 0 to the end of the denoised block.
    Prompt positions are never masked, whatever ids they hold. Denoising ends once nothing before
    the end of the text can change: at a final EOS, or at max_new_tokens.
    """
    start = len(prompt_ids)
    limit = start + max_new_tokens
    if max_new_tokens < 1:
        return Decoded((), "length", (), (), ())
    schedule = unmask_schedule(block_size, max_new_tokens, steps=steps, minimal_topk=minimal_topk)
    stops = frozenset() if ignore_eos else frozenset(eos_ids)

    canvas = list(prompt_ids)
    masked = [False] * start
    unmask_step: dict[int, int] = {}
    confidence: dict[int, float] = {}
    logprob: dict[int, float] = {}
    steps_per_block: list[int] = []
    end: int | None = None

    for block in range(start // block_size, -(-limit // block_size)):
        low, high = block * block_size, (block + 1) * block_size
        canvas += [mask_id] * (high - len(canvas))
        masked += [True] * (high - len(masked))
        step = 0
        while any(masked[low : min(high, limit)]):
            logits = logits_of(torch.tensor(canvas))[low:high].float().clone()
            logits[:, mask_id] = float("-inf")
            resolved = [canvas[at] for at in range(start, high) if not masked[at]]
            candidate: dict[int, int] = {}
            sureness: dict[int, float] = {}
            scores: dict[int, float] = {}
            for position in range(low, high):
                if masked[position]:
                    row = penalized(logits[position - low], rules, prompt_ids, resolved)
                    if position < start + rules.min_new_tokens:
                        row[list(stops)] = _FORBIDDEN
                    number = noise(rules.seed, position, step)
                    token, sureness[position] = choose(row, rules, number)
                    scaled = row.double() / (rules.temperature or 1.0)
                    candidate[position] = token
                    scores[position] = float(scaled.log_softmax(-1)[token])
            chosen = [position for position, p in sureness.items() if p > threshold]
            least = schedule[step]
            if len(chosen) < least:
                ranking = sorted(sureness, key=lambda at: (-grade(sureness[at]), at))
                chosen = ranking[:least]
            for position in chosen:
                canvas[position] = candidate[position]
                logprob[position] = scores[position]
                masked[position] = False
                unmask_step[position] = step
                confidence[position] = sureness[position]
            step += 1
            if eos_early_stop:
                end = _first_final_eos(canvas, masked, max(low, start), high, stops)
                if end is not None:
                    break
        steps_per_block.append(step)
        if end is None:
            end = _first_final_eos(canvas, masked, max(low, start), high, stops)
        if end is not None:
            break

    stopped = end is not None and end < limit
    last = end + 1 if end is not None and stopped else limit
    span = range(start, last)
    return Decoded(
        output_ids=tuple(canvas[position] for position in span),
        finish_reason="stop" if stopped else "length",
        steps_per_block=tuple(steps_per_block),
        unmask_step=tuple(unmask_step[position] for position in span),
        confidence=tuple(confidence[position] for position in span),
        logprob=tuple(logprob[position] for position in span),
    )


def _first_final_eos(
    canvas: list[int], masked: list[bool], low: int, high: int, stops: Collection[int]
) -> int | None:
    """The first generated EOS of [low, high) with no mask before it, or None."""
    for position in range(low, high):
        if masked[position]:
            return None
        if canvas[position] in stops:
            return position
    return None
