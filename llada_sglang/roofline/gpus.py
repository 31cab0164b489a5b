"""Published numbers of the GPUs the cost model knows."""

from __future__ import annotations

from dataclasses import dataclass

from llada_sglang.errors import LLaDAError


class RooflineError(LLaDAError, ValueError):
    """The cost model is asked for something it cannot compute."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU on its SXM board, peak numbers, nothing measured.

    memory: bytes. bandwidth: of its HBM, bytes/s. bf16, fp8: dense tensor-core operations/s,
    without sparsity; fp8 is bf16's where the cores have no fp8 (weights are then unpacked).
    fp32: operations/s outside of the tensor cores. link: NVLink bytes/s in one direction, half of
    the published total.
    """

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    fp32: float
    link: float
    source: str


GPUS: dict[str, Gpu] = {
    "h200": Gpu("H200 SXM", 141e9, 4.8e12, 989e12, 1979e12, 67e12, 450e9, "NVIDIA H200 datasheet"),
    "h100": Gpu("H100 SXM", 80e9, 3.35e12, 989e12, 1979e12, 67e12, 450e9, "NVIDIA H100 datasheet"),
    "b200": Gpu(
        "B200",
        180e9,
        8.0e12,
        2250e12,
        4500e12,
        80e12,
        900e9,
        "NVIDIA Blackwell and DGX B200 datasheets",
    ),
    "a100": Gpu(
        "A100 SXM 80 GB",
        80e9,
        2.039e12,
        312e12,
        312e12,
        19.5e12,
        300e9,
        "NVIDIA A100 80 GB datasheet",
    ),
}


def find(name: str) -> Gpu:
    """The GPU of a name, in any case. Raises RooflineError listing the known ones."""
    if name.lower() not in GPUS:
        raise RooflineError(
            f"--gpu must be one of {', '.join(GPUS)}, got {name!r}. For another, name the nearest "
            "one and give its memory bandwidth with --bandwidth."
        )
    return GPUS[name.lower()]
