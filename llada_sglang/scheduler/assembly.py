"""Puts the rounds of a scheduler together from what the host has set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.distributed.parallel_state import get_tp_group

from llada_sglang import env
from llada_sglang.graphs.setup import install as install_graphs
from llada_sglang.scheduler.canvas import CanvasTable
from llada_sglang.scheduler.kv import BlockKV
from llada_sglang.scheduler.rounds import Rounds
from llada_sglang.scheduler.runner import BlockRunner
from llada_sglang.scheduler.running import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

CPU_PREFILL_ROWS = 8
"""Prefill rows beside denoise rows where a forward is bound by compute, not by memory."""


def assemble(host: Scheduler, *, requeue: Callable[[Req], None]) -> Rounds:
    """Rounds over the pools and the worker of a scheduler, with graphs where there can be any.

    requeue: called with a retracted request.
    """
    config, model_runner, on_cpu = (
        host.dllm_config,
        host.tp_worker.model_runner,
        host.device == "cpu",
    )
    block, tp_group = config.block_size, get_tp_group()
    longest = min(host.model_config.context_len, host.max_total_num_tokens) // block * block
    running = min(config.max_running_requests, host.max_running_requests)
    chunk = (host.chunked_prefill_size or host.max_prefill_tokens) // block
    row_budget = max(chunk, 2 * running)
    table = CanvasTable(
        slots=running,
        width=longest + block,
        block=block,
        mask_id=config.mask_id,
        device=host.device,
    )
    runner = BlockRunner(model_runner=model_runner, table=table, tp_group=tp_group)
    agree = _agreement(tp_group)
    runner.head.graphs = install_graphs(
        model_runner,
        given=host.server_args,
        block=block,
        row_budget=row_budget,
        statistics=runner.head.statistics,
        combine=runner.head.combine,
        tp_group=tp_group,
        agree=agree,
    )
    overlap = env.load().overlap
    return Rounds(
        kv=BlockKV(
            block=block,
            req_to_token_pool=host.req_to_token_pool,
            allocator=host.token_to_kv_pool_allocator,
            tree_cache=host.tree_cache,
        ),
        table=table,
        runner=runner,
        limits=Limits(
            max_running=running,
            row_budget=row_budget,
            prefill_budget=CPU_PREFILL_ROWS if on_cpu else row_budget,
            max_position=longest,
        ),
        requeue=requeue,
        agree=agree,
        overlap=not on_cpu if overlap is None else overlap,
    )


def _agreement(group: GroupCoordinator) -> Callable[[int], int]:
    """Makes every rank of a group take the first one's number: what is timed differs by rank."""
    if group.world_size == 1:
        return int

    def agree(value: int) -> int:
        number = torch.tensor([value])
        torch.distributed.broadcast(number, src=group.ranks[0], group=group.cpu_group)
        return int(number)

    return agree
