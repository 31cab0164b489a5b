"""Every kernel compiled for GPUs that are not there: the interpreter is no compiler."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

AMPERE, HOPPER = 80, 90
TARGETS = {AMPERE: "sm_80", HOPPER: "sm_90a"}


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, arch: int, warps: int
) -> str:
    """PTX. types: of the arguments that are no constants; pointers and strides in multiples of 16
    as the launcher finds them, but for what it is told not to specialise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    assert set(types) | set(constants) == set(names)
    free = {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
    free |= {p.name for p in kernel.params if p.do_not_specialize}
    multiples = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in types and name not in free and types[name] != "fp32"
    }
    source = ASTSource(
        kernel, {name: types.get(name, "constexpr") for name in names}, constants, multiples
    )
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    ptx: str = done.asm["ptx"]
    assert ".local" not in ptx, "an array that registers cannot hold"
    assembled = subprocess.run(
        [
            triton.knobs.nvidia.ptxas.path,
            "-v",
            f"--gpu-name={TARGETS[arch]}",
            "-o",
            os.devnull,
            "-",
        ],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    )
    assert " 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in assembled.stderr
    return ptx


def integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


@pytest.mark.parametrize(("arch", "gated"), [(AMPERE, True), (HOPPER, True), (HOPPER, False)])
def test_the_step_of_the_threshold_policy_compiles(arch: int, gated: bool) -> None:
    from llada_sglang.kernels.threshold_triton import _update_block

    pointers = {
        "tokens": "*i64",
        "masked": "*u8",
        "thresholds": "*fp64",
        "candidate": "*i64",
        "confidence": "*fp32",
    }
    if gated:
        pointers["closed"] = "*u8"
    names = ("stop_ids", "text_start", "text_end", "slots", "starts", "least", "report")
    strides = [
        f"{name}_stride"
        for name in ("token", "mask", "threshold", "stop", "slot", "start", "least")
    ]
    ptx = compiled(
        _update_block,
        pointers
        | dict.fromkeys(names, "*i64")
        | integers(*strides, "candidate_stride", "confidence_stride", "stops"),
        {"BLOCK": 32, "WIDTH": 32, "STOPS": 4} | ({} if gated else {"closed": None}),
        arch=arch,
        warps=1,
    )
    assert "fma.rn.f64" in ptx  # the logarithm of the grades, in double precision


@pytest.mark.parametrize("arch", [AMPERE, HOPPER])
def test_block_routing_compiles(arch: int) -> None:
    from llada_sglang.kernels.block_routing import SLICES, WARPS, _route_block

    ptx = compiled(
        _route_block,
        {"logits": "*fp32", "expert_bias": "*fp32", "weights": "*fp32", "ids": "*i32"}
        | integers("tokens", "logit_stride", "bias_stride"),
        {
            "EXPERTS": 256,
            "WIDTH": 256,
            "BLOCK": 32,
            "SLICE": 32 // SLICES,
            "CAPACITY": 48,
            "TOP_K": 8,
            "TOP_WIDTH": 8,
        },
        arch=arch,
        warps=WARPS,
    )
    # Unrolled over a token's experts it takes minutes to compile and cannot stay in a cache.
    assert ptx.count("\n") < 8000


@pytest.mark.parametrize("arch", [AMPERE, HOPPER])
@pytest.mark.parametrize(
    ("pool", "mantissa", "norm"), [("*bf16", 0, True), ("*bf16", 0, False), ("*u8", 3, True)]
)
def test_rotary_and_store_compile_to_wide_loads(
    arch: int, pool: str, mantissa: int, norm: bool
) -> None:
    from llada_sglang.kernels.rotary_triton import _rotate_token

    types = {"qkv": "*bf16", "queries": "*bf16", "keys": pool, "values": pool}
    types |= {"positions": "*i64", "slots": "*i64", "cos_sin": "*fp32", "eps": "fp32"}
    types |= integers("qkv_stride", "angle_stride", "key_stride", "value_stride", "pool_slots")
    weights = dict.fromkeys(("query_weight", "key_weight"), "*bf16")
    scales = dict.fromkeys(("key_scale", "value_scale"), "*fp32")
    constants: dict[str, Any] = {"HEADS": 16, "HEADS_WIDTH": 16, "KV_HEADS": 4, "KV_WIDTH": 4}
    constants |= {"DIM": 128, "DIM_WIDTH": 128, "HALF": 32, "HALF_WIDTH": 32, "REST_WIDTH": 64}
    constants |= {"FLOAT8": mantissa, "LARGEST": 448.0}
    for optional, there in ((weights, norm), (scales, mantissa > 0)):
        if there:
            types |= optional
        else:
            constants |= dict.fromkeys(optional)
    ptx = compiled(_rotate_token, types, constants, arch=arch, warps=4)
    # The rest of the queries, 16 bytes at a time, and halves of them, 8.
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    narrow = re.findall(r"ld\.global\.b16", ptx)
    assert len(narrow) <= 4, "queries are read one by one"
