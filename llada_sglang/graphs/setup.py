"""Captures the graphs once the scheduler knows its row budget, and says what that took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.utils import get_moe_a2a_backend
from sglang.srt.model_executor.graph_memory_usage import replace_graph_memory_usage
from sglang.srt.utils.common import get_available_gpu_memory
from torch import Tensor

from llada_sglang.graphs.body import BlockRowGraphRunner
from llada_sglang.graphs.crossover import Crossover, Timing, decide, measure
from llada_sglang.graphs.head import Candidates, HeadGraphs
from llada_sglang.graphs.inputs import padding_batch
from llada_sglang.graphs.plan import ForwardShape, GraphOptions, GraphPlan, plan_graphs
from llada_sglang.graphs.recorder import HostRecorder

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator

    from llada_sglang.decoding.statistics import ShardStatistics

logger = logging.getLogger(__name__)

GIB = 1 << 30

TIMED_KV_LEN = 2048
"""Positions a row reads in forwards that are timed. With a single block attention would not divide
a row's work, as it does in every graph and in service."""


def install(
    model_runner: Any,
    *,
    given: Any,
    block: int,
    row_budget: int,
    statistics: Callable[[Tensor], ShardStatistics],
    combine: Callable[[ShardStatistics], Candidates],
    tp_group: GroupCoordinator,
    agree: Callable[[int], int] = int,
) -> HeadGraphs | None:
    """Capture graphs, hand those of the body to the host's model runner, return those of the head.

    given: the host's ServerArgs. row_budget: most rows of a forward. statistics, combine: see
    `HeadGraphs`. agree: makes all ranks take the first one's number, as what is timed differs by
    rank. Returns None, having said why, where forwards run eagerly; RuntimeError where a capture
    fails.
    """
    options = GraphOptions.read(given)
    reason = obstacle(model_runner, options)
    if reason is not None:
        level = logging.INFO if model_runner.device == "cuda" else logging.DEBUG
        logger.log(level, "llada_sglang: no CUDA graphs: %s", reason)
        return None
    free = _free_bytes(model_runner, tp_group)
    plan = plan_graphs(
        _shape(model_runner, block, tp_group),
        options,
        row_budget=row_budget,
        free_bytes=free,
        attention_bytes=model_runner.attn_backend.graph_attention_bytes,
    )
    if plan is None:
        logger.warning(
            "llada_sglang: no CUDA graphs: not one of the sizes asked for is at most %d rows and "
            "fits in half of the %.2f GiB left; lower --mem-fraction-static",
            row_budget,
            free / GIB,
        )
        return None

    start = time.perf_counter()
    recorder = HostRecorder(model_runner.eager_runner)
    body = BlockRowGraphRunner(
        model_runner, sizes=plan.rows, block=block, recorder=recorder, padding=options.padding
    )
    head = HeadGraphs(
        body.hidden,
        sizes=plan.positions,
        statistics=statistics,
        combine=combine,
        combine_in_graph=gathers_in_graph(tp_group),
        recorder=recorder,
    )
    try:
        with torch.no_grad(), recorder.session():
            recorder.record(("workspace", 0), lambda: take(plan.workspace, model_runner.device))
            body.capture()
            head.capture()
    except RuntimeError as error:
        raise RuntimeError(
            f"capturing CUDA graphs of up to {plan.rows[-1]} rows failed: {error}. Lower "
            f"--cuda-graph-max-bs-decode or --mem-fraction-static, or run without graphs by "
            f"--cuda-graph-backend-decode disabled."
        ) from error
    torch.cuda.synchronize()
    left = _free_bytes(model_runner, tp_group)
    seconds = time.perf_counter() - start
    model_runner.graph_memory_usage = replace_graph_memory_usage(
        model_runner.graph_memory_usage, {"decode": (free - left) / GIB}, phases=("decode",)
    )
    timing = time_forwards(model_runner, body, row_budget)
    chosen = decide(timing)
    # Routed experts are kept of the last turn only.
    in_turns = chosen.in_turns and not given.enable_return_routed_experts
    body.crossover = Crossover(
        {size: agree(least) for size, least in chosen.least.items()},
        in_turns=bool(agree(int(in_turns))),
    )
    model_runner.decode_cuda_graph_runner = body
    _report(plan, body, timing, row_budget, seconds=seconds, taken=free - left, left=left)
    return head


def obstacle(model_runner: Any, options: GraphOptions) -> str | None:
    """Why forwards cannot run as graphs, or None."""
    if model_runner.device != "cuda":
        return f"the device is {model_runner.device}"
    if not options.enabled:
        return "switched off on the command line"
    backend = model_runner.attn_backend
    if not getattr(backend, "captures_block_rows", False):
        return f"{type(backend).__name__} plans no block rows for graphs"
    if not get_moe_a2a_backend().is_none():
        return "experts exchange tokens between ranks (--moe-a2a-backend)"
    if model_runner.canary_manager is not None:
        return "the KV canary watches every forward"
    return None


def gathers_in_graph(tp_group: GroupCoordinator) -> bool:
    """Whether a gather between the ranks of a group can be part of a graph.

    The host gathers through PyNccl while it captures; without it, through torch.distributed, which
    it does not capture.
    """
    return tp_group.world_size == 1 or tp_group.pynccl_comm is not None


def time_forwards(model_runner: Any, body: BlockRowGraphRunner, row_budget: int) -> Timing:
    """Time forwards of padding rows, host work included, as graphs and eagerly.

    The model runner is left with no graph runner.
    """
    vocabulary = model_runner.model.config.vocab_size
    context = model_runner.model_config.context_len // body.block * body.block
    batches = {
        rows: padding_batch(
            rows, body.block, vocabulary, model_runner.device, kv_len=min(TIMED_KV_LEN, context)
        )
        for rows in {*body.capture_bs, row_budget}
    }

    def run(runner: BlockRowGraphRunner | None, rows: int) -> None:
        model_runner.decode_cuda_graph_runner = runner
        model_runner.forward(batches[rows])

    try:
        return measure(
            body.capture_bs,
            row_budget,
            replay=lambda rows: run(body, rows),
            eager=lambda rows: run(None, rows),
            synchronize=torch.cuda.synchronize,
        )
    finally:
        model_runner.decode_cuda_graph_runner = None
        # What these forwards took is kept for their stream, which is not the one of the rounds.
        torch.cuda.empty_cache()


def take(nbytes: int, device: str) -> None:
    """Take memory in one piece and give it back to the graphs that are recorded next.

    They cut what they need out of it and put it together again. Left to itself the allocator takes
    a piece for every tensor that no earlier piece can hold, two thirds more in all for mini.
    """
    # A graph without a node would be reported as empty.
    torch.empty(nbytes, dtype=torch.uint8, device=device)[:1].zero_()


def _shape(model_runner: Any, block: int, tp_group: GroupCoordinator) -> ForwardShape:
    model = model_runner.model
    start, end = model.vocab_shard_range()
    element = model_runner.dtype.itemsize
    return ForwardShape.of(
        model.config,
        block=block,
        vocab_shard=end - start,
        element=element,
        logit=4 if model.logits_processor.use_fp32_lm_head else element,
        tp_size=tp_group.world_size,
    )


def _free_bytes(model_runner: Any, tp_group: GroupCoordinator) -> int:
    """Free device memory, the least of all ranks, so that all of them plan alike."""
    gibibytes = get_available_gpu_memory(
        model_runner.device,
        model_runner.gpu_id,
        distributed=tp_group.world_size > 1,
        cpu_group=tp_group.cpu_group,
    )
    return int(gibibytes * GIB)


def _report(
    plan: GraphPlan,
    body: BlockRowGraphRunner,
    timing: Timing,
    row_budget: int,
    *,
    seconds: float,
    taken: int,
    left: int,
) -> None:
    graphs = sum(body.crossover.parts(rows, plan.rows) is not None for rows in range(1, row_budget))
    logger.info(
        "llada_sglang: CUDA graphs of %d row counts up to %d and %d position counts up to %d: "
        "%.2f GiB (planned %.2f), %.2f GiB left, %.1f s; %d of %d row counts run as graphs",
        len(plan.rows),
        plan.rows[-1],
        len(plan.positions),
        plan.positions[-1],
        taken / GIB,
        plan.nbytes / GIB,
        left / GIB,
        seconds,
        graphs,
        row_budget,
    )
    for rows, eager in timing.eager.items():
        graph = f"{timing.graph[rows] * 1e3:.2f} ms" if rows in timing.graph else "none"
        logger.debug("llada_sglang: %d rows: graph %s, eager %.2f ms", rows, graph, eager * 1e3)
