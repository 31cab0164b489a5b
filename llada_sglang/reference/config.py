"""The shape of a LLaDA2 MoE model, read from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llada_sglang.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Every number the forward pass needs; field names are those of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    moe_intermediate_size: int
    moe_shared_expert_intermediate_size: int
    first_k_dense_replace: int
    expert_capacity: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the shape and refuse what this reference does not compute.

        Raises CheckpointError naming the key, its value and what is supported.
        Source: sglang/srt/models/llada2.py (0.5.23), which reads the same keys.
        """
        fixed: dict[str, tuple[Any, ...]] = {
            "hidden_act": ("silu",),
            "use_bias": (False,),
            "use_qkv_bias": (False,),
            "use_qk_norm": (True,),
            "tie_word_embeddings": (False,),
            "score_function": ("sigmoid",),
            "norm_topk_prob": (True,),
            "moe_router_enable_expert_bias": (True,),
            "rope_scaling": (None,),
        }
        for key, allowed in fixed.items():
            if key in config and config[key] not in allowed:
                raise CheckpointError(
                    f"config.json: {key}={config[key]!r} is not computed by the reference; "
                    f"it knows {allowed[0]!r}"
                )
        missing = [key for key in _REQUIRED if config.get(key) is None]
        if missing:
            raise CheckpointError(f"config.json: missing {', '.join(missing)}")
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        if "partial_rotary_factor" in config:
            rotary_dim = int(head_dim * config["partial_rotary_factor"])
        else:
            rotary_dim = int(config.get("rotary_dim", head_dim))
        moe_width = int(config["moe_intermediate_size"])
        top_k, experts = int(config["num_experts_per_tok"]), int(config["num_experts"])
        capacity = config.get("expert_capacity")
        if capacity is not None and not top_k <= int(capacity) <= experts:
            raise CheckpointError(
                f"config.json: expert_capacity must be in [num_experts_per_tok, num_experts] = "
                f"[{top_k}, {experts}], got {capacity!r}"
            )
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config["num_key_value_heads"]),
            head_dim=head_dim,
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(_rope_theta(config)),
            rotary_dim=rotary_dim,
            num_experts=experts,
            num_experts_per_tok=top_k,
            num_shared_experts=int(config.get("num_shared_experts") or 0),
            n_group=int(config.get("n_group") or 1),
            topk_group=int(config.get("topk_group") or 1),
            routed_scaling_factor=float(config.get("routed_scaling_factor", 1.0)),
            moe_intermediate_size=moe_width,
            moe_shared_expert_intermediate_size=int(
                config.get("moe_shared_expert_intermediate_size") or moe_width
            ),
            first_k_dense_replace=int(config["first_k_dense_replace"]),
            expert_capacity=None if capacity is None else int(capacity),
        )


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
)


def _rope_theta(config: Mapping[str, Any]) -> float:
    if config.get("rope_theta") is not None:
        return float(config["rope_theta"])
    parameters = config.get("rope_parameters") or {}
    if "rope_theta" not in parameters:
        raise CheckpointError("config.json: missing rope_theta")
    return float(parameters["rope_theta"])
