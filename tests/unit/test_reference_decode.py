"""Each test scripts the logits of every position, so the right tokens can be told by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llada_sglang.reference.decode import Decoded, decode_with, unmask_schedule

VOCAB, MASK, EOS = 12, 10, 11
Script = Callable[[int, list[int]], tuple[int, float]]


def scripted(script: Script) -> Callable[[Tensor], Tensor]:
    """Logits under which `script(position, canvas)` gives each position's token and probability."""

    def logits_of(ids: Tensor) -> Tensor:
        logits = torch.zeros(len(ids), VOCAB)
        for position in range(len(ids)):
            token, probability = script(position, ids.tolist())
            others = VOCAB - 2  # all but the token and the mask id
            logits[position, token] = math.log(probability * others / (1 - probability))
            logits[position, MASK] = 50.0  # must never be predicted
        return logits

    return logits_of


def run(script: Script, prompt: list[int], **options: object) -> Decoded:
    values: dict[str, object] = {"block_size": 4, "max_new_tokens": 8, "threshold": 0.9}
    values.update(options)
    return decode_with(scripted(script), prompt, mask_id=MASK, eos_ids=[EOS], **values)  # type: ignore[arg-type]


def test_everything_above_the_threshold_is_unmasked_in_one_step() -> None:
    result = run(lambda i, c: (i % 7, 0.99), [1, 2, 3, 4])
    assert result.output_ids == tuple(i % 7 for i in range(4, 12))
    assert result.steps_per_block == (1, 1)
    assert result.forwards == 2
    assert result.finish_reason == "length"
    assert result.confidence == pytest.approx([0.99] * 8, abs=1e-5)


def test_without_a_confident_position_the_best_goes_first_and_ties_go_left() -> None:
    sure = {0: 0.3, 1: 0.5, 2: 0.5, 3: 0.2}
    result = run(lambda i, c: (i, sure[i]), [], max_new_tokens=4)
    assert result.output_ids == (0, 1, 2, 3)
    assert result.unmask_step == (2, 0, 1, 3)
    assert result.steps_per_block == (4,)


def test_fewer_steps_force_more_positions_a_step() -> None:
    sure = {0: 0.2, 1: 0.5, 2: 0.4, 3: 0.3}
    result = run(lambda i, c: (i, sure[i]), [], max_new_tokens=4, steps=2)
    assert result.unmask_step == (1, 0, 0, 1)


def test_threshold_is_strict() -> None:
    result = run(lambda i, c: (1, 0.5), [], max_new_tokens=4, threshold=1.0)
    assert result.steps_per_block == (4,)


@pytest.mark.parametrize(
    ("block", "max_new", "steps", "topk", "expected"),
    [
        (32, 100, 32, 1, [1] * 32),
        (32, 100, 16, 1, [2] * 16),
        (32, 10, 32, 2, [2] * 16),
        (4, 4, 3, 1, [2, 1, 1]),
        (4, 1, 99, 1, [1] * 4),
        (4, 4, 4, 100, [4]),
    ],
)
def test_schedule_spreads_the_block_over_the_steps(
    block: int, max_new: int, steps: int, topk: int, expected: list[int]
) -> None:
    assert unmask_schedule(block, max_new, steps=steps, minimal_topk=topk) == expected


def test_prompt_tail_is_the_fixed_head_of_the_first_block() -> None:
    seen: list[list[int]] = []

    def script(position: int, canvas: list[int]) -> tuple[int, float]:
        if position == 0:
            seen.append(canvas)
        return position % 5, 0.99

    result = run(script, [7, 7, 7, 7, 8], max_new_tokens=5)
    assert seen[0] == [7, 7, 7, 7, 8, MASK, MASK, MASK]
    assert seen[1][8:] == [MASK] * 4
    assert result.output_ids == (0, 1, 2, 3, 4)


def test_prompt_may_hold_the_mask_id_and_eos() -> None:
    result = run(lambda i, c: (c[0] % 3 + 1, 0.99), [MASK, EOS, MASK, 5, EOS, MASK])
    assert result.output_ids == (2,) * 8
    assert result.finish_reason == "length"


def test_eos_ends_the_text_as_soon_as_no_mask_stands_before_it() -> None:
    # Position 1 is EOS from the first step; 0 resolves first, 2 and 3 never need to.
    sure = {0: 0.5, 1: 0.95, 2: 0.2, 3: 0.2}
    result = run(lambda i, c: (EOS if i == 1 else i + 3, sure[i]), [])
    assert result.output_ids == (3, EOS)
    assert result.finish_reason == "stop"
    assert result.unmask_step == (1, 0)
    assert result.steps_per_block == (2,)


def test_without_early_stop_the_block_is_resolved_first_with_the_same_text() -> None:
    sure = {0: 0.5, 1: 0.95, 2: 0.2, 3: 0.2}
    result = run(lambda i, c: (EOS if i == 1 else i + 3, sure[i]), [], eos_early_stop=False)
    assert result.output_ids == (3, EOS)
    assert result.steps_per_block == (4,)


def test_ignore_eos_goes_on_to_the_last_token() -> None:
    result = run(lambda i, c: (EOS, 0.99), [], ignore_eos=True, max_new_tokens=6)
    assert result.output_ids == (EOS,) * 6
    assert result.finish_reason == "length"


def test_max_new_tokens_cuts_and_never_changes_the_text() -> None:
    def script(position: int, canvas: list[int]) -> tuple[int, float]:
        unresolved = sum(token == MASK for token in canvas)
        return (position * 3 + unresolved) % 7, 0.3 + 0.01 * position

    long = run(script, [1, 2], max_new_tokens=14)
    for count in range(1, 14):
        short = run(script, [1, 2], max_new_tokens=count)
        assert short.output_ids == long.output_ids[:count]
        assert len(short.confidence) == len(short.unmask_step) == count


def test_eos_behind_the_limit_is_a_length_finish() -> None:
    result = run(lambda i, c: (EOS if i == 3 else 1, 0.99), [], max_new_tokens=2)
    assert (result.output_ids, result.finish_reason) == ((1, 1), "length")


def test_nothing_asked_nothing_computed() -> None:
    result = run(lambda i, c: (1, 0.99), [1, 2, 3], max_new_tokens=0)
    assert (result.output_ids, result.finish_reason, result.forwards) == ((), "length", 0)
