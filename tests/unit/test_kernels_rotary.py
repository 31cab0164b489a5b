"""QK-norm, partial rotary and KV store in one launch, through Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreter import interpreted_results
from rotary_cases import ANGLES, CASES, E4M3, E5M2, NANO, POOL, Case, twin
from torch import Tensor

from llada_sglang.kernels.rotary import KVTarget, rotate_and_store, rotated_and_stored

ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_results("rotary_cases", tmp_path_factory.mktemp("kernel") / "results.pt")


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].norm])
def test_rotation_and_store_are_the_twins_to_the_bit(
    name: str, interpreted: dict[str, Any]
) -> None:
    for got, expected in zip(interpreted[name], twin(CASES[name]), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].norm])
def test_behind_the_norm_nothing_is_off_by_more_than_a_rounding(
    name: str, interpreted: dict[str, Any]
) -> None:
    """A sum of squares in another order may turn a rounding, of the projection's dtype or of the
    pool's."""
    case = CASES[name]
    queries, keys, values = interpreted[name]
    expected_queries, expected_keys, expected_values = twin(case)
    step = ULP[case.dtype]
    torch.testing.assert_close(queries, expected_queries, rtol=step, atol=step / 4)
    step = {E4M3: 2**-3, E5M2: 2**-2}.get(case.pool, step)
    torch.testing.assert_close(keys, expected_keys, rtol=step, atol=step / 4)
    off = (keys != expected_keys).float().mean()
    assert float(off.nan_to_num()) < 0.02 or case.pool == torch.float32
    assert torch.equal(values, expected_values)  # no norm, no rotation


def test_slots_that_are_none_of_the_pools_are_left_alone(interpreted: dict[str, Any]) -> None:
    case = CASES["mini"]
    written = {int(s) for s in case.slots if 0 < int(s) < POOL}
    assert 0 in case.slots
    assert int(case.slots.min()) < 0
    assert int(case.slots.max()) >= POOL
    for results in (interpreted["mini"], twin(case)):
        for pool in results[1:]:
            for slot in range(POOL):
                assert bool((pool[slot] == 7.0).all()) == (slot not in written)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_twin_is_the_hosts_own_norm_rotation_and_pool(dtype: torch.dtype) -> None:
    """sglang.srt.models.llada2.LLaDA2MoeAttention.forward, its parts one after another."""
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    shape = NANO
    case = Case(shape, dtype=dtype, pool=dtype)
    qkv, positions, _, target, norm = case.tensors("cpu")
    assert norm is not None
    rope = RotaryEmbedding(shape.head_dim, shape.rotary_dim, ANGLES, 600000, True, torch.float32)
    keep = (target.slots > 0) & (target.slots < POOL)

    widths = [shape.heads * shape.head_dim] + 2 * [shape.kv_heads * shape.head_dim]
    query, key, value = (part.contiguous() for part in qkv.split(widths, dim=-1))
    normed = []
    for part, weight in ((query, norm.query), (key, norm.key)):
        layer = RMSNorm(shape.head_dim, eps=norm.eps).to(dtype)
        layer.weight.data.copy_(weight)
        by_head = layer.forward_native(part.view(-1, shape.head_dim))
        # The rotation of the device is computed in float32; the host's torch one would be in
        # the projection's dtype.
        normed.append(by_head.view(part.shape).float())
    query, key = rope.forward_native(positions, *normed)
    pool = MHATokenToKVPool(
        size=POOL - 1,
        page_size=1,
        dtype=dtype,
        head_num=shape.kv_heads,
        head_dim=shape.head_dim,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    heads = (-1, shape.kv_heads, shape.head_dim)

    class Layer:
        layer_id = 0

    pool.set_kv_buffer(
        Layer(), target.slots[keep], key.to(dtype).view(heads)[keep], value.view(heads)[keep]
    )

    got = rotated_and_stored(qkv, positions, rope.cos_sin_cache.float(), shape, target, norm)
    assert torch.equal(got, query.to(dtype))
    slots = target.slots[keep]
    assert torch.equal(target.keys[slots], pool.get_key_buffer(0)[slots])
    assert torch.equal(target.values[slots], pool.get_value_buffer(0)[slots])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_float8_and_every_tie_between_two_is_stored_as_the_nearest(
    dtype: torch.dtype,
) -> None:
    """The twin's float8, which the kernel equals bit by bit, against all values of the dtype."""
    exact = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    finite = exact[exact.isfinite()].unique()
    middles = (finite[1:] + finite[:-1]) / 2
    from llada_sglang.kernels.rotary import _as_stored

    stored = _as_stored(finite.float(), dtype, None).double()
    assert torch.equal(stored, finite)
    between = _as_stored(middles.float(), dtype, None)
    near = (between.double() - middles).abs()
    assert torch.equal(near, torch.minimum(middles - finite[:-1], finite[1:] - middles))
    assert not bool((between.view(torch.uint8) & 1).any())  # ties go to the even code
    beyond = torch.tensor([torch.inf, 1e9, -1e9, torch.finfo(dtype).max * 1.01])
    largest = torch.finfo(dtype).max
    assert _as_stored(beyond, dtype, None).tolist() == [largest, largest, -largest, largest]


def test_a_projection_on_the_cpu_takes_the_torch_twin() -> None:
    case = CASES["nano-float32"]
    qkv, positions, cos_sin, target, norm = case.tensors("cpu")
    queries = rotate_and_store(qkv, positions, cos_sin, case.shape, target, norm)
    for got, expected in zip((queries, target.keys, target.values), twin(case), strict=True):
        assert torch.equal(got, expected)


def refused(reason: str, **change: Any) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llada_sglang.kernels.rotary_triton import fused_rotate_and_store

    qkv, positions, cos_sin, target, norm = Case(NANO, tokens=3).tensors("cpu")
    arguments: dict[str, Any] = {
        "qkv": qkv,
        "positions": positions,
        "cos_sin": cos_sin,
        "shape": NANO,
        "target": target,
        "norm": norm,
    }
    with pytest.raises(ValueError, match=reason):
        fused_rotate_and_store(**arguments | change)


def test_tensors_the_kernel_cannot_read_are_refused() -> None:
    pool = torch.zeros(POOL, 2, 64, dtype=torch.bfloat16)
    slots = torch.arange(3)
    wide = torch.zeros(1)

    def target(keys: Tensor = pool, values: Tensor = pool, **scales: Tensor) -> KVTarget:
        return KVTarget(keys, values, slots, **scales)

    refused(r"qkv must be \[tokens, 512\]", qkv=torch.zeros(3, 500))
    refused("qkv must be bfloat16", qkv=torch.zeros(3, 512, dtype=torch.float64))
    refused("rotary_dim must be even", shape=replace(NANO, rotary_dim=31))
    refused("cos_sin must be float32", cos_sin=torch.zeros(9, 32, dtype=torch.bfloat16))
    refused("positions must be", positions=torch.arange(4))
    refused("slots must be", target=KVTarget(pool, pool, torch.arange(6)[::2]))
    refused("keys must be", target=target(keys=pool.transpose(0, 1).contiguous().transpose(0, 1)))
    refused("keys and values must be alike", target=target(values=pool.float()))
    refused("key_scale must be one float32", target=target(key_scale=wide.double()))
