"""What records a forward and replays it: on CUDA the host's graph backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.model_executor.runner_utils.pool import get_or_create_global_graph_capture_stream
from sglang.srt.runtime_context import get_exec

Key = tuple[str, int]


class Recorder(Protocol):
    """Records functions without arguments and results: they read and write static buffers."""

    def record(
        self, key: Key, run: Callable[[], None], after_warmup: Callable[[], None] | None = None
    ) -> None:
        """Run `run` to warm up, `after_warmup` after each time, then record it under `key`."""

    def replay(self, key: Key) -> None:
        """Do what was recorded under `key` again; returns before the device has."""


class HostRecorder:
    """One torch.cuda.CUDAGraph per key, in the memory pool and on the stream of the host's graphs.

    The host's `FullCudaGraphBackend` is used as it is: two warm-ups with a barrier between ranks,
    its pool with what other parts of the host borrow of it, its memory saver.
    """

    def __init__(self, runner: Any) -> None:
        self._backend = FullCudaGraphBackend(
            runner, enable_memory_saver=get_exec().features.enable_memory_saver
        )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around everything that is recorded: communicators and layers know of the capture.

        The current stream is the capture stream within.
        """
        with (
            model_capture_mode(),
            freeze_gc(get_exec().graph.enable_cudagraph_gc),
            graph_capture(stream=get_or_create_global_graph_capture_stream()) as context,
            self._backend.capture_session(context.stream),
        ):
            yield

    def record(
        self, key: Key, run: Callable[[], None], after_warmup: Callable[[], None] | None = None
    ) -> None:
        """See `Recorder`; within `session` only."""
        self._backend.capture_one(key, run, post_warmup_hook=after_warmup)

    def replay(self, key: Key) -> None:
        """See `Recorder`."""
        self._backend.replay(key, None)
