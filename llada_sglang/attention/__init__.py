"""Block-row attention per backend."""

from __future__ import annotations

from typing import Any

TORCH_BACKEND = "block_row_torch"


def register() -> None:
    """Offer `--attention-backend block_row_torch`. Safe to call again."""
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import add_attention_backend_choices

    register_attention_backend(TORCH_BACKEND)(_create_torch_backend)
    if TORCH_BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([TORCH_BACKEND])


def _create_torch_backend(runner: Any) -> Any:
    from llada_sglang.attention.torch_backend import BlockRowTorchBackend

    return BlockRowTorchBackend(runner)
