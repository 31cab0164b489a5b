"""Packed training batches: autoregressive, and block diffusion over [clean | noisy] documents.

A document is a prompt and its answer; only answer tokens carry loss. Documents are packed into
rows of fixed width and never see each other. For block diffusion a document is laid out as its
clean blocks followed by noisy copies of the blocks that hold answer tokens (BD3-LM, arXiv
2503.09573, section 3.2): a noisy block sees the clean blocks before it and itself, a clean block
the clean blocks up to itself. The clean copy of the last block is never seen, so it is left out.
Two noisy copies share the clean part: a sample and its complement (LLaDA2.0 report, complementary
masking), or the text cut off at two points.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llada_sglang.nano import chat, tasks
from llada_sglang.nano.tokenizer import token_id

IGNORE = -100

FRESH_SHARE = 0.6
"""Of blocks that are looked ahead to, so many are masked whole, as such a block begins."""


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids of a prompt and of its answer; the answer ends with <|role_end|>."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class NoisyBlock:
    """Where the generated part of a noisy block stands, and its clean text.

    Tokens [at, at + size) of a batch's row, or of a segment. truth: at least `size` tokens.
    """

    row: int
    at: int
    size: int
    truth: tuple[int, ...]


@dataclass(slots=True)
class Segment:
    """Packed tokens of one document; every list has one entry per token.

    `stream` is 0 for clean tokens and the copy's number for noisy ones; a label of IGNORE carries
    no loss; `weight` scales the loss of a labelled token. `blocks` is for `nano.corruption`.
    `ahead` marks tokens whose block sees the noisy copy of the block before it instead of the clean
    one, as lookahead decodes it; empty where there are none.
    """

    ids: list[int]
    positions: list[int]
    stream: list[int]
    labels: list[int]
    weight: list[float]
    blocks: list[NoisyBlock] = field(default_factory=list)
    ahead: list[bool] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors [rows, width]; mask is bool [rows, width, width].

    group numbers the blocks of a row: one document, one copy, one block (causal: one token).
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    weight: Tensor
    mask: Tensor
    group: Tensor
    documents: int
    blocks: tuple[NoisyBlock, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.ids.to(device),
            self.positions.to(device),
            self.labels.to(device),
            self.weight.to(device),
            self.mask.to(device),
            self.group.to(device),
            self.documents,
            self.blocks,
        )


class Documents:
    """Seeded, endless stream of tokenized training documents."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rng: random.Random,
        weights: dict[str, float],
        history_share: float,
    ) -> None:
        self._examples = tasks.stream(rng, weights, history_share=history_share)
        self._tokenizer = tokenizer
        self._role_end = token_id(tokenizer, chat.ROLE_END)

    def __iter__(self) -> Iterator[Document]:
        for example in self._examples:
            prompt = self._tokenizer.encode(chat.render_prompt(example.messages, example.tools))
            answer = self._tokenizer.encode(example.answer)
            yield Document(prompt.ids, [*answer.ids, self._role_end])


def autoregressive_segment(document: Document) -> Segment:
    """Next-token prediction: the label of a position is the id that follows it."""
    ids = document.prompt + document.answer
    labels = [IGNORE] * (len(document.prompt) - 1) + document.answer
    ids = ids[:-1]
    size = len(ids)
    return Segment(ids, list(range(size)), [0] * size, labels, [1.0] * size)


def diffusion_segment(
    document: Document,
    rng: random.Random,
    *,
    block_size: int,
    mask_id: int,
    fill_id: int,
    fill_weight: float,
    width: int,
    ahead: float = 0.0,
) -> Segment:
    """Clean blocks, a noisy copy and, where it fits into `width`, a second one.

    ahead: share of documents in which every second generated block is looked ahead to: it sees the
    noisy block before it (MultiBD, arXiv 2606.29215).
    """
    start, block = len(document.prompt), block_size
    ids = document.prompt + document.answer
    tail = -len(ids) % block
    weights = [0.0] * start + [1.0] * len(document.answer) + [fill_weight] * tail
    ids = ids + [fill_id] * tail
    clean = len(ids) - block
    first = start // block
    segment = Segment(
        ids[:clean],
        list(range(clean)),
        [0] * clean,
        [IGNORE] * clean,
        [0.0] * clean,
        ahead=[False] * clean,
    )
    copies = [False] * len(ids), [False] * len(ids)
    # Drawn only where asked for: a recipe without it keeps its sequence of random numbers.
    pairs = ahead > 0.0 and rng.random() < ahead
    offset = rng.randrange(2) if pairs else 0
    for index in range(first, len(ids) // block):
        low, high = max(index * block, start), (index + 1) * block
        answer = min(high, start + len(document.answer)) - low
        noises = _noise(rng, high - low, answer)
        if pairs and (index - first + offset) % 2 and rng.random() < FRESH_SHARE:
            noises = [True] * (high - low), [True] * (high - low)
        for copy, noise in zip(copies, noises, strict=True):
            copy[low:high] = noise
    for number, hidden in enumerate(copies, start=1):
        shown: int | None = None
        for index in range(first, len(ids) // block):
            span = range(index * block, (index + 1) * block)
            if not any(hidden[i] for i in span):
                continue
            if number == 2 and len(segment.ids) + block > width:
                break
            later = pairs and (index - first + offset) % 2 == 1 and shown == index - 1
            segment.ahead += [later] * block
            shown = index
            segment.ids += [mask_id if hidden[i] else ids[i] for i in span]
            segment.positions += span
            segment.stream += [number] * block
            segment.labels += [ids[i] if hidden[i] else IGNORE for i in span]
            segment.weight += [weights[i] for i in span]
    return segment


def _noise(rng: random.Random, size: int, answer: int) -> tuple[list[bool], list[bool]]:
    """Which of a block's `size` positions are masked in either copy; the first `answer` are text.

    Half the draws mask all from some point of the text on, a different one in either copy: where
    nothing is sure, decoding goes from left to right. A seventh mask everything, as the first step
    of decoding finds it, in one copy. The rest mask each position with probability t ~ U(0, 1),
    and the second copy is the complement of the first.
    """
    kind = rng.random()
    if kind < 0.15:
        return [True] * size, [False] * size
    if kind < 0.65:
        cuts = (rng.randrange(max(1, answer)), rng.randrange(max(1, answer)))
        first, second = ([i >= cut for i in range(size)] for cut in cuts)
        return first, second
    level = rng.random()
    first = [rng.random() < level for _ in range(size)]
    return first, [not hide for hide in first]


def pack(segments: Iterator[Segment], *, rows: int, width: int) -> tuple[list[list[Segment]], int]:
    """Fill `rows` rows of at most `width` tokens; returns them and how many segments they hold.

    Draws about as many tokens as fit, then places the largest first; a segment wider than a row is
    not drawn, and the few that find no room are dropped.
    """
    pool: list[Segment] = []
    tokens = 0
    while tokens < 0.97 * rows * width:
        segment = next(segments)
        if len(segment.ids) <= width:
            pool.append(segment)
            tokens += len(segment.ids)
    packed: list[list[Segment]] = [[] for _ in range(rows)]
    room = [width] * rows
    for segment in sorted(pool, key=lambda s: len(s.ids), reverse=True):
        size = len(segment.ids)
        place = next((r for r in range(rows) if room[r] >= size), None)
        if place is not None:
            packed[place].append(segment)
            room[place] -= size
    return packed, sum(map(len, packed))


def collate(
    packed: list[list[Segment]], count: int, *, width: int, pad_id: int, block_size: int | None
) -> Batch:
    """Tensors and the attention mask of packed rows; block_size None means causal."""
    rows = len(packed)
    ids = torch.full((rows, width), pad_id)
    positions, stream = torch.zeros_like(ids), torch.zeros_like(ids)
    labels = torch.full((rows, width), IGNORE)
    document = torch.full((rows, width), -1)
    weight = torch.zeros(rows, width)
    ahead = torch.zeros(rows, width, dtype=torch.bool)
    blocks: list[NoisyBlock] = []
    for r, segments in enumerate(packed):
        at = 0
        for number, segment in enumerate(segments):
            span = slice(at, at + len(segment.ids))
            ids[r, span] = torch.tensor(segment.ids)
            positions[r, span] = torch.tensor(segment.positions)
            stream[r, span] = torch.tensor(segment.stream)
            labels[r, span] = torch.tensor(segment.labels)
            weight[r, span] = torch.tensor(segment.weight)
            document[r, span] = number
            if segment.ahead:
                ahead[r, span] = torch.tensor(segment.ahead)
            blocks += [replace(block, row=r, at=at + block.at) for block in segment.blocks]
            at = span.stop
    same = document[:, :, None] == document[:, None, :]
    if block_size is None:
        order = torch.arange(width)
        mask = same & (order[:, None] >= order[None, :])
        group = order.expand(rows, -1)
    else:
        block = positions // block_size
        query, key = block[:, :, None], block[:, None, :]
        later = ahead[:, :, None]
        from_clean = (stream == 0)[:, None, :] & (key < query - later.long())
        own = stream[:, :, None] == stream[:, None, :]
        mask = same & (from_clean | (own & ((key == query) | (later & (key == query - 1)))))
        copy = (document + 1) * (int(stream.max()) + 1) + stream
        group = copy * (int(block.max()) + 1) + block
    return Batch(ids, positions, labels, weight, mask, group, count, tuple(blocks))
