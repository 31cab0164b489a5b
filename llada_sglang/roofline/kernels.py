"""The bytes our own kernels have to move, and what a fused head could save at most.

Everything is counted once, also what a later kernel finds in a cache: a floor of the time at the
memory's bandwidth. Below some microseconds the launch is what a kernel costs, whatever it moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from llada_sglang.roofline.gpus import Gpu
from llada_sglang.roofline.shape import Shape

_INDEX, _FLOAT, _MASK = 8, 4, 1


@dataclass(frozen=True, slots=True)
class KernelCost:
    """One launch. read, written: bytes."""

    read: float
    written: float

    @property
    def bytes(self) -> float:
        return self.read + self.written

    def seconds(self, bandwidth: float) -> float:
        """At least, at `bandwidth` bytes/s."""
        return self.bytes / bandwidth


def vocabulary_statistics(positions: int, columns: int, element: int = 2) -> KernelCost:
    """Logits [positions, columns] of `element` bytes to (maximum, token, sum of exp)."""
    return KernelCost(positions * columns * element, positions * (2 * _FLOAT + _INDEX))


def threshold_update(rows: int, block: int, stops: int = 4) -> KernelCost:
    """Canvas, mask, candidate and confidence of every position to canvas, mask and report.

    A row reads its slot, start, least, threshold and ends of text, and `stops` stop ids.
    """
    numbers = 6 * _INDEX + stops * _INDEX
    position = _INDEX + _MASK
    return KernelCost(
        rows * (numbers + block * (position + _INDEX + _FLOAT)),
        rows * (block * position + (block + 1) * _INDEX),
    )


def block_routing(tokens: int, shape: Shape) -> KernelCost:
    """Router logits in float32 to weights and ids; the bias is read once."""
    return KernelCost(
        (tokens + 1) * shape.experts * _FLOAT, tokens * shape.top_k * (_FLOAT + _FLOAT)
    )


def rotate_and_store(
    tokens: int, heads: int, kv_heads: int, head_dim: int, rotary_dim: int, pool: int = 2
) -> KernelCost:
    """A packed bf16 projection to queries, and keys and values in a pool of `pool` bytes.

    A token also reads its angles in float32, its position and its slot.
    """
    packed = (heads + 2 * kv_heads) * head_dim * 2
    return KernelCost(
        tokens * (packed + rotary_dim * _FLOAT + 2 * _INDEX) + 2 * head_dim * 2,
        tokens * (heads * head_dim * 2 + 2 * kv_heads * head_dim * pool),
    )


@dataclass(frozen=True, slots=True)
class HeadFusion:
    """lm_head and statistics, apart and as one kernel; seconds, at least.

    separate: the product writes bf16 logits, and the statistics read them. fused: logits never
    leave the chip. bound: how fast the fused product has to be, as a share of the separate one's
    speed, to be no slower than both.
    """

    separate: float
    fused: float

    @property
    def saved(self) -> float:
        return self.separate - self.fused

    @property
    def bound(self) -> float:
        return self.fused / self.separate


def head_fusion(positions: int, shape: Shape, gpu: Gpu, tp: int = 1) -> HeadFusion:
    """What fusing could save at most for some positions, with both products at peak.

    A separate product hides its writes behind compute where compute is the bound.
    """
    columns = shape.vocab / tp
    moved = 2 * (columns * shape.hidden + positions * shape.hidden)
    logits = 2 * positions * columns
    compute = 2 * positions * columns * shape.hidden / gpu.bf16
    product = max((moved + logits) / gpu.bandwidth, compute)
    return HeadFusion(product + logits / gpu.bandwidth, max(moved / gpu.bandwidth, compute))
