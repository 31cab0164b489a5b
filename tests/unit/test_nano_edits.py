"""Labels of noisy blocks, against what the decoder does with them."""

from __future__ import annotations

import random

import pytest
import torch

from llada_sglang.nano import batches, chat, tasks
from llada_sglang.nano.batches import IGNORE, Batch, Document
from llada_sglang.nano.corruption import SLACK, Corruptor, editing_segment, plant_own_tokens
from llada_sglang.nano.edits import Editing, align, apply_actions
from llada_sglang.nano.export import initialise, nano_config
from llada_sglang.nano.tokenizer import add_edit_tokens, token_id, train_tokenizer

MASK, FILL, DELETE, SPLIT = 900, 901, 902, 903
IDS = {"mask_id": MASK, "delete_id": DELETE, "split_id": SPLIT}
MOVING = Editing(MASK, FILL, DELETE, SPLIT)
PLAIN = Editing(MASK, FILL)


def written(noisy: list[int], labels: list[int], size: int) -> list[int]:
    """The block after one step whose candidates are the labels: cut off or filled up."""
    return (apply_actions(labels, noisy, **IDS) + [MASK] * size)[:size]


@pytest.mark.parametrize(
    ("noisy", "labels", "after"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 9, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]),
        # spurious: the last token was lost, and comes back as a mask
        ([1, 9, 2, 3], [1, DELETE, 2, 3], [1, 2, 3, MASK]),
        ([9, 8, 1, 2], [DELETE, DELETE, 1, 2], [1, 2, MASK, MASK]),
        # missing: SPLIT at the token behind the gap; what follows the block is pushed out
        ([1, 3, 4, 5], [1, SPLIT, 4, 5], [1, MASK, 3, 4]),
        ([2, 3, 4, 5], [SPLIT, 3, 4, 5], [MASK, 2, 3, 4]),
        # two missing: one mask a step
        ([1, 4, 5, 6], [1, SPLIT, 5, 6], [1, MASK, 4, 5]),
        ([1, MASK, 4, 5], [1, 2, SPLIT, 5], [1, 2, MASK, 4]),
        # masks stand for what comes first, also where there are too many
        ([1, MASK, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, MASK, MASK, 3, 4], [1, 2, 3, DELETE, 4], [1, 2, 3, 4, MASK]),
        # a mask behind a spurious token has the label of the position before
        ([1, 9, 2, MASK], [1, DELETE, 2, 3], [1, 2, 3, MASK]),
        ([1, 3, 4, MASK], [1, SPLIT, 4, 5], [1, MASK, 3, 4]),
    ],
)
def test_labels_of_a_block_and_what_they_make_of_it(
    noisy: list[int], labels: list[int], after: list[int]
) -> None:
    assert align(noisy, [1, 2, 3, 4, 5, 6, 7], **IDS) == labels
    assert written(noisy, labels, len(noisy)) == after


def test_of_equal_tokens_the_last_is_spurious_and_the_gap_is_behind_the_run() -> None:
    assert align([5, 5, 5, 7], [5, 5, 7, 8], **IDS) == [5, 5, DELETE, 7]
    assert align([5, 5, 7, 8], [5, 5, 5, 7, 8], **IDS) == [5, 5, SPLIT, 8]


def test_a_repair_in_place_is_preferred_to_an_equally_short_one_by_shifting() -> None:
    truth = [1, 2, 3, 4, 5, 6, 7, 8]
    assert align([4, 5, 6], truth, **IDS) == [1, 2, 3]
    assert align([4, 5, 6, 7], truth, **IDS) == [SPLIT, 5, 6, 7]


def test_without_actions_the_labels_are_the_clean_tokens() -> None:
    assert PLAIN.labels([9, MASK, 3], [1, 2, 3, 4, 5]) == [1, 2, 3]


def test_weights_are_high_for_actions_full_for_wrong_tokens_and_small_for_right_ones() -> None:
    editing = Editing(
        MASK, FILL, DELETE, SPLIT, keep_weight=0.5, fill_weight=0.1, action_weight=4.0
    )
    noisy = [1, 9, MASK, MASK, FILL, 8, 9]
    labels = [1, 2, 3, FILL, FILL, FILL, DELETE]
    assert editing.weights(noisy, labels) == [0.5, 1.0, 1.0, 0.1, 0.05, 1.0, 4.0]


def corruptor(editing: Editing, share: float = 1.0) -> Corruptor:
    return Corruptor(editing, digits=tuple(range(10)), vocabulary=200, edited_share=share)


@pytest.mark.parametrize("seed", range(40))
def test_following_the_labels_always_ends_in_the_clean_block(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 32)
    truth = [rng.randrange(12) for _ in range(size)] + [FILL] * SLACK
    block = corruptor(MOVING)(rng, truth, size, size, truth[:size])
    assert len(block) == size
    steps = 0
    while block != truth[:size]:
        labels = MOVING.labels(block, truth + [FILL] * size)
        assert len(labels) == size
        block = written(block, labels, size)
        steps += 1
        assert steps <= 2 + SLACK


@pytest.mark.parametrize("seed", range(20))
def test_one_spurious_or_missing_token_is_found_where_no_token_is_twice(seed: int) -> None:
    rng = random.Random(seed)
    truth = rng.sample(range(100), 40)
    at = rng.randrange(32)
    longer = [*truth[:at], 500, *truth[at:]][:32]
    assert MOVING.labels(longer, truth) == [*truth[:at], DELETE, *truth[at:]][:32]
    shorter = [*truth[:at], *truth[at + 1 :]][:32]
    labels = MOVING.labels(shorter, truth)
    assert labels == [*truth[:at], SPLIT, *truth[at + 2 :]][:32]
    assert written(shorter, labels, 32) == [*truth[:at], MASK, *truth[at + 1 : 32]]


def test_half_the_kinds_of_noise_shift_the_text_and_the_others_do_not() -> None:
    truth = list(range(100, 132)) + [FILL] * SLACK
    for editing in (PLAIN, MOVING):
        moved, wrong = 0, 0
        for seed in range(200):
            block = corruptor(editing)(random.Random(seed), truth, 32, 32, truth[:32])
            labels = editing.labels(block, truth)
            moved += DELETE in labels or SPLIT in labels
            wrong += any(t not in (MASK, y) for t, y in zip(block, truth[:32], strict=True))
        assert wrong > 120
        assert moved == 0 if editing is PLAIN else moved > 60


def test_blocks_without_edits_hold_masks_and_right_tokens_only() -> None:
    truth = list(range(100, 132)) + [FILL] * SLACK
    for seed in range(50):
        block = corruptor(MOVING, 0.0)(random.Random(seed), truth, 32, 32, truth[:32])
        assert all(t in (MASK, y) for t, y in zip(block, truth[:32], strict=True))


@pytest.mark.parametrize("editing", [PLAIN, MOVING])
def test_every_generated_position_of_a_noisy_block_has_a_label_and_no_other(
    editing: Editing,
) -> None:
    document = Document(list(range(13)), list(range(100, 130)))
    text = document.prompt + document.answer + [FILL] * (5 + SLACK)
    segment = editing_segment(
        document, random.Random(1), corruptor(editing), block_size=8, width=1000
    )
    assert segment.ids[:40] == text[:40]
    assert segment.stream == [0] * 40 + [1] * 40 + [2] * 40
    assert segment.positions[40:] == list(range(8, 48)) * 2
    assert segment.ids[40:45] == segment.ids[80:85] == text[8:13]
    for at, (stream, position) in enumerate(zip(segment.stream, segment.positions, strict=True)):
        generated = stream > 0 and position >= 13
        assert (segment.labels[at] != IGNORE) == generated
        assert (segment.weight[at] > 0) == generated
    for block in segment.blocks:
        span = slice(block.at, block.at + block.size)
        first = segment.positions[block.at]
        assert list(block.truth) == text[first : first + block.size + SLACK]
        assert segment.labels[span] == editing.labels(segment.ids[span], block.truth)
    assert sum(block.size for block in segment.blocks) == 2 * 35
    narrow = editing_segment(
        document, random.Random(1), corruptor(editing), block_size=8, width=100
    )
    assert len(narrow.ids) == 96


def packed_batch(editing: Editing, chosen: Corruptor) -> Batch:
    rng = random.Random(3)
    tokenizer = train_tokenizer(samples=500)
    stream = batches.Documents(tokenizer, rng, dict.fromkeys(tasks.FAMILIES, 1.0), 0.0)
    segments = (
        editing_segment(document, rng, chosen, block_size=32, width=256) for document in stream
    )
    packed, count = batches.pack(segments, rows=2, width=256)
    return batches.collate(packed, count, width=256, pad_id=editing.fill_id, block_size=32)


def test_planted_tokens_are_the_models_own_and_labels_follow_them() -> None:
    tokenizer = train_tokenizer(samples=500)
    add_edit_tokens(tokenizer)
    config = nano_config(tokenizer, "levenshtein")
    model = initialise(config, seed=1).eval()
    mask, fill = config["mask_token_id"], config["pad_token_id"]
    editing = Editing(mask, fill, config["delete_token_id"], config["split_token_id"])
    digits = tuple(token_id(tokenizer, digit) for digit in "0123456789")
    chosen = Corruptor(editing, digits, vocabulary=fill)
    batch, before = packed_batch(editing, chosen), packed_batch(editing, chosen)
    plant_own_tokens(model, batch, editing, random.Random(0), share=0.0)
    assert torch.equal(batch.ids, before.ids)
    plant_own_tokens(model, batch, editing, random.Random(0), share=1.0)
    assert not torch.equal(batch.ids, before.ids)
    actions = torch.tensor([editing.delete_id, editing.split_id])
    assert not torch.isin(batch.ids, actions).any()
    for block in batch.blocks:
        span = (block.row, slice(block.at, block.at + block.size))
        ids, labels = batch.ids[span].tolist(), batch.labels[span].tolist()
        assert labels == editing.labels(ids, block.truth)
        assert batch.weight[span].tolist() == pytest.approx(editing.weights(ids, labels))


def test_a_planted_step_is_one_of_the_decoder() -> None:
    block, tokens = [1, 2, MASK, MASK, 5], [SPLIT, DELETE, 7, 8, 5]
    p = [0.1, 0.9, 0.6, 0.4, 0.9]
    assert MOVING.step(block, tokens, p, 0.5) == [MASK, 1, 7, MASK, 5]
    assert MOVING.step([1, 2, 3], [DELETE, DELETE, 4], [1.0, 1.0, 1.0], 0.5) == [4, MASK, MASK]
    assert MOVING.step([1, 2, 3], [SPLIT, SPLIT, 3], [1.0, 1.0, 1.0], 0.5) == [MASK, 1, MASK]
    assert PLAIN.fill([1, MASK, MASK], [4, 5, 6], [0.9, 0.9, 0.5], 0.5) == [1, 5, MASK]


def test_groups_number_document_copy_and_block() -> None:
    documents = [Document(list(range(5)), [50, 51, 52]), Document([1], [60, 61])]
    segments = [
        editing_segment(d, random.Random(0), corruptor(PLAIN), block_size=4, width=64)
        for d in documents
    ]
    batch = batches.collate([segments], 2, width=32, pad_id=0, block_size=4)
    keys = [
        (number, kind, position // 4)
        for number, segment in enumerate(segments)
        for kind, position in zip(segment.stream, segment.positions, strict=True)
    ]
    group = batch.group[0].tolist()
    for i, key in enumerate(keys):
        for j, other in enumerate(keys):
            assert (group[i] == group[j]) == (key == other)
    assert not set(group[: len(keys)]) & set(group[len(keys) :])


def test_edit_tokens_come_behind_the_trained_ones_and_are_special() -> None:
    tokenizer = train_tokenizer(samples=500)
    size = tokenizer.get_vocab_size()
    add_edit_tokens(tokenizer)
    add_edit_tokens(tokenizer)
    ids = [token_id(tokenizer, token) for token in (chat.DELETE, chat.SPLIT)]
    assert ids == [size, size + 1]
    assert tokenizer.decode([*ids, token_id(tokenizer, "7")], skip_special_tokens=True) == "7"
    config = nano_config(tokenizer, "levenshtein")
    assert config["vocab_size"] % 64 == 0
    assert config["vocab_size"] > max(ids)
