"""Decoding of one request, everything recomputed at every step: the definition.

Nothing here is shared with `llada_sglang.decoding`; the engine must give these tokens exactly.
Source: docs/decoding.md, sections "Policies" and "Lookahead".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from llada_sglang.reference.editing import Editing, editing
from llada_sglang.reference.model import LLaDA2
from llada_sglang.reference.policies import EDITING, Policy, Value, settings, unmasking
from llada_sglang.reference.request import LogitsFn, Request
from llada_sglang.reference.tokens import GREEDY, Cell, TokenRules, written


@dataclass(frozen=True, slots=True)
class Decoded:
    """One finished request.

    output_ids: the generated ids; with finish_reason "stop" the last one is the EOS.
    steps_per_block: denoise steps of each block that the text reaches into, in order.
    unmask_step, confidence: for every output id, the step of its block that wrote it last (from
        0) and the probability it had then; they move with their token where the policy moves it.
    logprob: for every output id, its log-probability then, after penalties, bias, the policy's own
        adjustment and temperature, and before any filter.
    forwards: denoise forwards; with lookahead one is shared by all blocks in flight, under an
        editing policy by the step that finds a block final and the first one of the next. Tokens
        per forward is len(output_ids) / forwards.
    """

    output_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    steps_per_block: tuple[int, ...]
    unmask_step: tuple[int, ...]
    confidence: tuple[float, ...]
    logprob: tuple[float, ...] = ()
    forwards: int = 0


def unmask_schedule(
    block_size: int, max_new_tokens: int, *, steps: int, minimal_topk: int
) -> list[int]:
    """Least number of positions to unmask at each step of a block; sums to block_size."""
    gen_length = -(-max_new_tokens // block_size) * block_size
    count = max(1, min(steps, block_size, gen_length // minimal_topk))
    return [block_size // count + (1 if s < block_size % count else 0) for s in range(count)]


def decode(model: LLaDA2, prompt_ids: Sequence[int], *, block_size: int, **options: Any) -> Decoded:
    """Decode one prompt with the reference model, on the model's device.

    Keywords are those of `decode_with`.
    """
    device = model.lm_head.weight.device
    return decode_with(
        lambda ids: model.block_causal_logits(ids.to(device), block_size).cpu(),
        prompt_ids,
        block_size=block_size,
        **options,
    )


def decode_with(
    logits_of: LogitsFn,
    prompt_ids: Sequence[int],
    *,
    block_size: int,
    mask_id: int,
    eos_ids: Collection[int],
    max_new_tokens: int,
    policy: str = "threshold",
    parameters: Mapping[str, Value] | None = None,
    threshold: float | None = None,
    steps: int = 32,
    minimal_topk: int = 1,
    eos_early_stop: bool = True,
    lookahead: int = 1,
    lookahead_start: float = 0.5,
    lookahead_semi: float = 0.9,
    delete_id: int | None = None,
    split_id: int | None = None,
    ignore_eos: bool = False,
    rules: TokenRules = GREEDY,
) -> Decoded:
    """Decode one prompt with any `logits_of`: int64 [length] -> float32 [length, vocab].

    `logits_of` is called with whole blocks only, from position 0 to the end of the last block in
    flight. Prompt positions are never masked, whatever ids they hold. Denoising ends once nothing
    before the end of the text can change: at a final EOS, or at max_new_tokens.

    delete_id, split_id: LLaDA2.2's actions, candidates under `levenshtein` only.
    parameters: the policy's own, by the names of docs/decoding.md; `threshold` is used where the
    policy has one and `parameters` does not name it. Editing policies take no notice of `steps`,
    `minimal_topk`, `eos_early_stop`, `lookahead_start` and `lookahead_semi`.
    Raises ValueError for anything else a policy does not have.
    """
    values = settings(policy, parameters, threshold)
    if lookahead < 1 or (lookahead > 1 and policy in EDITING):
        raise ValueError(f"{policy} has no lookahead {lookahead}")
    if policy == "levenshtein" and (delete_id is None or split_id is None):
        raise ValueError("levenshtein needs delete_id and split_id")
    counting = rules.frequency_penalty or rules.presence_penalty or rules.repetition_penalty != 1.0
    if policy in EDITING and counting:
        raise ValueError(f"{policy} may revise the tokens that penalties count")
    if max_new_tokens < 1:
        return Decoded((), "length", (), (), ())

    stops = frozenset() if ignore_eos else frozenset(eos_ids)
    actions = () if policy == "levenshtein" else (delete_id, split_id)
    request = Request(
        logits_of,
        prompt_ids,
        block_size,
        mask_id,
        stops,
        max_new_tokens,
        rules,
        tuple(action for action in actions if action is not None),
    )
    if policy in EDITING:
        return _decode_editing(
            request,
            partial(editing, policy, values, delete_id=delete_id, split_id=split_id, rules=rules),
        )
    return _decode_unmasking(
        request,
        partial(unmasking, policy, values),
        schedule=unmask_schedule(
            block_size, max_new_tokens, steps=steps, minimal_topk=minimal_topk
        ),
        eos_early_stop=eos_early_stop,
        lookahead=lookahead,
        lookahead_start=lookahead_start,
        lookahead_semi=lookahead_semi,
    )


@dataclass(slots=True)
class _Block:
    """A block in flight: its first position, and the steps it has taken."""

    low: int
    policy: Policy
    steps: int = 0
    forced_steps: int = 0


def _decode_unmasking(
    request: Request,
    start: Callable[[], Policy],
    *,
    schedule: Sequence[int],
    eos_early_stop: bool,
    lookahead: int,
    lookahead_start: float,
    lookahead_semi: float,
) -> Decoded:
    size, limit = request.block_size, request.limit
    cells = [Cell(token, prompt=True) for token in request.prompt]
    flight: list[_Block] = []
    upcoming = request.first_block
    steps: list[int] = []
    forwards = 0

    def share(block: _Block) -> float:
        return sum(not cell.masked for cell in cells[block.low : block.low + size]) / size

    def stops(block: _Block) -> bool:
        return any(
            cell.token in request.stops and not cell.prompt
            for cell in cells[block.low : block.low + size]
        )

    def settled(block: _Block) -> bool:
        if eos_early_stop and request.first_stop(cells, block.low) is not None:
            return True
        return not any(cell.masked for cell in cells[block.low : min(block.low + size, limit)])

    while True:
        while flight and settled(flight[0]):
            front = flight.pop(0)
            steps.append(front.steps)
            end = request.first_stop(cells, front.low)
            if end is not None:
                return _decoded(request, cells, end, steps, forwards)
        while (
            len(flight) < lookahead
            and upcoming < limit
            and not any(stops(block) for block in flight)
            and (not flight or share(flight[-1]) >= lookahead_start)
        ):
            flight.append(_Block(upcoming, start()))
            upcoming += size
            cells += [Cell()] * (upcoming - len(cells))
        if not flight:
            return _decoded(request, cells, None, steps, forwards)

        logits = request.logits(cells)
        forwards += 1
        after = list(cells)
        for place, block in enumerate(flight):
            if settled(block):
                continue
            forced = place == 0 or share(flight[place - 1]) >= lookahead_semi
            found = request.candidates(
                logits,
                cells,
                block.low,
                block.steps,
                masked_only=True,
                adjust=block.policy.adjust,
            )
            least = schedule[block.forced_steps] if forced else 0
            for at in block.policy.take(found, least=least, forced=forced):
                after[block.low + at] = written(found[at], block.steps)
            block.steps += 1
            block.forced_steps += forced
        cells = after


def _decode_editing(request: Request, start: Callable[[], Editing]) -> Decoded:
    size = request.block_size
    cells = [Cell(token, prompt=True) for token in request.prompt]
    steps: list[int] = []
    shared, kept = 0, False
    end = None
    for low in range(request.first_block, request.limit, size):
        shared += kept
        cells += [Cell()] * (low + size - len(cells))
        block = start()
        step, finished = 0, False
        while not finished:
            before = [cell.token for cell in cells[low:]]
            find = partial(request.candidates, request.logits(cells), tuple(cells), low, step)
            cells[low:], finished = block.step(cells[low:], find)
            step += 1
            # Then the first step of the next block would have read the same tokens.
            kept = None not in before and before == [cell.token for cell in cells[low:]]
        steps.append(step)
        end = request.first_stop(cells, low)
        if end is not None:
            break
    return _decoded(request, cells, end, steps, sum(steps) - shared)


def _decoded(
    request: Request,
    cells: Sequence[Cell],
    end: int | None,
    steps: Sequence[int],
    forwards: int,
) -> Decoded:
    """The result; `end` is the position of the stop id, `steps` those of each block."""
    stopped = end is not None and end < request.limit
    last = end + 1 if end is not None and stopped else request.limit
    text = cells[len(request.prompt) : last]
    return Decoded(
        output_ids=tuple(cell.token for cell in text if cell.token is not None),
        finish_reason="stop" if stopped else "length",
        steps_per_block=tuple(steps),
        unmask_step=tuple(cell.step for cell in text),
        confidence=tuple(cell.confidence for cell in text),
        logprob=tuple(cell.logprob for cell in text),
        forwards=forwards,
    )
