"""Model and configuration classes registered over the host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "LLaDA2MoeModelLM"


def register() -> None:
    """Make this process build LLaDA2 checkpoints from this package's classes, never remote code.

    Safe to call again. Raises RuntimeError when the host did not take the model class, which it
    would otherwise only log.
    """
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY
    from transformers import AutoConfig

    from llada_sglang.models.config import LLaDA2MoeConfig

    # transformers prefers a registered class over a checkpoint's auto_map, even with
    # --trust-remote-code, as long as the class lives outside of transformers.
    AutoConfig.register(LLaDA2MoeConfig.model_type, LLaDA2MoeConfig, exist_ok=True)
    _CONFIG_REGISTRY[LLaDA2MoeConfig.model_type] = LLaDA2MoeConfig
    if not _serves_ours(ModelRegistry.models):
        ModelRegistry.register(__name__, overwrite=True, strict=True)
    if not _serves_ours(ModelRegistry.models):
        raise RuntimeError(f"SGLang did not take {ARCHITECTURE} of {__name__}")


def _serves_ours(models: Mapping[str, Any]) -> bool:
    return getattr(models.get(ARCHITECTURE), "__module__", None) == f"{__name__}.llada2"
