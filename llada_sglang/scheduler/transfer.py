"""Copies between host and device that nobody waits for before the values are needed.

A copy from or to pageable memory makes the host wait for everything the device has been given
before it; one from or to pinned memory is put in the device's queue like a kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device; on a CPU its own memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # Pinned memory comes from a cache that gives it out again only when the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host; on a CPU there already."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        self._host = tensor
        if tensor.device.type != "cpu":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.Event(tensor.device)
            self._event.record()

    def wait(self) -> np.ndarray:
        """The values, once the device has come to the copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()
