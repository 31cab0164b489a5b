"""Block rows inside the host: its model, pools and batches, with ours as its attention backend."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cases import attend_slots
from test_attention_fa3 import TorchKernel
from test_model_logits import (  # noqa: F401
    BLOCK,
    directory,
    lay_out,
    run_rows,
    worker,
)

from llada_sglang.attention import RowBackendFactory
from llada_sglang.attention.choice import (
    FA3,
    FLASHINFER,
    TORCH,
    TRITON,
    default_backend,
    require_support,
)
from llada_sglang.attention.fa3_rows import FA3Rows
from llada_sglang.errors import LaunchConfigError


def backend(runner: Any, *, graph: bool) -> Any:
    """The mixin over the host's torch backend, on FA3's interface; planned as graphs are or not."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.mem_cache.layout.paged_view import paged_kv_view

    from llada_sglang.attention.host_forwards import BlockRowForwards

    class Backend(BlockRowForwards, TorchNativeAttnBackend):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(runner)
            config = runner.model_config
            self._rows: FA3Rows = FA3Rows(
                req_to_token=runner.req_to_token_pool.req_to_token,
                page_size=BLOCK,
                block=runner.decode_num_tokens_per_req(),
                query_heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                kv_dtype=runner.kv_cache_dtype,
                max_context=config.context_len,
                kernel=TorchKernel(),
                merge=lambda *parts: pytest.fail("nothing to merge"),
                processors=4,
            )

        def init_forward_metadata(self, forward_batch: Any) -> None:
            if graph:
                self.init_forward_metadata_out_graph(forward_batch, in_capture=True)
                self.init_forward_metadata_in_graph(forward_batch)
            else:
                super().init_forward_metadata(forward_batch)

        def _attend(self, query: Any, layer: Any) -> Any:
            keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
            return self._rows.attend(
                query,
                paged_kv_view(keys, BLOCK, layer.tp_k_head_num, layer.head_dim),
                paged_kv_view(values, BLOCK, layer.tp_v_head_num, layer.v_head_dim),
                scaling=layer.scaling,
            )

    return Backend()


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_forward_of_the_model_is_the_torch_backends(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    graph: bool,
) -> None:
    runner = worker.model_runner
    lay_out(worker, requests=2, blocks=4, seed=5)
    generator = torch.Generator().manual_seed(5)
    rows = [
        (request, start * BLOCK, torch.randint(0, 200, (BLOCK,), generator=generator))
        for request, start in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1))
    ]
    expected = run_rows(worker, rows)
    ours = backend(runner, graph=graph)
    ours.init_cuda_graph_state(8, 8 * BLOCK)
    monkeypatch.setattr(runner, "attn_backend", ours)
    runner.token_to_kv_pool.get_key_buffer(0).fill_(float("nan"))
    got = run_rows(worker, rows)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_hosts_flashinfer_backend_carries_ours(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its real constructor, pool and model around FlashInfer's Python; only kernels are torch."""
    library = pytest.importorskip("flashinfer")
    from sglang.srt.layers.attention import flashinfer_backend as host
    from test_attention_flashinfer import TorchModule, on_cpu

    for name in ("Decode", "Prefill"):
        wrapper = f"Batch{name}WithPagedKVCacheWrapper"
        monkeypatch.setattr(host, wrapper, getattr(library, wrapper), raising=False)
    ragged = "BatchPrefillWithRaggedKVCacheWrapper"
    monkeypatch.setattr(host, ragged, getattr(library, ragged), raising=False)
    module = TorchModule()
    on_cpu(monkeypatch, module)
    from llada_sglang.attention.flashinfer_backend import BlockRowFlashInferBackend

    compare(worker, BlockRowFlashInferBackend, monkeypatch)
    assert len(module.plans) == 1, "one plan for all layers"


def test_the_hosts_fa3_backend_carries_ours(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its real constructor, pool and model; the compiled library it imports is not there."""
    compiled, kernels = ModuleType("sgl_kernel"), ModuleType("sgl_kernel.flash_attn")
    compiled.merge_state_v2 = kernels.get_scheduler_metadata = None  # type: ignore[attr-defined]
    kernels.flash_attn_varlen_func = None  # type: ignore[attr-defined]
    kernels.flash_attn_with_kvcache = None  # type: ignore[attr-defined]
    ours, theirs = "llada_sglang.attention.fa3_backend", "flashattention_backend"
    attention = import_module("sglang.srt.layers.attention")
    with monkeypatch.context() as only_here:
        only_here.setitem(sys.modules, "sgl_kernel", compiled)
        only_here.setitem(sys.modules, "sgl_kernel.flash_attn", kernels)
        for name in (ours, f"{attention.__name__}.{theirs}"):
            only_here.delitem(sys.modules, name, raising=False)
        host = import_module(f"{attention.__name__}.{theirs}")
        only_here.setattr(host, "flash_attn_with_kvcache", TorchKernel())
        device = SimpleNamespace(multi_processor_count=132)
        only_here.setattr(torch.cuda, "get_device_properties", lambda *_: device)
        compare(worker, import_module(ours).BlockRowFA3Backend, only_here)
        assert len(host.flash_attn_with_kvcache.calls) == len(
            worker.model_runner.model.model.layers
        )
    for name in (ours, f"{attention.__name__}.{theirs}"):
        sys.modules.pop(name, None)
    vars(attention).pop(theirs, None)


def test_the_hosts_triton_backend_carries_ours(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its real constructor, pool and model; the kernel itself is interpreted elsewhere."""
    from sglang.kernels.ops.attention import extend_attention

    from llada_sglang.attention.triton_backend import BlockRowTritonBackend

    real = inspect.signature(extend_attention.extend_attention_fwd_unified)
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> None:
        given = real.bind(*args, **kwargs).arguments
        calls.append(given)
        assert given["is_causal"] is False
        bounds, slots = given["kv_indptr"].tolist(), given["kv_indices"]
        for i, queries in enumerate(given["q"].split(BLOCK)):
            read = slots[bounds[i] : bounds[i + 1]].tolist()
            out, _ = attend_slots(
                queries, given["k_buffer"], given["v_buffer"], read, given["sm_scale"]
            )
            given["o"][i * BLOCK : (i + 1) * BLOCK] = out

    monkeypatch.setattr(extend_attention, "extend_attention_fwd_unified", kernel)
    compare(worker, BlockRowTritonBackend, monkeypatch)
    assert len(calls) == len(worker.model_runner.model.model.layers)


def compare(worker: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A forward of the model with one of our backends, and with the torch backend."""
    runner = worker.model_runner
    lay_out(worker, requests=2, blocks=4, seed=6)
    generator = torch.Generator().manual_seed(6)
    rows = [
        (request, start * BLOCK, torch.randint(0, 200, (BLOCK,), generator=generator))
        for request, start in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1))
    ]
    expected = run_rows(worker, rows)
    ours = backend(runner)
    with monkeypatch.context() as swapped:
        swapped.setattr(runner, "attn_backend", ours)
        runner.token_to_kv_pool.get_key_buffer(0).fill_(float("nan"))
        torch.testing.assert_close(run_rows(worker, rows), expected, rtol=1e-4, atol=1e-4)


def batch(**fields: Any) -> Any:
    lens = torch.tensor([BLOCK, 3 * BLOCK])
    given = {
        "batch_size": 2,
        "positions": torch.zeros(2 * BLOCK),
        "req_pool_indices": torch.tensor([4, 4]),
        "seq_lens": lens,
        "seq_lens_cpu": lens,
        "model_specific_states": None,
    }
    return SimpleNamespace(**(given | fields))


def test_a_batch_names_its_requests_for_tiles_only_where_the_runner_did() -> None:
    from llada_sglang.attention.host_forwards import ROW_REQUESTS, row_batch

    assert row_batch(batch(), BLOCK).request_ids is None
    named = row_batch(batch(model_specific_states={ROW_REQUESTS: [4, 4]}), BLOCK)
    assert named.request_ids == [4, 4]
    assert named.kv_lens_host == [BLOCK, 3 * BLOCK]
    assert row_batch(batch(seq_lens_cpu=None), BLOCK).kv_lens_host == [BLOCK, 3 * BLOCK]


@pytest.mark.parametrize(
    ("query_heads", "named", "wanted"), [(4, True, True), (4, False, False), (16, True, False)]
)
def test_graphs_are_declined_where_a_prompt_has_tiles(
    query_heads: int, named: bool, wanted: bool
) -> None:
    from llada_sglang.attention.fa3_rows import FA3Rows
    from llada_sglang.attention.host_forwards import ROW_REQUESTS, BlockRowForwards

    class Backend(BlockRowForwards):
        _attend = None  # nothing is attended here

    backend = Backend()
    backend._rows = FA3Rows(
        req_to_token=torch.zeros(8, 512, dtype=torch.int32),
        page_size=BLOCK,
        block=BLOCK,
        query_heads=query_heads,
        kv_heads=4,
        kv_dtype=torch.bfloat16,
        max_context=512,
        kernel=lambda **_: None,
        merge=lambda *_: (_[0], _[1]),
        processors=4,
        min_prefix=2 * BLOCK,
    )
    lens = torch.tensor([3 * BLOCK, 4 * BLOCK])
    states = {ROW_REQUESTS: [4, 4]} if named else None
    forward = batch(seq_lens=lens, seq_lens_cpu=lens, model_specific_states=states)
    assert backend.prefers_eager(forward) is wanted


def test_a_forward_that_is_not_whole_rows_is_refused() -> None:
    from llada_sglang.attention.host_forwards import row_batch

    with pytest.raises(ValueError, match=r"2 block rows has 64 tokens, got 63"):
        row_batch(batch(positions=torch.zeros(63)), BLOCK)


@pytest.mark.parametrize("name", ["flashinfer", "triton"])
def test_the_mixin_overrides_methods_that_the_host_has_and_calls(name: str) -> None:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

    from llada_sglang.attention.host_forwards import BlockRowForwards

    module = pytest.importorskip(f"sglang.srt.layers.attention.{name}_backend")
    host = {"flashinfer": "FlashInferAttnBackend", "triton": "TritonAttnBackend"}[name]
    for method in (
        "init_forward_metadata",
        "init_cuda_graph_state",
        "init_forward_metadata_out_graph",
        "init_forward_metadata_in_graph",
        "get_cuda_graph_seq_len_fill_value",
        "forward_extend",
    ):
        ours = inspect.signature(getattr(BlockRowForwards, method)).parameters
        for theirs in (AttentionBackend, getattr(module, host)):
            names = list(inspect.signature(getattr(theirs, method)).parameters)
            assert list(ours)[: min(len(ours), len(names), 3)] == names[: min(len(names), 3)]


def test_only_our_algorithm_gets_our_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    runner = SimpleNamespace(dtype=torch.float32, kv_cache_dtype=torch.float32)
    factory = RowBackendFactory(FLASHINFER, lambda runner: "the host's")
    for algorithm in (None, "LowConfidence"):
        dllm = SimpleNamespace(dllm=SimpleNamespace(dllm_algorithm=algorithm))
        monkeypatch.setattr(runtime_context, "get_exec", lambda dllm=dllm: dllm)
        assert factory(runner) == "the host's"
    dllm = SimpleNamespace(dllm=SimpleNamespace(dllm_algorithm="BlockDiffusion"))
    monkeypatch.setattr(runtime_context, "get_exec", lambda: dllm)
    with pytest.raises(LaunchConfigError, match="--dtype bfloat16 or float16"):
        factory(runner)


def test_registering_again_wraps_the_hosts_factory_once() -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from llada_sglang import attention

    attention.register()
    attention.register()
    for name in (FLASHINFER, FA3, TRITON):
        made = ATTENTION_BACKENDS[name]
        assert isinstance(made, RowBackendFactory)
        assert not isinstance(made.host, RowBackendFactory)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"hopper": True, "flashinfer": True}, FA3),
        ({"hopper": True, "flashinfer": False}, FA3),
        ({"hopper": False, "flashinfer": True}, FLASHINFER),
        ({"hopper": False, "flashinfer": False}, TRITON),
        ({"hopper": False, "flashinfer": False, "nvidia": False}, TRITON),
        ({"hopper": True, "flashinfer": True, "kv_cache_dtype": "fp8_e4m3"}, FA3),
        ({"hopper": True, "flashinfer": True, "kv_cache_dtype": "fp8_e5m2"}, FLASHINFER),
        ({"hopper": True, "flashinfer": True, "dtype": "float32"}, TORCH),
    ],
)
def test_the_backend_follows_the_device_and_the_dtypes(given: Any, expected: str) -> None:
    assert default_backend(**({"dtype": "bfloat16", "kv_cache_dtype": "auto"} | given)) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "kv_dtype", "message"),
    [
        (FA3, "float32", "float32", "got float32: its kernels multiply 16-bit"),
        (TRITON, "float32", "float32", "as TF32. Use --attention-backend block_row_torch"),
        (FA3, "bfloat16", "float8_e5m2", "KV cache of bfloat16 or float8_e4m3fn"),
        (FLASHINFER, "float16", "bfloat16", "got bfloat16"),
    ],
)
def test_dtypes_that_a_backend_cannot_compute_are_refused(
    name: str, dtype: str, kv_dtype: str, message: str
) -> None:
    with pytest.raises(LaunchConfigError, match=message):
        require_support(name, dtype, kv_dtype)


def test_dtypes_that_a_backend_computes_are_not_refused() -> None:
    require_support(FA3, "bfloat16", "float8_e4m3fn")
    require_support(FLASHINFER, "float16", "float16")
    require_support(TRITON, "bfloat16", "float8_e5m2")
