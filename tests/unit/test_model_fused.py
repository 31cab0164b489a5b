"""The layers that use the package's kernels, in the host's real model, on their torch twins."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.models import llada2 as host

# The worker and the directory are that module's fixtures.
from test_model_logits import (  # noqa: F401
    BLOCK,
    Row,
    directory,
    lay_out,
    run_rows,
    worker,
)

from llada_sglang.errors import LaunchConfigError
from llada_sglang.models import cuda_layers, llada2, torch_layers


@pytest.fixture
def fused(worker: Any) -> Iterator[Any]:  # noqa: F811
    """The worker with fused attention in all layers, and a list of the layers that used it."""
    model = worker.model_runner.model.model
    before = [layer.attention.__class__ for layer in model.layers]
    cuda_layers.use_fused_kernels(model)
    yield worker
    for layer, old in zip(model.layers, before, strict=True):
        layer.attention.__class__ = old


def rows() -> list[Row]:
    torch.manual_seed(0)
    ids = torch.randint(0, 200, (4, BLOCK))
    return [(0, 0, ids[0]), (0, BLOCK, ids[1]), (0, 2 * BLOCK, ids[2]), (1, 0, ids[3])]


def test_fused_attention_gives_the_hosts_logits(
    fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[int] = []
    plain = cuda_layers.rotate_and_store

    def counted(qkv: torch.Tensor, *args: Any) -> torch.Tensor:
        stores.append(qkv.shape[0])
        return plain(qkv, *args)

    monkeypatch.setattr(cuda_layers, "rotate_and_store", counted)
    lay_out(fused, requests=2, blocks=3, seed=5)
    got = run_rows(fused, rows())
    layers = fused.model_runner.model.model.layers
    assert stores == [4 * BLOCK] * len(layers)
    for layer in layers:
        assert type(layer.attention) is cuda_layers.FusedRotaryAttention
        layer.attention.__class__ = host.LLaDA2MoeAttention
    lay_out(fused, requests=2, blocks=3, seed=6)  # nothing the first run wrote is read
    torch.testing.assert_close(got, run_rows(fused, rows()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("obstacle", ["backend", "layout", "rotary"])
def test_what_the_kernel_does_not_know_is_left_to_the_host(
    fused: Any, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    runner = fused.model_runner
    if obstacle == "backend":
        monkeypatch.setattr(type(runner.attn_backend), "reads_pool", False)
    elif obstacle == "layout":
        monkeypatch.setattr(runner.attn_backend.token_to_kv_pool, "kv_cache_layout", "hnd")
    else:
        for layer in runner.model.model.layers:
            monkeypatch.setattr(layer.attention.rotary_emb, "is_neox_style", False)

    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(cuda_layers, "rotate_and_store", never)
    lay_out(fused, requests=2, blocks=3, seed=5)
    run_rows(fused, rows())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_stays_in_torch_on_a_gpu(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    """Some of the host's kernels have no float32, and its experts multiply it as float16."""
    monkeypatch.setattr(llada2, "get_device", lambda: SimpleNamespace(device="cuda"))
    torch.set_default_dtype(dtype)
    try:
        model = llada2.LLaDA2MoeModelLM(worker.model_runner.model.config).model
    finally:
        torch.set_default_dtype(torch.float32)
    exact = dtype == torch.float32
    operators = [module for module in model.modules() if isinstance(module, BaseFusedOp)]
    assert len(operators) > 2 * len(model.layers)
    for module in operators:
        assert (module._forward_method == module.forward_native) is exact
    experts = [layer.mlp for layer in model.layers if hasattr(layer.mlp, "experts")]
    assert experts
    for block in experts:
        assert isinstance(block, torch_layers.TorchSparseMoe) is exact
        assert isinstance(block.experts.quant_method, torch_layers.TorchExperts) is exact
    for layer in model.layers:
        assert type(layer.attention) is cuda_layers.FusedRotaryAttention


@pytest.mark.parametrize("layout", torch_layers.OTHER_LAYOUTS)
def test_experts_in_the_layout_of_a_kernel_are_refused_in_float32(
    worker: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
) -> None:
    monkeypatch.setattr(llada2, "get_device", lambda: SimpleNamespace(device="cuda"))
    init = UnquantizedFusedMoEMethod.__init__

    def other(method: Any, *args: Any, **kwargs: Any) -> None:
        init(method, *args, **kwargs)
        assert getattr(method, layout) is False
        # Known once the weights are made.
        create = method.create_weights

        def made(*a: Any, **k: Any) -> None:
            create(*a, **k)
            setattr(method, layout, True)

        method.create_weights = made

    monkeypatch.setattr(UnquantizedFusedMoEMethod, "__init__", other)
    with pytest.raises(LaunchConfigError, match="--moe-runner-backend"):
        llada2.LLaDA2MoeModelLM(worker.model_runner.model.config)


def test_the_hosts_operators_in_torch_give_the_same_logits(worker: Any) -> None:  # noqa: F811
    lay_out(worker, requests=2, blocks=3, seed=5)
    expected = run_rows(worker, rows())
    model = worker.model_runner.model.model
    operators = [module for module in model.modules() if isinstance(module, BaseFusedOp)]
    before = [module._forward_method for module in operators]
    torch_layers.use_native_operators(model)
    try:
        got = run_rows(worker, rows())
    finally:
        for module, method in zip(operators, before, strict=True):
            module._forward_method = method
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
