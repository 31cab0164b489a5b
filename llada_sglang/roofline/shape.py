"""The numbers of a LLaDA2 configuration that decide what a step costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llada_sglang.checkpoint import PUBLISHED_BLOCK_SIZE
from llada_sglang.roofline.gpus import RooflineError
from llada_sglang.weights import SHAPE_DEFAULTS

# LLaDA2.0 and 2.1 as published; keys left out are LLaDA2.0-mini's.
BUILT_IN: dict[str, dict[str, Any]] = {
    "mini": {},
    "flash": {
        "hidden_size": 4096,
        "intermediate_size": 9216,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "moe_intermediate_size": 1024,
    },
}
_TOP_K = 8
_SCALE_BLOCK = 128 * 128  # elements that share a float32 scale in block-wise fp8


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model; counts of elements unless their name says otherwise.

    shared_inner: width of all shared experts together, 0 for none. capacity: experts a block may
    use (LLaDA2.2's expert_capacity), None where it may use any.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dense_layers: int
    dense_inner: int
    experts: int
    top_k: int
    expert_inner: int
    shared_inner: int
    block: int
    capacity: int | None = None
    router_bytes: int = 4
    tied: bool = False

    def __post_init__(self) -> None:
        pool = self.experts if self.capacity is None else min(self.capacity, self.experts)
        if not 1 <= self.top_k <= pool:
            raise RooflineError(
                f"num_experts_per_tok must be in [1, {pool}], got {self.top_k}. Mend config.json."
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the keys of config.json; a missing one counts as LLaDA2.0-mini's value.

        Raises RooflineError for a value that is no positive integer.
        """
        c = {**SHAPE_DEFAULTS, "num_experts_per_tok": _TOP_K, "block_size": PUBLISHED_BLOCK_SIZE}
        c |= {key: value for key, value in config.items() if value is not None}

        def count(key: str, low: int = 1) -> int:
            value = c[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise RooflineError(
                    f"{key} in config.json must be an integer >= {low}, got {value!r}."
                )
            return value

        inner = count("moe_intermediate_size")
        shared = c["moe_shared_expert_intermediate_size"] or inner
        heads = count("num_attention_heads")
        return cls(
            layers=count("num_hidden_layers"),
            hidden=count("hidden_size"),
            heads=heads,
            kv_heads=count("num_key_value_heads"),
            head_dim=c["head_dim"] or count("hidden_size") // heads,
            vocab=count("vocab_size"),
            dense_layers=min(count("first_k_dense_replace", 0), count("num_hidden_layers")),
            dense_inner=count("intermediate_size"),
            experts=count("num_experts"),
            top_k=count("num_experts_per_tok"),
            expert_inner=inner,
            shared_inner=int(shared) * count("num_shared_experts", 0),
            block=count("block_size"),
            capacity=count("expert_capacity") if "expert_capacity" in c else None,
            router_bytes=4 if c.get("router_dtype", "fp32") == "fp32" else 2,
            tied=bool(c["tie_word_embeddings"]),
        )

    def shard(self, tp: int) -> Shard:
        """What one of `tp` tensor-parallel GPUs holds. Raises RooflineError if it cannot be cut."""
        replicated = tp % self.kv_heads == 0 if tp > self.kv_heads else self.kv_heads % tp == 0
        widths = (self.heads, self.dense_inner, self.expert_inner)
        if tp < 1 or not replicated or any(width % tp for width in widths):
            allowed = [str(n) for n in (1, 2, 4, 8, 16) if n != tp and self._divides(n)]
            raise RooflineError(
                f"--tp must divide {self.heads} heads, {self.kv_heads} KV heads (or be a multiple "
                f"of them) and an expert width of {self.expert_inner}, got {tp}. "
                f"These do: {', '.join(allowed)}."
            )
        return Shard(self, tp)

    def _divides(self, tp: int) -> bool:
        fits_kv = self.kv_heads % tp == 0 or tp % self.kv_heads == 0
        return fits_kv and not any(
            w % tp for w in (self.heads, self.dense_inner, self.expert_inner)
        )

    def experts_touched(self, rows: float) -> float:
        """Expected number of distinct experts of one layer that `rows` block rows use.

        Every token draws top_k of E experts, all sets equally likely, tokens independent. An
        expert is missed by one token with probability 1 - k/E, so E (1 - (1 - k/E)^tokens) are
        touched; routing by groups leaves that as it is, as it prefers no expert. With a capacity of
        C, a block first draws C experts and its tokens k of those: it uses a given expert with
        probability q = C/E (1 - (1 - k/C)^block), and rows use E (1 - (1 - q)^rows).
        Real routing is more uneven, so it touches fewer: this is an upper estimate.
        """
        pool = min(self.capacity or self.experts, self.experts)
        in_block = pool / self.experts * (1 - (1 - self.top_k / pool) ** self.block)
        if pool == self.experts:
            return self.experts * (1 - (1 - self.top_k / pool) ** (self.block * rows))
        return self.experts * (1 - (1 - in_block) ** rows)


@dataclass(frozen=True, slots=True)
class Shard:
    """Elements one GPU of `tp` holds. Experts are cut in width, the router and few KV heads not."""

    shape: Shape
    tp: int

    @property
    def kv_heads(self) -> int:
        return max(1, self.shape.kv_heads // self.tp)

    @property
    def heads(self) -> int:
        return self.shape.heads // self.tp

    @property
    def moe_layers(self) -> int:
        return self.shape.layers - self.shape.dense_layers

    @property
    def attention(self) -> int:
        """Both projections, all layers."""
        s = self.shape
        per_layer = s.hidden * s.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return s.layers * per_layer

    @property
    def expert(self) -> float:
        """Gate, up and down of one expert of one layer."""
        return 3 * self.shape.hidden * self.shape.expert_inner / self.tp

    @property
    def shared(self) -> float:
        """The shared experts of all layers."""
        return self.moe_layers * 3 * self.shape.hidden * self.shape.shared_inner / self.tp

    @property
    def dense(self) -> float:
        """The feed-forward of the first layers, which have no experts."""
        return self.shape.dense_layers * 3 * self.shape.hidden * self.shape.dense_inner / self.tp

    @property
    def router(self) -> int:
        """The gates of all layers."""
        return self.moe_layers * self.shape.hidden * self.shape.experts

    @property
    def head(self) -> float:
        return self.shape.vocab * self.shape.hidden / self.tp

    def weight_bytes(self, linear_bytes: float) -> float:
        """Bytes of all weights. linear_bytes: per element of what is quantised."""
        s = self.shape
        experts = self.moe_layers * s.experts * self.expert
        quantised = self.attention + experts + self.shared + self.dense
        vocabulary = self.head * (1 if s.tied else 2)
        return quantised * linear_bytes + self.router * s.router_bytes + vocabulary * 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, all layers, bf16."""
        return 2 * self.shape.layers * self.kv_heads * self.shape.head_dim * 2


def linear_bytes(dtype: str) -> float:
    """Bytes per element of a linear layer. fp8 carries a float32 scale per block of 128 x 128.

    Embedding, head and KV stay bf16 and the router as it is, as SGLang's fp8 does.
    """
    return {"bf16": 2.0, "fp8": 1 + 4 / _SCALE_BLOCK}[dtype]
