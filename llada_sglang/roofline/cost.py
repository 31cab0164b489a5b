"""Bytes, operations and the least time of one forward of block rows, part by part.

A part takes the longer of its bytes at the memory's bandwidth and its operations at peak; parts
follow one another. Left out, so that this is a floor: norms, activations and logits (a kernel could
keep them on the chip), kernel launches, latency of the links, everything the host does.

LLaDA2.0-mini in bf16, one row: 256 (1 - (1 - 8/256)^32) = 163.3 experts of 19 layers are touched,
6.29 MB each: 19.52 GB. With attention projections (0.42 GB) and head (0.64 GB) that is 20.6 GB,
4.8 ms at 4.3 TB/s; 32 rows touch all 256: 31.7 GB. These three parts are `core_weight_bytes`.
All weights add the shared expert (0.12 GB), the dense first layer (0.06 GB) and the router in
float32 (0.04 GB): 20.8 and 31.9 GB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llada_sglang.roofline.gpus import Gpu, RooflineError
from llada_sglang.roofline.shape import Shape, Shard, linear_bytes

MEMORY, COMPUTE, LINK = "memory", "compute", "link"
_CORE = ("attention projections", "routed experts", "lm_head")
_USABLE = 0.9  # of a GPU's memory; the rest is for graphs, activations and the CUDA context
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a step on one GPU. Bytes and operations; seconds: at least. bound: by what."""

    name: str
    weight_bytes: float
    kv_bytes: float
    flops: float
    seconds: float
    bound: str


@dataclass(frozen=True, slots=True)
class Step:
    """One forward: its parts, and the expected number of distinct experts per layer."""

    parts: tuple[Part, ...]
    experts_touched: float

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def weight_bytes(self) -> float:
        return sum(part.weight_bytes for part in self.parts)

    @property
    def kv_bytes(self) -> float:
        return sum(part.kv_bytes for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def core_weight_bytes(self) -> float:
        """Attention projections, routed experts and head: what most of a step reads."""
        return sum(part.weight_bytes for part in self.parts if part.name in _CORE)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Requests decoding together. seconds: mean of a step. masked: positions per request."""

    tpf: float
    masked: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU. pool_tokens: KV tokens that find room beside the weights."""

    weight_bytes: float
    kv_bytes_per_token: int
    rows_kv_bytes: float
    gpu_bytes: float
    pool_tokens: int

    @property
    def fits(self) -> bool:
        return self.weight_bytes + self.rows_kv_bytes <= _USABLE * self.gpu_bytes


@dataclass(frozen=True, slots=True)
class Setup:
    """What is computed on what. kv_len: tokens of prefix each row reads. tp: GPUs.

    dtype: `bf16`, or `fp8` for the linear layers.
    """

    shape: Shape
    gpu: Gpu
    tp: int = 1
    kv_len: int = 1024
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.kv_len < 0:
            raise RooflineError(f"--kv-len must be at least 0 tokens, got {self.kv_len}.")
        if not (math.isfinite(self.gpu.bandwidth) and self.gpu.bandwidth > 0):
            given = self.gpu.bandwidth / 1e12
            raise RooflineError(f"--bandwidth must be above 0 TB/s, got {given:g}.")
        self.shape.shard(self.tp)

    def step(self, rows: int, masked: float | None = None) -> Step:
        """One forward of `rows` block rows, `masked` positions of all rows going to the head.

        masked: by default all, as in the first step of a block.
        """
        if rows < 1:
            raise RooflineError(f"--rows must be at least 1 block row, got {rows}.")
        positions = rows * self.shape.block
        masked = positions if masked is None else masked
        if not 0 <= masked <= positions:
            raise RooflineError(
                f"masked positions must be in [0, {positions}], the tokens of all rows, "
                f"got {masked:g}."
            )
        touched = self.shape.experts_touched(rows)
        return Step(tuple(self._parts(rows, masked, touched)), touched)

    def predict(self, requests: int, tpf: float) -> Prediction:
        """Mean step and output tokens/s of requests that are all decoding; prefill is left out.

        tpf: tokens per forward of one request, so a block takes block / tpf steps and has
        (block + tpf) / 2 masked positions on average. Blocks end at any time: in a step each
        request brings, with probability tpf / block, also the row that persists its last block.
        """
        block = self.shape.block
        if not 1 <= tpf <= block:
            raise RooflineError(
                f"--tpf must be in [1, {block}] tokens per forward, the block size, got {tpf:g}."
            )
        masked = (block + tpf) / 2
        seconds = sum(
            probability * self.step(requests + commits, requests * masked).seconds
            for commits, probability in _binomial(requests, tpf / block)
        )
        return Prediction(tpf, masked, seconds, requests * tpf / seconds)

    def memory(self, rows: int) -> Memory:
        """What one GPU has to hold for `rows` requests at kv_len."""
        shard = self.shape.shard(self.tp)
        weights, per_token = shard.weight_bytes(linear_bytes(self.dtype)), shard.kv_bytes_per_token
        room = max(0.0, _USABLE * self.gpu.memory - weights)
        return Memory(
            weight_bytes=weights,
            kv_bytes_per_token=per_token,
            rows_kv_bytes=rows * (self.kv_len + self.shape.block) * per_token,
            gpu_bytes=self.gpu.memory,
            pool_tokens=int(room // per_token),
        )

    def _parts(self, rows: int, masked: float, touched: float) -> Iterator[Part]:
        s, shard = self.shape, self.shape.shard(self.tp)
        tokens = rows * s.block
        wide = linear_bytes(self.dtype)
        linear = self.gpu.fp8 if self.dtype == "fp8" else self.gpu.bf16
        gate = self.gpu.fp32 if s.router_bytes == 4 else self.gpu.bf16
        kv, head_width = shard.kv_bytes_per_token, shard.heads * s.head_dim

        yield self._part("embedding", tokens * s.hidden * 2 / self.tp, 0, 0, linear)
        yield self._part(
            "attention projections", shard.attention * wide, 0, 2 * tokens * shard.attention, linear
        )
        yield self._part(
            "attention over KV",
            0,
            rows * self.kv_len * kv,
            4 * s.layers * tokens * (self.kv_len + s.block) * head_width,
            self.gpu.bf16,
        )
        yield self._part("KV write", 0, tokens * kv, 0, linear)
        yield self._part(
            "router", shard.router * s.router_bytes, 0, 2 * tokens * shard.router, gate
        )
        yield self._part(
            "routed experts",
            shard.moe_layers * touched * shard.expert * wide,
            0,
            2 * tokens * s.top_k * shard.moe_layers * shard.expert,
            linear,
        )
        yield self._part("shared expert", shard.shared * wide, 0, 2 * tokens * shard.shared, linear)
        yield self._part(
            "dense first layers", shard.dense * wide, 0, 2 * tokens * shard.dense, linear
        )
        head_bytes = shard.head * 2 if masked > 0 else 0
        yield self._part("lm_head", head_bytes, 0, 2 * masked * shard.head, self.gpu.bf16)
        if self.tp > 1:
            yield Part("all-reduce", 0, 0, 0, self._link_bytes(tokens) / self.gpu.link, LINK)

    def _part(
        self, name: str, weight_bytes: float, kv_bytes: float, flops: float, peak: float
    ) -> Part:
        memory = (weight_bytes + kv_bytes) / self.gpu.bandwidth
        compute = flops / peak
        bound = MEMORY if memory >= compute else COMPUTE
        return Part(name, weight_bytes, kv_bytes, flops, max(memory, compute), bound)

    def _link_bytes(self, tokens: int) -> float:
        """Bytes a GPU sends: hidden states in bf16, reduced after the embedding and twice a layer.

        A ring sends 2 (tp - 1) / tp of what is reduced.
        """
        reduced = (2 * self.shape.layers + 1) * tokens * self.shape.hidden * 2
        return reduced * 2 * (self.tp - 1) / self.tp


def least_tp(setup: Setup) -> int | None:
    """The smallest number of GPUs, up to 16, whose memory holds the weights; None if none does."""
    for tp in (1, 2, 4, 8, 16):
        try:
            shard: Shard = setup.shape.shard(tp)
        except RooflineError:
            continue
        if shard.weight_bytes(linear_bytes(setup.dtype)) < _USABLE * setup.gpu.memory:
            return tp
    return None


def _binomial(trials: int, chance: float) -> Iterator[tuple[int, float]]:
    """Successes with their probability, the negligible left out."""
    if chance >= 1:
        yield trials, 1.0
        return
    for count in range(trials + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        logarithm = ways + count * math.log(chance) + (trials - count) * math.log1p(-chance)
        if (probability := math.exp(logarithm)) > _NEGLIGIBLE:
            yield count, probability
