"""The editing decoders, step by step on made-up logits, and batched against one by one."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from llada_sglang.nano import tasks
from llada_sglang.nano.batched import BatchedDecoder
from llada_sglang.nano.editors import BatchedEditor, Block, EditRule, LevenshteinRule
from llada_sglang.nano.export import initialise, nano_config
from llada_sglang.nano.recipe import Variant
from llada_sglang.nano.tokenizer import add_edit_tokens, train_tokenizer

MASK, DELETE, SPLIT, VOCAB = 20, 21, 22, 24


def logits(*wishes: tuple[int, float]) -> Tensor:
    """One row per position: (token, its probability); tokens + 10, + 11, + 12 share the rest."""
    rows = torch.full((len(wishes), VOCAB), -40.0)
    for at, (token, p) in enumerate(wishes):
        rows[at, token] = math.log(p)
        for other, share in ((10, 0.34), (11, 0.33), (12, 0.33)):
            rows[at, (token + other) % VOCAB] = math.log(max(1e-9, share * (1 - p)))
    return rows


def masked_block(size: int, given: tuple[int, ...] = ()) -> Block:
    masks = size - len(given)
    return Block(
        [*given, *[MASK] * masks],
        [False] * len(given) + [True] * masks,
        [False] * size,
        len(given),
    )


def edit(threshold: float = 0.7, edit_threshold: float = 0.5, budget: int = 16) -> EditRule:
    return EditRule(MASK, threshold, edit_threshold, budget)


def levenshtein(budget: int = 16) -> LevenshteinRule:
    return LevenshteinRule(MASK, DELETE, SPLIT, 0.5, 0.0, budget)


def test_edit_unmasks_what_is_sure_else_the_best_and_ends_when_nothing_changes() -> None:
    rule, block = edit(), masked_block(4, given=(1,))
    assert not rule(block, logits((9, 0.99), (2, 0.9), (3, 0.8), (4, 0.6)))
    assert block.tokens == [1, 2, 3, MASK]
    assert not rule(block, logits((9, 0.99), (2, 0.9), (5, 0.6), (4, 0.6)))
    assert block.tokens == [1, 2, 5, 4]
    assert not rule(block, logits((9, 0.99), (2, 0.9), (5, 0.9), (6, 0.9)))
    assert block.tokens == [1, 2, 5, 6]
    # Not sure enough to edit: nothing changes.
    assert rule(block, logits((9, 0.99), (2, 0.9), (7, 0.5), (6, 0.9)))
    assert (block.tokens, block.post_steps) == ([1, 2, 5, 6], 2)


def test_edit_stops_at_its_budget() -> None:
    rule, block = edit(budget=2), masked_block(1)
    assert not rule(block, logits((2, 0.9)))
    assert not rule(block, logits((3, 0.9)))
    assert rule(block, logits((4, 0.9)))
    assert block.tokens == [4]
    rule, block = edit(budget=0), masked_block(1)
    assert rule(block, logits((2, 0.9)))


def test_delete_and_split_move_what_stands_behind() -> None:
    rule, block = levenshtein(), masked_block(5, given=(1,))
    assert not rule(block, logits((1, 1.0), (2, 0.9), (3, 0.9), (4, 0.9), (5, 0.4)))
    assert block.tokens == [1, 2, 3, 4, MASK]
    assert block.original == [False] * 4 + [True]
    # One position of M at least: the unsure mask goes too. 3 goes, and 4 gets a mask in front.
    assert not rule(block, logits((1, 1.0), (2, 0.9), (DELETE, 0.9), (SPLIT, 0.9), (5, 0.4)))
    assert block.tokens == [1, 2, MASK, 4, 5]
    assert block.new == [False, False, True, False, False]
    assert not any(block.original)
    # No original mask: all of M is written, however unsure. The split pushes 5 out.
    assert not rule(block, logits((1, 1.0), (2, 0.9), (3, 0.3), (SPLIT, 0.9), (5, 0.9)))
    assert block.tokens == [1, 2, 3, MASK, 4]
    assert not rule(block, logits((1, 1.0), (2, 0.9), (3, 0.9), (6, 0.9), (4, 0.9)))
    assert block.tokens == [1, 2, 3, 6, 4]
    assert rule(block, logits((1, 1.0), (2, 0.9), (3, 0.9), (6, 0.9), (4, 0.9)))
    assert block.post_steps == 3


def test_new_masks_raise_the_least_number_of_positions() -> None:
    unsure = logits((1, 0.4), (2, 0.3), (3, 0.45), (4, 0.35))
    rule, block = levenshtein(), masked_block(4)
    assert not rule(block, unsure)
    assert block.tokens == [MASK, MASK, 3, MASK]
    block = masked_block(4)
    block.original[1], block.new[1] = False, True
    assert not rule(block, unsure)
    assert block.tokens == [1, MASK, 3, MASK]


def test_the_final_step_fills_all_and_knows_no_actions() -> None:
    rule, block = levenshtein(budget=1), masked_block(3)
    assert not rule(block, logits((1, 0.9), (2, 0.9), (3, 0.9)))
    assert rule(block, logits((DELETE, 0.9), (SPLIT, 0.9), (3, 0.9)))
    assert block.tokens == [(DELETE + 10) % VOCAB, (SPLIT + 10) % VOCAB, 3]


def test_a_block_that_stands_as_before_takes_the_next_likeliest_at_its_worst_position() -> None:
    rule, block = levenshtein(), masked_block(2)
    there = logits((1, 0.9), (2, 0.8))
    back = logits((3, 0.9), (4, 0.8))
    assert not rule(block, there)
    assert not rule(block, back)
    assert not rule(block, there)
    assert block.tokens == [1, 2]
    assert not rule(block, back)
    assert block.tokens == [3, 14]  # [1, 2] again: position 1 is the worst


def test_actions_need_a_post_edit_step() -> None:
    with pytest.raises(ValueError, match="max_post_edit_steps must be at least 1 here, got 0"):
        levenshtein(budget=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(samples=2000)


@pytest.mark.parametrize("variant", ["edit", "levenshtein"])
def test_rows_of_a_batch_are_independent(tokenizer: Tokenizer, variant: Variant) -> None:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    if variant == "levenshtein":
        add_edit_tokens(tokenizer)
    config = nano_config(tokenizer, variant)
    model = initialise(config, seed=4).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # spreads the confidences of untrained weights
    questions = [e for f in ("add", "tool", "again") for e in tasks.examples(8, f, "eval", 2)]

    def answers(batch: int) -> list[object]:
        decoder = BatchedEditor(
            model, tokenizer, block_size=16, max_new_tokens=20, max_post_edit_steps=4, batch=batch
        )
        return list(decoder(questions))

    together = answers(4)
    assert together == answers(1)
    assert all(answer.tokens > 0 for answer in together)  # type: ignore[attr-defined]


def test_threshold_decoding_never_writes_an_action(tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    add_edit_tokens(tokenizer)
    config = nano_config(tokenizer, "levenshtein")
    model = initialise(config, seed=4).eval()
    actions = [config["delete_token_id"], config["split_token_id"]]
    with torch.no_grad():
        model.lm_head.weight[actions] *= 50
    seen: list[Tensor] = []
    decoder = BatchedDecoder(
        model, tokenizer, block_size=16, threshold=0.1, max_new_tokens=20, batch=4
    )
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    decoder(tasks.examples(8, "add", "eval", 2))
    assert not any(torch.isin(ids, torch.tensor(actions)).any() for ids in seen)
