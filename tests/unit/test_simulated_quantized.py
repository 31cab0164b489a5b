"""Kernels for quantised weights on the simulated GPU read what the host's own tests store."""

from __future__ import annotations

from pathlib import Path

import pytest
import simulated_gpu

pytestmark = pytest.mark.skipif(
    simulated_gpu.why_not() is not None, reason=str(simulated_gpu.why_not())
)

ON_IT = """
import torch
from sgl_kernel.scalar_type import scalar_types
from sglang.kernels.ops.gemm.gptq_marlin import gptq_marlin_gemm
from sglang.kernels.ops.quantization.awq_marlin_repack import awq_marlin_repack
from sglang.kernels.ops.quantization.gptq_marlin_repack import gptq_marlin_repack
from sglang.srt.layers.quantization.marlin_utils import marlin_make_workspace
from sglang.test import test_marlin_utils as theirs

def close(found, meant):
    return ((found.float() - meant.float()).abs().max() / meant.float().abs().max()).item() < 0.02

def near(found, meant):
    error = ((found.float() - meant.float()).norm() / meant.float().norm()).item()
    assert error < 0.05, error

K, N = 256, 128
torch.manual_seed(0)
weight = torch.randn(K, N).bfloat16().cuda()
tokens = torch.randn(33, K).bfloat16().cuda()
workspace = marlin_make_workspace(tokens.device)

# Marlin: their quantiser's layout, order and scales.
def product(words, scales, zeros, g_idx, order, kind):
    return gptq_marlin_gemm(tokens, None, words, scales, None, zeros, g_idx, order, workspace,
                            kind, 33, N, K)

for kind in (scalar_types.uint4b8, scalar_types.uint8b128):
    for group, ordered in ((128, False), (32, True), (-1, False)):
        meant, words, scales, g_idx, order, _ = theirs.marlin_quantize(weight, kind, group, ordered)
        found = product(words, scales, None, g_idx, order, kind)
        assert close(found, tokens @ meant), (kind, group, ordered)
        assert not close(product(words, scales * 2, None, g_idx, order, kind), tokens @ meant)
for group in (128, 32, -1):
    kind = scalar_types.uint4
    meant, words, scales, zeros = theirs.awq_marlin_quantize(weight, kind, group)
    assert close(product(words, scales, zeros, None, None, kind), tokens @ meant), group
    assert not close(product(words, scales, zeros ^ 0x1111, None, None, kind), tokens @ meant)

# The layouts checkpoints store become theirs.
levels = torch.randint(0, 16, (K, N)).cuda()
stored = theirs.marlin_weights(levels, K, N, 4, theirs.get_weight_perm(4))
def packed(columns):
    return (columns.long() << torch.arange(0, 32, 4).cuda()).sum(-1).int()
by_rows = packed(levels.view(K // 8, 8, N).transpose(1, 2))
by_columns = packed(levels.view(K, N // 8, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]])
nothing = torch.empty(0, dtype=torch.int32, device="cuda")
assert torch.equal(gptq_marlin_repack(by_rows, nothing, K, N, 4), stored)
assert torch.equal(awq_marlin_repack(by_columns, K, N, 4), stored)
order = torch.randperm(K).int().cuda()
sorted_rows = theirs.marlin_weights(levels[order.long()], K, N, 4, theirs.get_weight_perm(4))
assert torch.equal(gptq_marlin_repack(by_rows, order, K, N, 4), sorted_rows)

# fp8: quantised and multiplied, by blocks and by rows.
from sglang.kernels.ops.gemm import fp8_scaled_mm
from sglang.kernels.ops.gemm.fp8_kernel import w8a8_block_fp8_matmul_triton
from sglang.kernels.ops.quantization.fp8_kernel import (
    scaled_fp8_quant, sglang_per_token_group_quant_fp8, sglang_per_token_quant_fp8,
    static_quant_fp8)

rows = weight.T.contiguous()
a, a_scale = sglang_per_token_group_quant_fp8(tokens, 128)
b, b_scale = sglang_per_token_group_quant_fp8(rows, 128)
b_scale = b_scale.amax(0)[None]  # of one block of 128 rows
spread = (b.float().view(N, 2, 128) * b_scale[..., None]).view(N, K)
found = w8a8_block_fp8_matmul_triton(a, b, a_scale, b_scale, [128, 128], torch.bfloat16)
near(found, tokens.float() @ spread.T)
a, a_scale = sglang_per_token_quant_fp8(tokens)
b, b_scale = sglang_per_token_quant_fp8(rows)
near(a.float() * a_scale, tokens)
for bias in (None, torch.randn(N).bfloat16().cuda()):
    found = fp8_scaled_mm(a, b.T, a_scale, b_scale, torch.bfloat16, bias)
    near(found, tokens.float() @ weight.float() + (0 if bias is None else bias.float()))
dynamic, scale = scaled_fp8_quant(tokens)
near(dynamic.float() * scale, tokens)
static, same = scaled_fp8_quant(tokens, scale)
assert torch.equal(static.view(torch.uint8), dynamic.view(torch.uint8)) and same is scale
static, repeated = static_quant_fp8(tokens, scale, repeat_scale=True)
assert torch.equal(static.view(torch.uint8), dynamic.view(torch.uint8))
assert (repeated == scale).all() and repeated.shape == (33, 1)
"""


def test_marlin_and_fp8_kernels_multiply_what_is_stored(tmp_path: Path) -> None:
    script = tmp_path / "on_it.py"
    script.write_text(ON_IT)
    simulated_gpu.run(simulated_gpu.environment(tmp_path), str(script))
