"""The two servers of a measurement: ours, and the host as it is.

Stock means SGLang 0.5.23 with its own model class, scheduler, attention and decoding algorithm.
SGLANG_PLUGINS names no plugin, so that nothing of ours is hooked in. SGLANG_PLATFORM keeps one
thing of ours, on machines without an accelerator only: the CPU platform (`llada_sglang.platform`),
which says that layers are torch-native. Without it the host does not start on a CPU without AMX.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from llada_sglang.platform.detect import accelerator

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests" / "engine"))

# The tests' own way of starting a server.
from servers import Server, ServerSpec, serve  # type: ignore[import-not-found]  # noqa: E402

OURS, STOCK = "llada_sglang", "stock"
NO_PLUGIN = "none"

__all__ = ["OURS", "STOCK", "Server", "ServerSpec", "scheduler_process", "serve", "spec"]


def stock_environment() -> dict[str, str]:
    """Variables under which the host is stock."""
    environment = {"SGLANG_PLUGINS": NO_PLUGIN}
    if accelerator() is None:
        environment["SGLANG_PLATFORM"] = "llada_sglang"
    return environment


def spec(engine: str, model: Path, flags: Sequence[str]) -> ServerSpec:
    """How to start `engine` on `model`; `flags` are given to both engines alike.

    Ours needs none. Stock needs its decoding algorithm named, remote code for the configuration
    class, and on a CPU its device, its attention backend, no graphs, and `--sleep-on-idle`, which
    ours has by default there.
    """
    if engine == OURS:
        return ServerSpec(str(model.resolve()), tuple(flags))
    needed = ["--dllm-algorithm", "LowConfidence", "--trust-remote-code"]
    if accelerator() is None:
        needed += ["--device", "cpu", "--attention-backend", "torch_native"]
        needed += ["--disable-cuda-graph", "--sleep-on-idle"]
    plain = ServerSpec(str(model.resolve()), (*needed, *flags))
    return plain.with_environment(stock_environment())


def in_words(engine: str, flags: Sequence[str]) -> str:
    """The launch command for a report."""
    chosen = spec(engine, Path("DIR"), flags)
    variables = [f"{name}={value}" for name, value in chosen.environment]
    return " ".join([*variables, "python -m sglang.launch_server --model-path DIR", *chosen.flags])


def scheduler_process(server: Server) -> psutil.Process:
    """The process that holds the weights, the KV pool and the running requests."""
    named = [p for p in server.processes() if "scheduler" in " ".join([p.name(), *p.cmdline()])]
    if not named:
        raise RuntimeError("the server has no process named after its scheduler")
    return max(named, key=lambda process: process.memory_info().rss)
