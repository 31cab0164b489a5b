"""The only module that reads or writes the environment. Our variables begin with LLADA_SGLANG_."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llada_sglang.errors import LaunchConfigError

PREFIX = "LLADA_SGLANG_"
OUR_MODELS = "llada_sglang.models"
_ACTIVE = PREFIX + "ACTIVE"
_DECODING = PREFIX + "DECODING"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")

_set_here: dict[str, str] = {}
"""Variables this process has set for a LLaDA2 model, with the value."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per variable: `check_integrity` is LLADA_SGLANG_CHECK_INTEGRITY.

    active: set by a launching process for its children (`set_active`), not meant to be set by hand.
    check_integrity: verify the KV pool, the radix tree and the rows whenever the server is idle.
    overlap: launch a step before the result of the last one is known; by default where there is an
        accelerator, whose time it saves, and not on a CPU.
    fused_kernels: QK-norm, rotary and KV store as one kernel, and block routing as another, in
        place of the host's; on a GPU.
    decoding: the server's decoding defaults as a YAML mapping, as `--dllm-algorithm-config` takes
        it inline; the launching process hands it to its children this way.
    """

    active: bool = False
    check_integrity: bool = False
    overlap: bool | None = None
    fused_kernels: bool = True
    decoding: str = ""


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read our variables. Raises LaunchConfigError for an unknown one or a value not understood."""
    given = os.environ if environ is None else environ
    known = {PREFIX + f.name.upper(): f.name for f in fields(Settings)}
    values: dict[str, Any] = {}
    texts = {f.name for f in fields(Settings) if isinstance(f.default, str)}
    for name in sorted(given):
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise LaunchConfigError(
                f"unknown environment variable {name}; known: {', '.join(sorted(known))}."
            )
        if known[name] in texts:
            values[known[name]] = given[name]
            continue
        text = given[name].strip().lower()
        if text not in _TRUE + _FALSE:
            raise LaunchConfigError(f"{name} must be 0 or 1, got {given[name]!r}.")
        values[known[name]] = text in _TRUE
    return Settings(**values)


def is_active() -> bool:
    """Whether this process serves a LLaDA2 model, as its launching process has found out."""
    return os.environ.get(_ACTIVE) == "1"


def set_active(active: bool) -> None:
    """Tell this process and its children whether they serve a LLaDA2 model.

    The host then imports our model package alone, and its own some 200 model files only if another
    architecture is asked for, which saves seconds of every start. For another model everything
    that was set for a LLaDA2 one is taken back.
    """
    if active:
        set_host_default(_ACTIVE, "1")
        set_host_default("SGLANG_EXTERNAL_MODEL_PACKAGE", OUR_MODELS)
        return
    for name, value in _set_here.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _set_here.clear()


def set_decoding(text: str | None) -> None:
    """Hand the server's decoding defaults to this process's children; None takes them back.

    What the user has set is left alone.
    """
    if text is not None:
        os.environ[_DECODING] = _set_here[_DECODING] = text
    elif _DECODING in _set_here:
        os.environ.pop(_DECODING, None)
        del _set_here[_DECODING]


def set_host_default(name: str, value: str) -> str:
    """Set a variable for this process and its children unless the user has; return what holds."""
    if name not in os.environ:
        os.environ[name] = _set_here[name] = value
    return os.environ[name]


def is_set(name: str) -> bool:
    """Whether a variable of the host's is set to something true."""
    return os.environ.get(name, "").strip().lower() in (*_TRUE, "y")


def selected_plugins() -> tuple[str, ...] | None:
    """The plugin names SGLANG_PLUGINS restricts the host to, or None where all are loaded."""
    text = os.environ.get("SGLANG_PLUGINS", "")
    return tuple(name.strip() for name in text.split(",") if name.strip()) or None


def selected_platform() -> str | None:
    """The platform plugin SGLANG_PLATFORM names; the packages of all others are then left out."""
    return os.environ.get("SGLANG_PLATFORM") or None


def no_color() -> bool:
    """Whether the user asks every program for plain output (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def cuda_toolkit() -> str | None:
    """Where the CUDA toolkit is said to be, by the names that SGLang looks for."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
