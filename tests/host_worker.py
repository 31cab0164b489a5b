"""The host's real worker in this process, and batches of block rows for its model runner."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 32
Row = tuple[int, int]  # row of the page table, first position


@contextmanager
def runtime(model: Path, *, device: str, **flags: Any) -> Iterator[tuple[Any, Any, int]]:
    """The host's runtime of one rank, without a model: its arguments, model config and port.

    Several may follow each other in a process, and what they set of it is put back.
    """
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.distributed.parallel_state import (
        destroy_distributed_environment,
        destroy_model_parallel,
    )
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish, restore_context, snapshot_context
    from sglang.srt.server_args import ServerArgs

    environment, context = dict(os.environ), snapshot_context()
    load_plugins()
    args = ServerArgs(model_path=str(model), **flags)
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bootstrap._PARALLEL_INITIALISED = False
    bootstrap.init_parallel_runtime(server_args=args, device=device, dist_port=port)
    config = ModelConfig.from_server_args(args)
    bootstrap.init_layer_runtime(model_config=config)
    initialize_moe_config()
    try:
        yield args, config, port
    finally:
        destroy_model_parallel()
        destroy_distributed_environment()
        bootstrap._PARALLEL_INITIALISED = False
        restore_context(context)
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def started(model: Path, *, device: str, **flags: Any) -> Iterator[Any]:
    """A tensor-parallel worker of world size one: layers, KV pool and attention backend."""
    from sglang.srt.managers.tp_worker import TpModelWorker

    with runtime(model, device=device, max_running_requests=64, **flags) as (args, _, port):
        worker = TpModelWorker(server_args=args, gpu_id=0, nccl_port=port)
        worker.alloc_memory_pool()
        worker.init_attention_backends()
        worker.init_cuda_graphs()
        yield worker


def lay_out(runner: Any, *, requests: int, blocks: int, seed: int, first: int = 1) -> None:
    """Give requests from `first` on random pages; row 0 of the table and page 0 are the host's."""
    table = runner.req_to_token_pool.req_to_token
    pages = runner.max_total_num_tokens // BLOCK
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)) + 1
    slots = order[: requests * blocks, None] * BLOCK + torch.arange(BLOCK)
    table[first : first + requests, : blocks * BLOCK] = slots.view(requests, -1).to(table)


def block_rows(runner: Any, rows: Sequence[Row], ids: Tensor, *, hidden_only: bool = True) -> Any:
    """A batch as `BlockRunner` builds it. ids: int64 [rows * block]."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    table = runner.req_to_token_pool.req_to_token
    requests, first = (
        torch.tensor(column, device=table.device) for column in zip(*rows, strict=True)
    )
    position = first[:, None] + torch.arange(BLOCK, device=table.device)
    ends = first + BLOCK
    return ForwardBatch(
        forward_mode=ForwardMode.DLLM_EXTEND,
        batch_size=len(rows),
        input_ids=ids.to(table.device),
        req_pool_indices=requests,
        seq_lens=ends,
        seq_lens_cpu=ends.cpu().clone(),
        seq_lens_sum=int(ends.sum()),
        out_cache_loc=table[requests[:, None], position].flatten().long(),
        positions=position.flatten(),
        extend_num_tokens=len(rows) * BLOCK,
        extend_seq_lens=torch.full_like(first, BLOCK).int(),
        extend_prefix_lens=first.int(),
        extend_start_loc=torch.arange(len(rows), device=table.device).int() * BLOCK,
        extend_prefix_lens_cpu=first.tolist(),
        extend_seq_lens_cpu=[BLOCK] * len(rows),
        extend_logprob_start_lens_cpu=[BLOCK] * len(rows),
        global_num_token_non_padded_cpu=len(rows) * BLOCK,
        model_specific_states={"hidden_only": hidden_only},
    )


def random_ids(rows: int, vocabulary: int, seed: int) -> Tensor:
    """Token ids of so many rows, int64 [rows * block]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (rows * BLOCK,), generator=generator)
