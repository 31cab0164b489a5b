"""Graphs are few, fit the memory that is left, and obey the flags of the command line."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sglang.errors import LaunchConfigError
from llada_sglang.graphs.plan import (
    DRIVER_BYTES,
    LOGITS_BYTES,
    MEMORY_SHARE,
    ROUNDING,
    ForwardShape,
    GraphOptions,
    GraphPlan,
    padded_size,
    plan_graphs,
    row_sizes,
    turns,
)

GIB = 1 << 30
MINI = SimpleNamespace(
    hidden_size=2048,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    intermediate_size=5120,
    num_experts=256,
)


def mini(*, element: int = 2, tp_size: int = 1) -> ForwardShape:
    return ForwardShape.of(
        MINI,
        block=32,
        vocab_shard=157184 // tp_size,
        element=element,
        logit=element,
        tp_size=tp_size,
    )


@given(st.integers(1, 1000))
def test_row_sizes_waste_half_of_a_small_forward_and_a_quarter_of_a_large_one(most: int) -> None:
    sizes = row_sizes(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        size = padded_size(rows, sizes)
        assert size is not None
        assert rows <= size <= rows * (1.5 if rows <= 64 else 1.25)


def test_row_sizes_are_few() -> None:
    small = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert row_sizes(64) == small
    assert row_sizes(256) == (*small, 80, 96, 112, 128, 160, 192, 224, 256)


@given(st.integers(1, 5000), st.lists(st.integers(1, 500), min_size=1, unique=True))
def test_turns_cover_every_row_once_and_all_but_the_last_are_full(
    rows: int, sizes: list[int]
) -> None:
    parts = turns(rows, sorted(sizes))
    assert sum(parts) == rows
    assert all(part == max(sizes) for part in parts[:-1])
    assert 0 < parts[-1] <= max(sizes)


def test_experts_of_a_token_are_beside_the_largest_layer() -> None:
    # Eight experts with gate and up, their product, and an output each; a dense layer's three and
    # four hidden states; the router in float32.
    assert mini().beside == 2 * 8 * (3 * 512 + 2048)
    assert mini().main == 2 * (3 * 5120 + 4 * 2048) + 12 * 256
    assert mini(tp_size=4).beside == 2 * 8 * (3 * 128 + 2048)
    assert mini(tp_size=4).main == 2 * (3 * 1280 + 4 * 2048) + 12 * 256


def test_under_block_routing_shared_experts_run_beside_the_others() -> None:
    config = SimpleNamespace(
        **vars(MINI), expert_capacity=48, moe_shared_expert_intermediate_size=1024
    )
    shape = ForwardShape.of(config, block=32, vocab_shard=512, element=2, logit=2, tp_size=1)
    assert shape.beside == 2 * (3 * 1024 + 2048)
    assert shape.main == 2 * (8 * (3 * 512 + 2048) + 4 * 2048) + 12 * 256


def test_the_workspace_holds_the_largest_of_what_takes_turns_in_it() -> None:
    shape, bodies = mini(), mini().main * 32
    logits = 157184 * 2 + 2048 * 2
    assert shape.workspace(256, 32) == 256 * bodies + ROUNDING
    assert shape.workspace(256, 1536) == 1536 * logits + ROUNDING
    assert shape.workspace(1, 32, 1 << 30) == (1 << 30) + ROUNDING


@pytest.mark.parametrize("row_budget", [1, 4, 64, 256, 512])
@pytest.mark.parametrize("element", [2, 4])
def test_logits_alive_at_once_are_bounded_and_never_those_of_a_whole_step(
    row_budget: int, element: int
) -> None:
    plan = plan_graphs(
        mini(element=element), GraphOptions(), row_budget=row_budget, free_bytes=64 * GIB
    )
    assert plan is not None
    assert plan.positions[-1] * 157184 * element <= LOGITS_BYTES
    assert plan.nbytes < row_budget * 32 * 157184 * 4 + DRIVER_BYTES * 40
    # A step whose positions all fit has a size for them.
    assert plan.positions[-1] >= min(row_budget * 32, LOGITS_BYTES // (157184 * element) // 2)


def test_a_rank_with_a_part_of_the_vocabulary_takes_more_positions_at_once() -> None:
    whole, part = (
        plan_graphs(mini(tp_size=n), GraphOptions(), row_budget=256, free_bytes=64 * GIB)
        for n in (1, 4)
    )
    assert whole is not None
    assert part is not None
    assert (whole.positions[-1], part.positions[-1]) == (1536, 4096)


def test_what_attention_takes_is_part_of_the_plan() -> None:
    def plan(attention: int, free: int) -> GraphPlan | None:
        return plan_graphs(
            mini(),
            GraphOptions(),
            row_budget=64,
            free_bytes=free,
            attention_bytes=lambda rows: rows * attention,
        )

    without, planned = plan(0, 64 * GIB), plan(1 << 24, 64 * GIB)
    assert without is not None
    assert planned is not None
    assert planned.workspace == (64 << 24) + ROUNDING
    assert planned.nbytes - planned.workspace == without.nbytes - without.workspace
    tight = plan(1 << 26, 4 * GIB)
    assert tight is not None
    assert tight.rows[-1] < 64


@given(st.integers(0, 8 * GIB), st.sampled_from([1, 64, 256]))
def test_a_plan_fits_in_its_share_of_the_memory(free: int, row_budget: int) -> None:
    plan = plan_graphs(mini(), GraphOptions(), row_budget=row_budget, free_bytes=free)
    if plan is None:
        least = mini().total(1, 32) + 2 * DRIVER_BYTES
        assert least > MEMORY_SHARE * free
        return
    assert plan.nbytes <= MEMORY_SHARE * free
    used = mini().total(plan.rows[-1], plan.positions[-1])
    assert plan.nbytes == used + DRIVER_BYTES * (len(plan.rows) + len(plan.positions))


def test_less_memory_leaves_out_the_largest_sizes_first() -> None:
    plan = plan_graphs(mini(), GraphOptions(), row_budget=256, free_bytes=GIB)
    assert plan is not None
    assert plan.rows == row_sizes(256)[: len(plan.rows)]
    assert 8 <= plan.rows[-1] < 256


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (GraphOptions(most=6), (1, 2, 3, 4, 6)),
        (GraphOptions(most=5), (1, 2, 3, 4, 5)),
        (GraphOptions(most=1000), row_sizes(64)),
        (GraphOptions(sizes=(2, 7, 100)), (2, 7)),
        (GraphOptions(sizes=(2, 7), most=4), (2, 7)),
    ],
)
def test_flags_bound_the_sizes(options: GraphOptions, expected: tuple[int, ...]) -> None:
    plan = plan_graphs(mini(), options, row_budget=64, free_bytes=64 * GIB)
    assert plan is not None
    assert plan.rows == expected


@pytest.mark.parametrize("options", [GraphOptions(enabled=False), GraphOptions(sizes=(100,))])
def test_no_graphs_where_none_are_wanted_or_none_is_small_enough(options: GraphOptions) -> None:
    assert plan_graphs(mini(), options, row_budget=64, free_bytes=64 * GIB) is None


def server_args(model: Path, *flags: str) -> Any:
    """What the host makes of a command line, in the process that parsed it."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return ServerArgs.from_cli_args(parser.parse_args(["--model-path", str(model), *flags]))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), GraphOptions()),
        (("--disable-cuda-graph",), GraphOptions(enabled=False)),
        (("--disable-decode-cuda-graph",), GraphOptions(enabled=False)),
        (("--cuda-graph-backend-decode", "disabled"), GraphOptions(enabled=False)),
        (("--disable-prefill-cuda-graph",), GraphOptions()),
        (("--cuda-graph-max-bs-decode", "48"), GraphOptions(most=48)),
        (("--cuda-graph-bs-decode", "8", "2", "2"), GraphOptions(sizes=(2, 8))),
        (("--disable-cuda-graph-padding",), GraphOptions(padding=False)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_flags_of_the_host_are_read(
    nano: Path, flags: tuple[str, ...], expected: GraphOptions
) -> None:
    assert GraphOptions.read(server_args(nano, *flags)) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cuda-graph-max-bs-decode", "0"), "--cuda-graph-max-bs-decode must be at least 1"),
        (("--cuda-graph-bs-decode", "4", "-1"), "--cuda-graph-bs-decode must be at least 1 row"),
    ],
)
def test_a_size_below_one_row_is_an_error(nano: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(LaunchConfigError, match=message):
        GraphOptions.read(server_args(nano, *flags))


def test_what_we_declare_for_the_hosts_graphs_is_not_taken_for_the_users_wish(
    nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own default switches the host's graphs off; the scheduler still sees no such flag."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolved_view

    args = server_args(nano, "--cuda-graph-max-bs-decode", "16")
    declare_resolution(args, "test", disable_cuda_graph=True)
    there = pickle.loads(pickle.dumps(args))
    assert resolved_view(there).disable_cuda_graph is True
    assert GraphOptions.read(there) == GraphOptions(most=16)
