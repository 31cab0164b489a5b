"""Packed projections, and pools that their keys and values go to.

Used through Triton's interpreter by the unit tests and on the device by the GPU tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sglang.kernels.rotary import (
    HeadShape,
    KVTarget,
    QueryKeyNorm,
    rotated_and_stored,
)

Result = tuple[Tensor, Tensor, Tensor]
MINI = HeadShape(heads=16, kv_heads=4, head_dim=128, rotary_dim=64)
FLASH_OF_4 = HeadShape(heads=8, kv_heads=1, head_dim=128, rotary_dim=64)
NANO = HeadShape(heads=4, kv_heads=2, head_dim=64, rotary_dim=32)
ODD = HeadShape(heads=6, kv_heads=3, head_dim=48, rotary_dim=16)
WHOLE = HeadShape(heads=2, kv_heads=2, head_dim=32, rotary_dim=32)
ANGLES = 4096
POOL = 80  # slots, of which the first pads


@dataclass(frozen=True, slots=True)
class Case:
    """One layer of one forward. scales: of keys and values; norm: whether heads are normalised.

    pool_slots: how many the pool has, more than memory where most are never touched.
    """

    shape: HeadShape
    tokens: int = 33
    dtype: torch.dtype = torch.bfloat16
    pool: torch.dtype = torch.bfloat16
    norm: bool = True
    scales: tuple[float, float] | None = None
    loud: float = 1.0
    indices: torch.dtype = torch.int64
    pool_slots: int = POOL

    @property
    def slots(self) -> Tensor:
        """Every token's slot: a permutation, and some that are none."""
        order = torch.randperm(POOL - 1, generator=torch.Generator().manual_seed(5)) + 1
        slots = order[: self.tokens] + (self.pool_slots - POOL)
        slots[1::7], slots[3::7], slots[5::14] = 0, -3, self.pool_slots
        return slots

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, KVTarget, QueryKeyNorm | None]:
        """qkv, positions, cos_sin, target and norm."""
        draw = torch.Generator().manual_seed(7)
        s = self.shape
        # Rows of a wider matrix, as where a projection is padded.
        qkv = torch.randn(self.tokens, s.packed + 16, generator=draw) * self.loud
        positions = torch.randint(0, ANGLES, (self.tokens,), generator=draw)
        frequency = 600000.0 ** (-torch.arange(0, s.rotary_dim, 2) / s.rotary_dim)
        angle = torch.arange(ANGLES)[:, None] * frequency
        size = (self.pool_slots, s.kv_heads, s.head_dim)
        if self.pool_slots == POOL:
            pools = [torch.full(size, 7.0).to(self.pool).to(device) for _ in range(2)]
        else:
            pools = [torch.empty(size, dtype=self.pool, device=device) for _ in range(2)]
        scales = [None, None]
        if self.scales is not None:
            scales = [torch.tensor([x], device=device) for x in self.scales]
        weights = [1 + 0.2 * torch.randn(s.head_dim, generator=draw) for _ in range(2)]
        norm = QueryKeyNorm(*(w.to(self.dtype).to(device) for w in weights), eps=1e-6)
        return (
            qkv.to(self.dtype).to(device)[:, : s.packed],
            positions.to(self.indices).to(device),
            torch.cat([angle.cos(), angle.sin()], dim=1).to(device),
            KVTarget(*pools, self.slots.to(self.indices).to(device), *scales),
            norm if self.norm else None,
        )


def fused(case: Case, device: str) -> Result:
    """Queries, and the last slots of both pools, as the kernel leaves them."""
    from llada_sglang.kernels.rotary_triton import fused_rotate_and_store

    return _run(case, device, fused_rotate_and_store)


def twin(case: Case) -> Result:
    """Queries, and the last slots of both pools, as the torch twin leaves them."""
    return _run(case, "cpu", rotated_and_stored)


def _run(case: Case, device: str, kernel: object) -> Result:
    assert callable(kernel)
    qkv, positions, cos_sin, target, norm = case.tensors(device)
    before = qkv.clone()
    queries = kernel(qkv, positions, cos_sin, case.shape, target, norm)
    assert torch.equal(before, qkv), "the projection is only read"
    if case.pool_slots != POOL:  # those that were written; the rest is not even memory
        slots = target.slots.long()
        real = (slots > 0) & (slots < case.pool_slots)
        return (
            queries.cpu(),
            target.keys.view(torch.uint8)[slots[real]].cpu(),
            target.values.view(torch.uint8)[slots[real]].cpu(),
        )
    return queries.cpu(), target.keys.float().cpu(), target.values.float().cpu()


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CASES = {
    "mini": Case(MINI),
    "flash-of-4": Case(FLASH_OF_4),
    "nano-float32": Case(NANO, dtype=FP32, pool=FP32),
    "heads-no-power-of-two": Case(ODD, dtype=FP16, pool=FP16),
    "whole-rotary": Case(WHOLE, dtype=FP32, pool=FP32),
    "without-norm": Case(NANO, norm=False),
    "without-norm-float32": Case(NANO, dtype=FP32, pool=FP32, norm=False),
    "int32-indices": Case(NANO, indices=torch.int32),
    "wider-pool": Case(NANO, pool=FP32, scales=(0.5, 3.0)),
    "narrower-pool": Case(NANO, dtype=FP32, pool=BF16, norm=False),
    "scales-of-a-pool-that-needs-none": Case(NANO, scales=(0.5, 3.0)),
    "e4m3": Case(NANO, pool=E4M3),
    "e4m3-scaled": Case(NANO, pool=E4M3, scales=(0.02, 1.7)),
    "e4m3-overflows": Case(NANO, pool=E4M3, loud=300.0, norm=False),
    "e4m3-subnormal": Case(NANO, pool=E4M3, loud=0.004, norm=False),
    "e4m3-of-float32": Case(NANO, dtype=FP32, pool=E4M3, norm=False, loud=3.0),
    "e5m2": Case(NANO, pool=E5M2, scales=(0.3, 0.7)),
    "e5m2-overflows": Case(NANO, pool=E5M2, loud=4e4, norm=False),
    "e5m2-subnormal": Case(NANO, dtype=FP32, pool=E5M2, loud=2e-5, norm=False),
    "one-token": Case(MINI, tokens=1),
    "no-token": Case(NANO, tokens=0),
    "past-2^31-elements": Case(
        HeadShape(heads=2, kv_heads=1, head_dim=128, rotary_dim=64),
        tokens=9,
        pool=E4M3,
        norm=False,
        pool_slots=(1 << 24) + 2 * POOL,
    ),
}
