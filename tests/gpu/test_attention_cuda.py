"""Attention of block rows on the device, each backend against plain torch on the same pool.

`attention.rows.attend` in float32 is what all are compared with; float32 itself is served by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import BLOCK, Forward, attend_rows, mixed_forward, prompt_forward
from torch import Tensor

from llada_sglang.attention.paged_plan import RowBatch
from llada_sglang.attention.rows import attend
from llada_sglang.attention.rows import plan_rows as plan_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

DIM, KV_HEADS, SCALING = 128, 4, 128**-0.5
GROUPS = [4, 8]
BACKENDS = ["flashinfer", "fa3", "triton"]
CACHES = {
    "bfloat16": (torch.bfloat16, 2e-2),
    # The rounding of Q and of the probabilities to e4m3, where a kernel does that.
    "fp8": (torch.float8_e4m3fn, 8e-2),
}


def on_gpu(forward: Forward) -> Forward:
    return replace(forward, req_to_token=forward.req_to_token.cuda())


def batch_of(forward: Forward, *, ids: bool = True) -> RowBatch:
    return RowBatch(
        torch.tensor(forward.requests, device="cuda"),
        torch.tensor(forward.kv_lens, device="cuda"),
        forward.kv_lens,
        forward.requests if ids else None,
    )


class Case:
    """A forward with its pool and queries; keys and values of slots no row reads are NaN.

    Except on page 0, where padding reads and nobody looks.
    """

    def __init__(self, forward: Forward, group: int, cache: torch.dtype) -> None:
        self.forward = on_gpu(forward)
        generator = torch.Generator(device="cuda").manual_seed(len(forward.rows))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

        self.query = normal(len(forward.rows) * BLOCK, group * KV_HEADS, DIM)
        shape = (forward.pages * BLOCK, KV_HEADS, DIM)
        used = torch.zeros(forward.pages * BLOCK, dtype=torch.bool, device="cuda")
        used[:BLOCK] = True
        longest: dict[int, int] = {}
        for request, kv_len in forward.rows:
            longest[request] = max(longest.get(request, 0), kv_len)
        for request, kv_len in longest.items():
            used[self.forward.req_to_token[request, :kv_len].long()] = True
        nan = torch.tensor(float("nan"), device="cuda", dtype=torch.bfloat16)
        self.keys, self.values = (
            torch.where(used[:, None, None], normal(*shape), nan).to(cache) for _ in range(2)
        )

    def expected(self) -> Tensor:
        real = self.forward.real
        groups = plan_groups(
            self.forward.requests[:real],
            self.forward.kv_lens[:real],
            [BLOCK] * real,
            self.forward.req_to_token,
            BLOCK,
        )
        query = self.query[: real * BLOCK].float()
        keys, values = self.keys.float(), self.values.float()
        return attend(query, keys, values, groups, BLOCK, SCALING)

    def check(self, run: Callable[[], Tensor], tolerance: float) -> None:
        got = run()[: self.forward.real * BLOCK].float()
        expected = self.expected()
        assert torch.isfinite(got).all()
        # Outputs shrink with the number of positions; so does what may be wrong.
        error = (got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
        assert error.mean() < tolerance
        assert error.max() < 8 * tolerance


def make_rows(backend: str, case: Case, **options: Any) -> Any:
    heads, table = case.query.shape[1], case.forward.req_to_token
    common = {"req_to_token": table, "page_size": BLOCK, "block": BLOCK}
    common["max_context"] = table.shape[1]
    if backend == "flashinfer":
        from llada_sglang.attention.flashinfer_rows import FlashInferRows
        from llada_sglang.attention.flashinfer_wrapper import Heads

        return FlashInferRows(
            **common,
            heads=Heads(heads, KV_HEADS, DIM, torch.bfloat16, case.keys.dtype),
            workspace=torch.empty(384 << 20, dtype=torch.uint8, device="cuda"),
            **options,
        )
    if backend == "fa3":
        if torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("FlashAttention 3 is the choice on Hopper alone")
        from sglang.srt.layers.attention import flashattention_backend as host

        from llada_sglang.attention.fa3_rows import FA3Rows

        return FA3Rows(
            **common,
            query_heads=heads,
            kv_heads=KV_HEADS,
            kv_dtype=case.keys.dtype,
            kernel=host.flash_attn_with_kvcache,
            merge=host.merge_state_v2_wrapper,
            processors=torch.cuda.get_device_properties("cuda").multi_processor_count,
            **options,
        )
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd_unified

    from llada_sglang.attention.triton_rows import TritonRows

    return TritonRows(**common, kernel=extend_attention_fwd_unified)


def runner(backend: str, rows: Any, case: Case) -> Callable[[], Tensor]:
    shape = (KV_HEADS, DIM) if backend == "triton" else (BLOCK, KV_HEADS, DIM)
    keys, values = case.keys.view(-1, *shape), case.values.view(-1, *shape)
    return lambda: rows.attend(case.query, keys, values, scaling=SCALING)


@contextmanager
def host_sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def long_rows(rows: int, kv_len: int) -> Forward:
    """So many requests, all at one length, a few of them at others."""
    blocks = kv_len // BLOCK
    pages = min(rows, 4) * blocks
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(rows)) + 1
    slots = (order[:, None] * BLOCK + torch.arange(BLOCK)).view(min(rows, 4), -1)
    table = torch.cat([torch.zeros(1, kv_len, dtype=torch.int64), slots]).int()
    lens = [kv_len if i % 3 else max(BLOCK, kv_len // 2 // BLOCK * BLOCK) for i in range(rows)]
    return Forward(table, [(1 + i % 4 % rows, lens[i]) for i in range(rows)], pages + 1)


def test_the_torch_backend_is_attention_by_definition_in_float32() -> None:
    case = Case(mixed_forward(2, blocks=12), 4, torch.bfloat16)
    case.query, case.keys, case.values = (
        tensor.float() for tensor in (case.query, case.keys, case.values)
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = attend_rows(case.forward, case.query, case.keys, case.values, SCALING)
    torch.testing.assert_close(case.expected(), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_any_mix(backend: str, group: int, cache: str, seed: int) -> None:
    dtype, tolerance = CACHES[cache]
    case = Case(mixed_forward(seed, blocks=48, padding=seed), group, dtype)
    rows = make_rows(backend, case)
    rows.plan(batch_of(case.forward))
    case.check(runner(backend, rows, case), tolerance)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "kv_len"),
    [(1, 32), (1, 4096), (1, 32768), (8, 32768), (32, 4096), (128, 2048), (512, 32), (512, 1024)],
)
def test_any_number_of_rows_and_any_length(
    backend: str, group: int, cache: str, rows: int, kv_len: int
) -> None:
    dtype, tolerance = CACHES[cache]
    case = Case(long_rows(rows, kv_len), group, dtype)
    made = make_rows(backend, case)
    made.plan(batch_of(case.forward))
    case.check(runner(backend, made, case), tolerance)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("backend", ["flashinfer", "fa3"])
def test_tiles_of_a_long_prompt(backend: str, group: int, cache: str) -> None:
    dtype, tolerance = CACHES[cache]
    case = Case(prompt_forward(start=130, blocks=61), group, dtype)
    rows = make_rows(backend, case, tile=4)
    rows.plan(batch_of(case.forward))
    assert rows._tokens is not None
    case.check(runner(backend, rows, case), tolerance)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_forward_follows_new_lengths_and_pages(backend: str, group: int) -> None:
    sizes = [8, 64, 512]
    forwards = {size: long_rows(size, 1024) for size in sizes}
    cases = {size: Case(forward, group, torch.bfloat16) for size, forward in forwards.items()}
    widest = cases[512]
    rows = make_rows(backend, widest)
    rows.init_graphs(512)
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
    for size in reversed(sizes):
        case = cases[size]
        rows._req_to_token = case.forward.req_to_token
        padding = Forward(case.forward.req_to_token, [(0, BLOCK)] * size, case.forward.pages)
        rows.plan_graph(batch_of(padding), capture=True)
        run = runner(backend, rows, case)
        run()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        graphs[size] = graph, out
    for size in [8, 512, 64, 8]:
        case = cases[size]
        rows._req_to_token = case.forward.req_to_token
        batch = batch_of(case.forward)
        torch.cuda.synchronize()
        with host_sync_is_an_error():
            rows.plan_graph(batch, capture=False)
            graphs[size][0].replay()
        out = graphs[size][1]
        case.check(lambda out=out: out, 2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_planning_and_attending_never_wait_for_the_device(backend: str) -> None:
    case = Case(mixed_forward(3, blocks=48), 4, torch.bfloat16)
    rows = make_rows(backend, case)
    batch = batch_of(case.forward)
    run = runner(backend, rows, case)
    for _ in range(3):
        rows.plan(batch)
        run()
    torch.cuda.synchronize()
    with host_sync_is_an_error():
        for _ in range(3):
            rows.plan(batch)
            run()


def test_plans_made_while_the_device_is_busy_do_not_overwrite_each_other() -> None:
    """The host runs ahead: a dozen plans wait behind one long kernel."""
    cases = [Case(mixed_forward(seed, blocks=24), 4, torch.bfloat16) for seed in range(12)]
    rows = make_rows("flashinfer", cases[0])
    batches = [batch_of(case.forward) for case in cases]
    rows.plan(batches[0])
    runner("flashinfer", rows, cases[0])()
    outs = []
    torch.cuda._sleep(200_000_000)
    for case, batch in zip(cases, batches, strict=True):
        rows._req_to_token = case.forward.req_to_token
        rows.plan(batch)
        outs.append(runner("flashinfer", rows, case)())
    for case, out in zip(cases, outs, strict=True):
        case.check(lambda out=out: out, 2e-2)
