"""The host's diffusion configuration, with the ids and the block size of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llada_sglang.checkpoint import read_family
from llada_sglang.compat import require_installed
from llada_sglang.errors import LaunchConfigError
from llada_sglang.serving.defaults import serves_llada2


def checkpoint_config(original: Callable[[Any], Any], server_args: Any) -> Any:
    """AROUND `DllmConfig.from_server_args`, which hard-codes both per architecture.

    Returns the host's object with `mask_id` and `block_size` of the checkpoint; None where the
    server runs no diffusion model. A scheduler process asks for it early and after the hooks ran,
    so this is where they are verified. Raises HostMismatchError, and LaunchConfigError for another
    block size in `--dllm-algorithm-config`.
    """
    config = original(server_args)
    if config is None:
        return None
    from sglang.srt.arg_groups.overrides import resolving_view

    arguments = resolving_view(server_args)
    if not serves_llada2(arguments.model_path, arguments.revision):
        return config
    require_installed()
    family = read_family(arguments.model_path, revision=arguments.revision)
    given = config.algorithm_config.get("block_size", family.block_size)
    if given != family.block_size:
        raise LaunchConfigError(
            f"block_size in --dllm-algorithm-config must be {family.block_size}, the checkpoint's, "
            f"got {given!r}. Drop the key."
        )
    config.block_size = family.block_size
    config.mask_id = family.mask_id
    return config
