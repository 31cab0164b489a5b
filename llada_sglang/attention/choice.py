"""Which attention backend serves block rows, by device and dtypes."""

from __future__ import annotations

from dataclasses import dataclass

from llada_sglang.errors import LaunchConfigError

TORCH = "block_row_torch"
FLASHINFER = "flashinfer"
FA3 = "fa3"
TRITON = "triton"

_HALF = frozenset({"float16", "bfloat16"})
_FP8 = frozenset({"float8_e4m3fn", "float8_e5m2"})


@dataclass(frozen=True, slots=True)
class Support:
    """dtypes: of queries, as torch names them. kv_dtypes: of the KV cache, besides the former's."""

    dtypes: frozenset[str]
    kv_dtypes: frozenset[str]
    reason: str


SUPPORT = {
    FLASHINFER: Support(_HALF, _FP8, "its kernels multiply 16-bit numbers"),
    FA3: Support(
        _HALF, frozenset({"float8_e4m3fn"}), "its kernels multiply 16-bit or e4m3 numbers"
    ),
    TRITON: Support(_HALF, _FP8, "its kernel multiplies float32 as TF32"),
}
"""The host's names of backends that we extend for block rows."""


def default_backend(
    dtype: str, kv_cache_dtype: str, *, hopper: bool, flashinfer: bool, nvidia: bool = True
) -> str:
    """Choose by device: FA3 on Hopper, else FlashInfer, else Triton; float32 stays in torch.

    dtype: of the model, as torch names it. kv_cache_dtype: as `--kv-cache-dtype` has it.
    hopper: FA3's kernels run. flashinfer: FlashInfer is installed for this device. nvidia: the
    device is not of another maker that torch also calls cuda.
    """
    if dtype not in _HALF:
        return TORCH
    if not nvidia:
        return TRITON
    if hopper and "e5m2" not in kv_cache_dtype:
        return FA3
    return FLASHINFER if flashinfer else TRITON


def require_support(name: str, dtype: str, kv_dtype: str) -> None:
    """Raise LaunchConfigError where a backend cannot compute these dtypes, as torch names them."""
    support = SUPPORT[name]
    if dtype not in support.dtypes:
        raise LaunchConfigError(
            f"--attention-backend {name} needs --dtype {_listed(support.dtypes)} for a LLaDA2 "
            f"model, got {dtype}: {support.reason}. Use --attention-backend {TORCH}."
        )
    allowed = support.kv_dtypes | {dtype}
    if kv_dtype not in allowed:
        raise LaunchConfigError(
            f"--attention-backend {name} needs a KV cache of {_listed(allowed)} for a LLaDA2 "
            f"model, got {kv_dtype}: {support.reason}. Change --kv-cache-dtype or the backend."
        )


def _listed(names: frozenset[str]) -> str:
    return " or ".join(sorted(names))
