"""Which accelerator this machine has, seen through torch."""

from __future__ import annotations

import functools
import importlib
import importlib.util


@functools.cache
def accelerator() -> str | None:
    """Return "cuda", "rocm", "xpu", "npu", "musa", "hpu" or "mps", or None on a plain CPU.

    Only present and usable devices count: hiding them (CUDA_VISIBLE_DEVICES="") gives None.
    Vendor extensions of torch are imported only where they are installed.
    """
    import torch

    if torch.cuda.is_available():
        return "rocm" if torch.version.hip is not None else "cuda"
    if torch.xpu.is_available():
        return "xpu"
    for name, extension in (
        ("npu", "torch_npu"),
        ("musa", "torch_musa"),
        ("hpu", "habana_frameworks"),
    ):
        if _extension_device_available(name, extension):
            return name
    return "mps" if torch.backends.mps.is_available() else None


def _extension_device_available(name: str, extension: str) -> bool:
    import torch

    if importlib.util.find_spec(extension) is None:
        return False
    module = "habana_frameworks.torch" if extension == "habana_frameworks" else extension
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):
        # Installed without its driver: as good as absent.
        return False
    return bool(getattr(torch, name).is_available())
