"""Turns the simulation on in this process."""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from simulated_gpu.device import DEVICE, Graph, Simulation, on_host
from simulated_gpu.kernels import COMPILED, FLASHINFER, TRITON, Kernel


def install() -> None:
    """Compute on the simulated device in all threads, from now on."""
    Simulation().__enter__()
    _in_threads()
    _graphs()
    _waits()
    _printing()
    _triton()
    sys.meta_path.insert(0, _AfterImport())


def _in_threads() -> None:
    run = threading.Thread.run

    def simulated(self: threading.Thread) -> None:
        with Simulation():
            run(self)

    threading.Thread.run = simulated  # type: ignore[method-assign]


def _graphs() -> None:
    kind: Any = torch.cuda.CUDAGraph
    begin, end = kind.capture_begin, kind.capture_end

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        DEVICE.graph = self.simulated = Graph()

    def capture_end(self: Any) -> None:
        DEVICE.graph = None
        end(self)

    def replay(self: Any) -> None:
        self.simulated.replay()
        DEVICE.busy = True

    kind.capture_begin, kind.capture_end, kind.replay = capture_begin, capture_end, replay


def _waits() -> None:
    def idle(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            DEVICE.busy = False
            return function(*args, **kwargs)

        return wrapped

    torch.cuda.synchronize = idle(torch.cuda.synchronize)
    torch.cuda.Stream.synchronize = idle(torch.cuda.Stream.synchronize)  # type: ignore
    torch.cuda.Event.synchronize = idle(torch.cuda.Event.synchronize)  # type: ignore
    torch.cuda.Stream.query = lambda self: not DEVICE.busy  # type: ignore


def _printing() -> None:
    # Torch formats a tensor outside of all modes.
    text = torch._tensor_str._str

    def of_memory(tensor: torch.Tensor, *, tensor_contents: str | None = None) -> str:
        seen = on_host(tensor.detach()) if tensor.is_cuda else tensor
        return text(seen, tensor_contents=tensor_contents)

    torch._tensor_str._str = of_memory


def _triton() -> None:
    import triton
    from triton.runtime.interpreter import GridExecutor, InterpretedFunction, _patch_lang

    call = GridExecutor.__call__

    changed: set[Any] = set()

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Once per launch: the interpreter's own changes the language at every call, in 10 ms.
        if self.fn not in changed:
            _patch_lang(self.fn)
            changed.add(self.fn)
        return self.rewrite()(*args, **kwargs)

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        instead = TRITON.get(self.fn.__name__)
        if instead is None:
            changed.clear()
            DEVICE.run(lambda *a, **k: call(self, *a, **k), args, kwargs)
        else:
            known = inspect.signature(self.fn).parameters
            named = {key: value for key, value in kwargs.items() if key in known}
            bound = inspect.signature(self.fn).bind(*args, **named)
            bound.apply_defaults()
            DEVICE.run(instead, (), bound.arguments)

    GridExecutor.__call__ = launched
    InterpretedFunction.__call__ = called
    # Programmatic dependent launch: nothing runs beside anything here.
    for name in ("gdc_wait", "gdc_launch_dependents"):
        setattr(triton.language.extra.cuda, name, lambda: None)


class Compiled:
    """A module that the host would compile with nvcc."""

    def __init__(self, *marker: str, **given: Any) -> None:
        self._marker = marker

    def __getattr__(self, name: str) -> Kernel:
        def missing(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"no kernel stands for {name} of {self._marker}")

        variant = f"{name}<{self._marker[1]}>" if len(self._marker) > 1 else name
        return _on_device(COMPILED.get(variant) or COMPILED.get(name, missing))


def _on_device(kernel: Kernel) -> Kernel:
    return lambda *args, **kwargs: DEVICE.run(kernel, args, kwargs)


def _replace_jit(module: ModuleType) -> None:
    module.load_jit = Compiled  # type: ignore[attr-defined]


def _replace_custom_op(module: ModuleType) -> None:
    # The host calls its functions straight where no mode is active, and ours always is; nor while
    # gradients are recorded, as when weights are loaded.
    module._dispatch_modes = module._grad_enabled = lambda: 0  # type: ignore[attr-defined]


def _replace_flashinfer(module: ModuleType) -> None:
    for name, kernel in FLASHINFER[module.__name__].items():
        assert hasattr(module, name), f"{module.__name__} has no {name}"
        setattr(module, name, lambda *args, _kernel=kernel, **kwargs: _on_device(_kernel))


def _replace_modules_of_flashinfer(module: ModuleType) -> None:
    kind: Any = module.JitSpec  # type: ignore[attr-defined]
    kind.build_and_load = lambda self: Compiled(self.name)


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "sglang.kernels.jit.utils.compile.loader": _replace_jit,
    "flashinfer.jit.core": _replace_modules_of_flashinfer,
    "sglang.srt.utils.custom_op": _replace_custom_op,
    **dict.fromkeys(FLASHINFER, _replace_flashinfer),
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Changes modules as soon as they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in AFTER:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def and_change(module: ModuleType) -> None:
            execute(module)
            AFTER[name](module)

        spec.loader.exec_module = and_change  # type: ignore[method-assign]
        return spec
