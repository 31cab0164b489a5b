"""How many tokens and requests a machine can hold, from its memory and the model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GIB = 1 << 30
MAX_CPU_TOKENS = 262_144
MAX_CPU_KV_BYTES = GIB
TOKENS_PER_REQUEST = 4096


def kv_bytes_per_token(config: Mapping[str, Any], element_bytes: int) -> int:
    """Bytes of keys and values of one token over all layers and ranks.

    config: the checkpoint's config.json. element_bytes: size of one stored element.
    """
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * kv_heads * head_dim * element_bytes)


def cpu_pool_tokens(
    bytes_per_token: int, available_bytes: int, context_length: int, block: int
) -> int:
    """Tokens for the KV pool of a CPU server, a multiple of `block`.

    At most MAX_CPU_TOKENS and about MAX_CPU_KV_BYTES, but room for one whole context where a
    quarter of the available memory holds it; never less than two blocks.
    """
    wanted = max(MAX_CPU_KV_BYTES // bytes_per_token, min(context_length, MAX_CPU_TOKENS))
    tokens = min(MAX_CPU_TOKENS, wanted, available_bytes // 4 // bytes_per_token)
    return max(2 * block, tokens // block * block)


def accelerator_pool_tokens(
    bytes_per_token: int, device_bytes: int, weight_bytes: int, devices: int
) -> int:
    """Rough number of tokens that fit beside the weights, 80 % of all devices being used."""
    return max(0, int(0.8 * device_bytes * devices) - weight_bytes) // bytes_per_token


def running_requests(pool_tokens: int, *, least: int, most: int) -> int:
    """Requests to run at once: as many as find TOKENS_PER_REQUEST tokens each, within bounds."""
    return max(least, min(most, pool_tokens // TOKENS_PER_REQUEST))


def weight_bytes(directory: Path) -> int:
    """Size of the safetensors files of a checkpoint directory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
