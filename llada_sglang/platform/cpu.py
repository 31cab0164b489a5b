"""SGLang on any x86-64 or arm64 CPU, with plain torch operators only.

The host's own CPU engine (SGLANG_USE_CPU_ENGINE=1) needs AMX kernels of sgl_kernel. This
out-of-tree platform takes the torch-native path of every layer instead, so it needs none.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from llada_sglang import env


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """CPU without AMX: torch-native layers, gloo, no Triton, no graphs."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_device(self, device_id: int | None = 0) -> Any:
        # The host's utils.get_device() asks without an id and takes the answer for a string.
        return "cpu" if device_id is None else torch.device("cpu")

    def get_dispatch_key_name(self) -> str:
        return "native"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Share the cores among several ranks; their processes inherit the environment set here.

        Without SGLANG_CPU_OMP_THREADS_BIND the host refuses more ranks than NUMA nodes
        (sglang.srt.utils.numa_utils.init_threads_binding).
        """
        ranks = server_args.tp_size * server_args.pp_size * max(1, server_args.dp_size)
        if ranks > 1:
            cores = _usable_cores()
            env.set_host_default("SGLANG_CPU_OMP_THREADS_BIND", bind_groups(cores, ranks))
            env.set_host_default("OMP_NUM_THREADS", str(max(1, len(cores) // ranks)))

    def init_backend(self) -> None:
        use_torch_only_bootstrap()


def bind_groups(cores: list[int], ranks: int) -> str:
    """Split `cores` among `ranks` in the host's syntax, e.g. "0,1|2,3".

    With fewer cores than ranks the cores are shared in turn.
    """
    if len(cores) < ranks:
        return "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    share = len(cores) // ranks
    groups = (cores[rank * share : (rank + 1) * share] for rank in range(ranks))
    return "|".join(",".join(map(str, group)) for group in groups)


def _usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_torch_only_bootstrap() -> None:
    """Keep the host from calling sgl_kernel's thread binding where it is not installed.

    On arm64 the host calls it unconditionally (sglang.srt.distributed.bootstrap).
    """
    from sglang.srt.distributed import bootstrap

    if not hasattr(torch.ops.sgl_kernel, "init_cpu_threads_env"):
        bootstrap._is_cpu_arm64 = False
