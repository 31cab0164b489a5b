"""Torch functions in place of the kernels that the simulated device does not run, by name.

Four kinds: operators of torch that a library registers (its host code checks the arguments first),
functions of modules that the host compiles when it first needs them, functions of FlashInfer, and
kernels of Triton that are slow to interpret.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulated_gpu import attention, layers, marlin, ours, quantized

Kernel = Callable[..., Any]

FLASHINFER: dict[str, dict[str, Kernel]] = layers.FLASHINFER
"""Functions that compile a kernel and return it, by module."""

COMPILED: dict[str, Kernel] = {
    **layers.COMPILED,
    **attention.COMPILED,
    **quantized.COMPILED,
    **marlin.COMPILED,
}
"""By the names that the host's compiled modules export, with their first argument if it matters."""

OPERATORS: dict[str, Kernel] = {
    **layers.OPERATORS,
    **attention.OPERATORS,
    **quantized.OPERATORS,
}
"""By qualified name of the operator; the first argument is what its host code returned."""

TRITON: dict[str, Kernel] = {
    **ours.TRITON,
    **layers.TRITON,
    **attention.TRITON,
    **quantized.TRITON,
}
"""By name, with the kernel's arguments by theirs; others are interpreted."""

ON_HOST: tuple[Kernel, ...] = (attention.plan,)
"""Of these what the host computes itself, however large the tensors are that it is given."""

ONLY_ON_GPU: dict[str, Kernel] = {**attention.ONLY_ON_GPU, **quantized.ONLY_ON_GPU}
"""Torch's own operators without a CPU kernel."""
