from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from llada_sglang.nano import batches, tasks
from llada_sglang.nano.batches import IGNORE, Document, Segment
from llada_sglang.nano.tokenizer import train_tokenizer

MASK, FILL = 900, 901


def noisy(document: Document, block_size: int, seed: int = 0, width: int = 10_000) -> Segment:
    return batches.diffusion_segment(
        document,
        random.Random(seed),
        block_size=block_size,
        mask_id=MASK,
        fill_id=FILL,
        fill_weight=0.25,
        width=width,
    )


def documents(seed: int) -> Iterator[Document]:
    rng = random.Random(seed)
    while True:
        prompt, answer = rng.randint(1, 50), rng.randint(1, 40)
        yield Document(list(range(prompt)), list(range(100, 100 + answer)))


def test_autoregressive_labels_are_the_following_ids_of_the_answer_only() -> None:
    segment = batches.autoregressive_segment(Document([1, 2, 3], [4, 5]))
    assert segment.ids == [1, 2, 3, 4]
    assert segment.labels == [IGNORE, IGNORE, 4, 5]
    assert segment.positions == [0, 1, 2, 3]


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_the_copies_of_a_block_are_complements_or_two_cuts_or_one_full_mask(
    block_size: int,
) -> None:
    kinds: Counter[str] = Counter()
    for seed, document in enumerate(islice(documents(1), 300)):
        segment = noisy(document, block_size, seed)
        start = len(document.prompt)
        size = -(-(start + len(document.answer)) // block_size) * block_size
        hidden: dict[int, set[int]] = {1: set(), 2: set()}
        for position, stream, label in zip(
            segment.positions, segment.stream, segment.labels, strict=True
        ):
            if label != IGNORE:
                hidden[stream].add(position)
        for low in range(start // block_size * block_size, size, block_size):
            whole = set(range(max(low, start), low + block_size))
            first, second = hidden[1] & whole, hidden[2] & whole
            if first | second == whole and not first & second:
                kinds["complement"] += 1
            else:
                # From some point of the answer on, in either copy.
                for part in (first, second):
                    assert part == set(range(min(part), low + block_size))
                    assert min(part) < start + len(document.answer)
                kinds["cut"] += 1
    assert min(kinds["complement"], kinds["cut"]) > 50


def test_a_noisy_block_shows_prompt_and_unmasked_tokens_as_they_are() -> None:
    document = Document([1, 2, 3, 4, 5], [6, 7, 8, 9])
    for seed in range(20):
        segment = noisy(document, 4, seed)
        truth = [1, 2, 3, 4, 5, 6, 7, 8, 9, FILL, FILL, FILL]
        for token, position, stream, label in zip(
            segment.ids, segment.positions, segment.stream, segment.labels, strict=True
        ):
            if stream == 0:
                assert (token, label) == (truth[position], IGNORE)
                assert position < 8  # the clean copy of the last block is never seen
            elif token == MASK:
                assert label == truth[position]
                assert position >= 5
            else:
                assert (token, label) == (truth[position], IGNORE)
                assert position >= 4


def test_fill_behind_the_answer_is_weighted_down() -> None:
    weights: dict[int, float] = {}
    for seed in range(20):
        segment = noisy(Document([1], [2, 3]), 8, seed)
        for position, weight, label in zip(
            segment.positions, segment.weight, segment.labels, strict=True
        ):
            if label != IGNORE:
                weights[position] = weight
    assert weights == {1: 1.0, 2: 1.0, 3: 0.25, 4: 0.25, 5: 0.25, 6: 0.25, 7: 0.25}


def test_the_complement_is_left_out_rather_than_the_row_overrun() -> None:
    document = Document(list(range(40)), list(range(100, 180)))
    sizes = [len(noisy(document, 32, seed).ids) for seed in range(10)]
    assert max(sizes) > 224
    for seed in range(10):
        short = noisy(document, 32, seed, width=224)
        assert len(short.ids) <= 224
        assert 1 in short.stream


def test_attention_mask_is_block_diffusion_within_a_document_and_nothing_across() -> None:
    block, width, rng = 4, 64, random.Random(5)
    stream = (noisy(d, block, rng.randrange(100)) for d in documents(2))
    packed, count = batches.pack(stream, rows=3, width=width)
    batch = batches.collate(packed, count, width=width, pad_id=FILL, block_size=block)
    for row, segments in enumerate(packed):
        tokens = [
            (number, kind, position // block)
            for number, segment in enumerate(segments)
            for kind, position in zip(segment.stream, segment.positions, strict=True)
        ]
        for i, (document, kind, at) in enumerate(tokens):
            for j, (other, other_kind, other_at) in enumerate(tokens):
                if document != other:
                    expected = False
                elif kind == 0:
                    expected = other_kind == 0 and other_at <= at
                else:
                    expected = (other_kind == kind and other_at == at) or (
                        other_kind == 0 and other_at < at
                    )
                assert bool(batch.mask[row, i, j]) == expected
        assert not batch.mask[row, : len(tokens), len(tokens) :].any()
    assert batch.mask.any(-1).all()  # softmax over nothing is NaN


def test_causal_mask_is_per_document() -> None:
    segments = [batches.autoregressive_segment(Document([1, 2], [3])) for _ in range(2)]
    batch = batches.collate([segments], 2, width=5, pad_id=0, block_size=None)
    assert batch.mask[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_packing_fills_rows_and_skips_what_is_wider_than_a_row() -> None:
    stream = (batches.autoregressive_segment(d) for d in documents(3))
    packed, count = batches.pack(stream, rows=8, width=256)
    sizes = [sum(len(s.ids) for s in row) for row in packed]
    assert max(sizes) <= 256
    assert sum(sizes) > 0.85 * 8 * 256
    assert count == sum(map(len, packed))


def test_documents_of_a_seed_are_always_the_same() -> None:
    tokenizer = train_tokenizer(samples=500)
    weights = dict.fromkeys(tasks.FAMILIES, 1.0)
    first, second = (
        list(islice(batches.Documents(tokenizer, random.Random(7), weights, 0.2), 30))
        for _ in range(2)
    )
    assert first == second
    assert all(d.answer[-1] == tokenizer.token_to_id("<|role_end|>") for d in first)
    assert torch.tensor([len(d.prompt) for d in first]).min() > 10


def test_a_block_looked_ahead_to_sees_the_noisy_one_before_it() -> None:
    block, found = 4, 0
    for seed, document in enumerate(islice(documents(7), 40)):
        segment = batches.diffusion_segment(
            document,
            random.Random(seed),
            block_size=block,
            mask_id=MASK,
            fill_id=FILL,
            fill_weight=0.25,
            width=1000,
            ahead=1.0,
        )
        width = len(segment.ids)
        batch = batches.collate([[segment]], 1, width=width, pad_id=FILL, block_size=block)
        for query in range(width):
            own, number = segment.positions[query] // block, segment.stream[query]
            for key in range(width):
                other, stream = segment.positions[key] // block, segment.stream[key]
                if segment.ahead[query]:
                    found += 1
                    clean, noisy = other < own - 1, own - 1 <= other <= own
                else:
                    clean, noisy = other < own, other == own
                sees = (stream == 0 and clean) or (stream == number and noisy)
                assert bool(batch.mask[0, query, key]) == sees
        shown = {
            (s, p // block) for s, p in zip(segment.stream, segment.positions, strict=True) if s
        }
        for at, later in enumerate(segment.ahead):
            if later:
                before = segment.positions[at] // block - 1
                assert (segment.stream[at], before) in shown
    assert found > 1000


def test_a_recipe_without_lookahead_draws_what_it_always_drew() -> None:
    for seed, document in enumerate(islice(documents(3), 20)):
        assert not any(noisy(document, 16, seed).ahead)
