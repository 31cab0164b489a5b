"""The LLaDA2 checkpoints there are, and what this package does with each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One line of published checkpoints. decoding: what ours are decoded with."""

    name: str
    supported: bool
    decoding: str


FAMILIES: tuple[Family, ...] = (
    Family("LLaDA2.0-mini", True, "threshold"),
    Family("LLaDA2.0-flash", True, "threshold"),
    Family("LLaDA2.0-mini-CAP, -flash-CAP", True, "threshold"),
    Family("LLaDA2.1-mini, -flash", True, "edit, by the name of the directory or hub id"),
    Family("LLaDA2.2-flash", True, "levenshtein"),
)

_SIZES = {(20, 2048): "mini", (32, 4096): "flash"}


def describe(config: Mapping[str, Any]) -> str:
    """Name a LLaDA2 config.json as far as it can be told: 2.0, CAP and 2.1 have the same keys."""
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    size = _SIZES.get((layers, hidden))  # type: ignore[arg-type]
    if is_llada22(config):
        return f"LLaDA2.2 {size or 'of its own size'}"
    if size is None:
        return f"LLaDA2 of its own size, {layers} layers of width {hidden}"
    return f"LLaDA2.0, LLaDA2.0-CAP or LLaDA2.1, {size}"


def is_llada22(config: Mapping[str, Any]) -> bool:
    """Whether a config.json asks for the block routing that LLaDA2.2 came with."""
    return config.get("expert_capacity") is not None
