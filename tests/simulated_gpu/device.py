"""What a GPU would compute, on the memory of a simulated one.

Under the preloaded runtime (runtime.c) tensors of torch are CUDA tensors whose memory this process
can read, made by torch's own allocator; only kernels do nothing. Here every operator on them is
computed by its CPU kernel, on views of the same memory, and what a GPU would refuse is refused:
tensors of two devices, and waiting for the device inside a graph. Graphs record these operators
and repeat them, so that what a capture baked in stays baked in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from simulated_gpu.kernels import ON_HOST, ONLY_ON_GPU, OPERATORS, Kernel

LARGE = 1 << 14 if "SIMULATED_GPU_GIB" in os.environ else None
"""Bytes of a tensor from which on nothing is computed, on a GPU larger than this machine."""
COMPUTED = object()
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


class SyncError(RuntimeError):
    """The host waits for the device where it must not."""


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor of the same memory as one of the simulated device."""
    size = tensor.untyped_storage().nbytes()
    storage = torch._C._construct_storage_from_data_pointer(
        tensor.untyped_storage().data_ptr(), CPU, size
    )
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_device(tensor: Tensor) -> Tensor:
    """A copy on the simulated device, with the same strides where they are dense."""
    made = torch.empty_like(tensor, device=GPU)
    on_host(made).copy_(tensor)
    return made


class Graph:
    """What ran on the device between the start and the end of a capture."""

    def __init__(self) -> None:
        self.steps: list[tuple[Kernel, list[Any], Any, list[Tensor]]] = []

    @_disable_current_modes()
    def replay(self) -> None:
        for kernel, arguments, spec, results in self.steps:
            args, kwargs = tree_unflatten(arguments, spec)
            again = [
                leaf
                for leaf in tree_flatten(kernel(*args, **kwargs))[0]
                if isinstance(leaf, Tensor)
            ]
            for result, found in zip(results, again, strict=True):
                if result.data_ptr() != found.data_ptr():
                    result.copy_(found)


class Device(threading.local):
    """The state of the device, as one thread sees it."""

    graph: Graph | None = None
    busy = False

    def wait(self, why: str) -> None:
        """The host waits until all that was launched is done."""
        if self.graph is not None:
            raise SyncError(f"{why} while a graph is captured")
        mode = torch.cuda.get_sync_debug_mode()
        if mode == 2:
            raise SyncError(f"{why}: called a synchronizing CUDA operation")
        self.busy = False

    def run(self, kernel: Kernel, args: Any, kwargs: Any) -> Any:
        """Compute with views on the host; results new to the device are copied there."""
        if LARGE is not None and (found := self._shapes(kernel, args, kwargs)) is not COMPUTED:
            return found
        flat, spec = tree_flatten((args, kwargs))
        sources: dict[int, Tensor] = {}
        for at, leaf in enumerate(flat):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                flat[at] = on_host(leaf)
                sources[flat[at].untyped_storage().data_ptr()] = leaf
            elif isinstance(leaf, torch.device) and leaf.type == "cuda":
                flat[at] = CPU
            elif isinstance(leaf, torch.Generator) and leaf.device.type == "cuda":
                flat[at] = generator_of(leaf)
        again, kwagain = tree_unflatten(flat, spec)
        found = kernel(*again, **kwagain)
        self.busy = True
        kept: list[Tensor] = []

        def back(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            source = sources.get(leaf.untyped_storage().data_ptr()) if leaf.numel() else None
            if source is None:
                made = on_device(leaf)
                kept.append(on_host(made))
                return made
            kept.append(leaf)
            if leaf.data_ptr() == source.data_ptr() and leaf.shape == source.shape:
                return source
            return source.as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())

        result = tree_map(back, found)
        if self.graph is not None:
            self.graph.steps.append((kernel, flat, spec, kept))
        return result

    def _shapes(self, kernel: Kernel, args: Any, kwargs: Any) -> Any:
        """Memory for what comes of large tensors, with nothing in it; COMPUTED if all is small."""
        flat, spec = tree_flatten((args, kwargs))
        sources: dict[int, Tensor] = {}
        size = 0
        for at, leaf in enumerate(flat):
            if isinstance(leaf, Tensor):
                size = max(size, leaf.nbytes)
                flat[at] = torch.empty_strided(
                    leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta"
                )
                sources[id(flat[at])] = leaf
            elif isinstance(leaf, torch.device):
                flat[at] = torch.device("meta")
            elif isinstance(leaf, torch.Generator):
                flat[at] = None
        if not isinstance(kernel, torch._ops.OpOverload):
            return None if size > LARGE and kernel not in ON_HOST else COMPUTED
        again, kwagain = tree_unflatten(flat, spec)
        try:
            found = kernel(*again, **kwagain)
        except (NotImplementedError, RuntimeError):  # by its values alone
            return COMPUTED
        results = [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor)]
        if max([size, *(leaf.nbytes for leaf in results)]) <= LARGE:
            return COMPUTED

        def back(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) in sources:
                return sources[id(leaf)]
            return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device=GPU)

        return tree_map(back, found)


DEVICE = Device()


def generator_of(generator: torch.Generator) -> torch.Generator:
    """The CPU's generator at the state of one of the device, which moves on."""
    offset = generator.get_offset()
    generator.set_offset(offset + 4)
    return torch.Generator().manual_seed(generator.initial_seed() * 1_000_003 + offset)


ALLOCATES = frozenset(
    {"aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty"}
    | {"aten::new_empty_strided", "aten::empty.names", "aten::resize_"}
)
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal")
MIXES = frozenset({"aten::copy_", "aten::_to_copy", "aten::set_.source_Storage_storage_offset"})


def is_view(operator: Any) -> bool:
    """Whether an operator returns its argument in another shape: no kernel runs then."""
    returns = operator._schema.returns
    return bool(returns) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in returns
    )


class Simulation(TorchDispatchMode):
    """Every operator on a tensor of the device, computed by `DEVICE`."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if tensor.is_cuda]
        device = kwargs.get("device")
        wanted = device is not None and torch.device(device).type == "cuda"
        if not there and not wanted:
            return operator(*args, **kwargs)
        name = operator.name()
        with self:
            # In inference mode operators that are made of others come here as they are.
            parts = operator.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if name in ALLOCATES or is_view(operator) or name == "aten::record_stream":
            return operator(*args, **kwargs)
        if name.startswith("aten::_to_copy"):
            return self._to_copy(args[0], kwargs)
        if name.startswith("aten::copy_"):
            return self._copy(*args, **kwargs)
        if name.startswith(("aten::index", "aten::_index_put", "aten::_unsafe_index")):
            args = self._index(name, args)
        elif there and len(there) < len(tensors):
            self._refuse_mixture(name, tensors)
        if name.startswith(WAITS):
            DEVICE.wait(name)
        namespace = name.split("::")[0]
        if namespace != "aten" and namespace != "prims":
            return self._foreign(operator, name, args, kwargs)
        if name.startswith(("aten::_pin_memory", "aten::is_pinned")):
            return operator(*args, **kwargs)
        kernel = operator if LARGE is not None else ONLY_ON_GPU.get(name, operator)
        return DEVICE.run(kernel, args, kwargs)

    def _to_copy(self, source: Tensor, kwargs: Any) -> Tensor:
        kwargs = dict(kwargs)
        target = torch.device(kwargs.pop("device", None) or source.device)
        waits = not kwargs.pop("non_blocking", False)
        pinned = kwargs.pop("pin_memory", None)
        if source.is_cuda and target.type == "cuda":
            return DEVICE.run(torch.ops.aten._to_copy.default, (source,), kwargs)
        if waits:
            DEVICE.wait(f"a copy from {source.device} to {target}")
        if source.is_cuda:
            if DEVICE.graph is not None:
                raise SyncError("a copy to memory that is not pinned, in a graph")
            made = torch.ops.aten._to_copy.default(on_host(source), **kwargs)
            return made.pin_memory() if pinned else made
        if DEVICE.graph is not None:
            raise SyncError("a copy from new memory of the host, in a graph")
        return on_device(torch.ops.aten._to_copy.default(source, **kwargs))

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if to.is_cuda and source.is_cuda:
            DEVICE.run(torch.ops.aten.copy_.default, (to, source), {})
            return to
        if not non_blocking and not (to.is_cuda and source.dim() == 0):
            DEVICE.wait(f"a copy from {source.device} to {to.device}")
        if DEVICE.graph is not None:
            raise SyncError(f"a copy from {source.device} to {to.device}, in a graph")
        (on_host(to) if to.is_cuda else to).copy_(on_host(source) if source.is_cuda else source)
        return to

    def _index(self, name: str, args: Any) -> Any:
        """Index tensors may be the host's; a mask's True elements are counted on the host."""
        if name.split("::")[1].split(".")[0] not in ("index", "index_put", "index_put_"):
            self._refuse_mixture(name, [one for one in args if isinstance(one, Tensor)])
            return args
        indices = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                DEVICE.wait(f"{name} by a mask")
            if index is not None and not index.is_cuda and args[0].is_cuda:
                DEVICE.wait(f"{name} by indices of the host")
                index = on_device(index)
            indices.append(index)
        rest = args[2:]
        if rest and isinstance(rest[0], Tensor):
            self._refuse_mixture(name, [args[0], rest[0]])
        return (args[0], indices, *rest)

    def _refuse_mixture(self, name: str, tensors: Iterable[Tensor]) -> None:
        # A number of the host may go with tensors of the device, and is read at once.
        devices = {tensor.device for tensor in tensors if tensor.is_cuda or tensor.dim() > 0}
        if len(devices) > 1:
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device, found {devices}"
            )

    def _foreign(self, operator: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A library's operator: its host code checks the arguments and launches nothing; what it
        computes is said here."""
        kernel = OPERATORS.get(name)
        if kernel is None:
            raise NotImplementedError(f"no kernel stands for {operator._schema}")
        given = operator(*args, **kwargs)
        results = DEVICE.run(kernel, (given, *args), kwargs)
        return given if results is None else results
