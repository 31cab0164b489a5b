"""A host plugin for stock servers: the checkpoint's mask id, and a count of forwards.

Stock hard-codes LLaDA2's published mask id and reports no forwards. `install` writes a directory
for PYTHONPATH that makes this file a plugin of the host; loaded alone, in place of ours, it leaves
stock's model, scheduler, attention and decoding as they are. A count goes into `meta_info` as the
host sends such things: one number per output token, the last one being the whole count.

The installed copy runs without this repository: only the standard library and the host here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "counted_stock"
COUNTER = "denoise_forwards"
GROUP = "sglang.srt.plugins"


def install(directory: Path) -> dict[str, str]:
    """Write the plugin into `directory`; returns the variables under which a host loads it alone.

    PYTHONPATH is the directory itself: append what the caller's holds, if anything.
    """
    info = directory / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {NAME}:register\n")
    shutil.copyfile(__file__, directory / f"{NAME}.py")
    return {"SGLANG_PLUGINS": NAME, "PYTHONPATH": str(directory)}


def register() -> None:
    """Entry point: hook both into this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook in (
        ("sglang.srt.dllm.config.DllmConfig.from_server_args", checkpoint_mask_id),
        (
            "sglang.srt.managers.tp_worker.TpModelWorker._forward_batch_generation_dllm",
            counted_forward,
        ),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)


def checkpoint_mask_id(original: Callable[[Any], Any], server_args: Any) -> Any:
    """AROUND `DllmConfig.from_server_args`: its object, with the mask id of config.json if any."""
    config = original(server_args)
    if config is not None:
        content = json.loads(Path(server_args.model_path, "config.json").read_text())
        config.mask_id = content.get("mask_token_id", config.mask_id)
    return config


def counted_forward(
    original: Callable[..., Any], worker: Any, forward_batch: Any, batch: Any = None
) -> Any:
    """AROUND `TpModelWorker._forward_batch_generation_dllm`: counts it for every denoising request.

    Stock runs prompts and unfinished blocks in forwards of their own. The one that persists a
    finished block counts too: a request waits for it as for any other.
    """
    for req in batch.reqs if batch is not None else ():
        if req.is_dllm_prefill():
            continue
        count = (req.customized_info or {COUNTER: [0]})[COUNTER][-1] + 1
        # As long as the output can be after this forward; the host takes as many as there are.
        req.customized_info = {COUNTER: [count] * (len(req.output_ids) + worker_block(worker))}
    return original(worker, forward_batch, batch)


def worker_block(worker: Any) -> int:
    """Positions per block of a worker's decoding algorithm."""
    return int(worker.dllm_algorithm.block_size)
