"""The least time of what each engine does, by the cost model: its forwards and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.engines import OURS
from benchmarks.gpu.patterns import BLOCK, Pattern
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.gpus import Gpu
from llada_sglang.roofline.shape import Shape

Forward = tuple[int, int, float, int]
"""Rows, tokens of prefix each of them reads, masked positions, and how many such forwards."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds at no overhead. bandwidth: bytes/s, measured on the device."""

    shape: Shape
    gpu: Gpu
    bandwidth: float

    def step(self, rows: int, kv_len: int) -> float:
        """One forward where each step resolves one position, so that half are masked on average."""
        return self._seconds((rows, kv_len, rows * (BLOCK + 1) / 2, 1))

    def wave(self, engine: str, requests: int, prompt: int, output: int, steps: Pattern) -> float:
        """`requests` at once, from their arrival to the last token; prompts are whole blocks."""
        forwards = _ours if engine == OURS else _stock
        return sum(map(self._seconds, forwards(requests, prompt, output, steps)))

    def _seconds(self, forward: Forward) -> float:
        rows, kv_len, masked, times = forward
        setup = Setup(self.shape, replace(self.gpu, bandwidth=self.bandwidth), kv_len=kv_len)
        return times * setup.step(rows, masked).seconds


def _stock(requests: int, prompt: int, output: int, pattern: Pattern) -> Iterator[Forward]:
    """One forward per block of the prompts, S + 1 per block of output, logits of all positions."""
    every = requests * BLOCK
    yield requests, prompt // 2, every, prompt // BLOCK
    yield requests, prompt + output // 2, every, output // BLOCK * (pattern.steps + 1)


def _ours(requests: int, prompt: int, output: int, pattern: Pattern) -> Iterator[Forward]:
    """S forwards per block of output: the first of all carries the prompts, the first of each
    later block the rows that persist the block before it. Logits of masked positions."""
    left = [BLOCK - sum(pattern.counts[:step]) for step in range(pattern.steps)]
    blocks, kv_len = output // BLOCK, prompt + output // 2
    yield requests * (prompt // BLOCK + 1), prompt // 2, requests * left[0], 1
    yield 2 * requests, kv_len, requests * left[0], blocks - 1
    for masked in left[1:]:
        yield requests, kv_len, requests * masked, blocks
