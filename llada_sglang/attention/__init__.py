"""Block-row attention per backend.

On CUDA the backends go by the host's own names, as its rules about page sizes, dtypes and
graphs do, and as users know them: `flashinfer`, `fa3`, `triton`. Only a server of our decoding
algorithm gets ours; any other gets the host's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llada_sglang.attention.choice import FA3, FLASHINFER, TRITON, require_support

TORCH_BACKEND = "block_row_torch"

_CLASSES = {
    FLASHINFER: "llada_sglang.attention.flashinfer_backend:BlockRowFlashInferBackend",
    FA3: "llada_sglang.attention.fa3_backend:BlockRowFA3Backend",
    TRITON: "llada_sglang.attention.triton_backend:BlockRowTritonBackend",
}


def register() -> None:
    """Offer block rows under `--attention-backend`. Safe to call again."""
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.layers.attention.attention_registry import (
        ATTENTION_BACKENDS,
        register_attention_backend,
    )
    from sglang.srt.server_args import add_attention_backend_choices

    register_attention_backend(TORCH_BACKEND)(_create_torch_backend)
    if TORCH_BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([TORCH_BACKEND])
    for name in _CLASSES:
        create = ATTENTION_BACKENDS[name]
        if not isinstance(create, RowBackendFactory):
            register_attention_backend(name)(RowBackendFactory(name, create))


@dataclass(frozen=True, slots=True)
class RowBackendFactory:
    """Creates our backend of a name for our algorithm, and the host's for any other."""

    name: str
    host: Callable[[Any], Any]

    def __call__(self, runner: Any) -> Any:
        """Raises LaunchConfigError where ours cannot compute the runner's dtypes."""
        from sglang.srt.runtime_context import get_exec

        from llada_sglang.serving.rules import ALGORITHM

        if get_exec().dllm.dllm_algorithm != ALGORITHM:
            return self.host(runner)
        require_support(self.name, _name(runner.dtype), _name(runner.kv_cache_dtype))
        module, _, backend = _CLASSES[self.name].partition(":")
        return getattr(importlib.import_module(module), backend)(runner)


def _create_torch_backend(runner: Any) -> Any:
    from llada_sglang.attention.torch_backend import BlockRowTorchBackend

    return BlockRowTorchBackend(runner)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
