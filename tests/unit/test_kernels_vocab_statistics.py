"""The fused vocabulary statistics, through Triton's interpreter, and their dispatch."""

from __future__ import annotations

import subprocess
import sys

import interpreter
import pytest
import torch
from kernel_cases import CASES, MASK, VOCAB, check, real_vocabulary
from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, combine_shards, shard_statistics
from llada_sglang.kernels import vocab_statistics

Results = dict[str, tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("kernel") / "results.pt"
    return interpreter.interpreted("interpreted_kernel.py", out)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_reduces_a_shard_as_defined(name: str, interpreted: Results) -> None:
    check(CASES[name], interpreted[name])


@pytest.mark.parametrize("name", [n for n in CASES if n != "no-position"])
def test_the_torch_twin_reduces_a_shard_as_defined(name: str) -> None:
    case = CASES[name]
    logits = case.logits.float().clone()
    check(case, shard_statistics(logits, vocab_start=case.vocab_start, mask_id=case.mask_id))


@pytest.mark.parametrize("splits", [1, 2, 7, 38, 64])
def test_any_split_of_the_vocabulary_names_the_same_tokens(
    splits: int, interpreted: Results
) -> None:
    split = interpreted[f"real-vocabulary-in-{splits}-splits"]
    whole = interpreted["bfloat16-shard-0-of-1"]
    assert torch.equal(split[0], whole[0])
    assert torch.equal(split[1], whole[1])
    torch.testing.assert_close(split[2], whole[2], rtol=1e-5, atol=0)


def test_two_shards_combine_to_a_softmax_over_the_whole_vocabulary(interpreted: Results) -> None:
    parts = [interpreted[f"float32-shard-{rank}-of-2"] for rank in (0, 1)]
    stacked = ShardStatistics(*(torch.stack(field) for field in zip(*parts, strict=True)))
    candidate, confidence = combine_shards(stacked)
    legal = real_vocabulary().double()
    legal[:, MASK] = -torch.inf
    assert candidate.tolist() == legal.argmax(dim=-1).tolist()
    torch.testing.assert_close(
        confidence.double(), legal.softmax(dim=-1).amax(dim=-1), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_on_the_cpu_take_the_torch_twin(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = shard_statistics(logits.float().clone(), vocab_start=10, mask_id=20)
    got = vocab_statistics(logits, vocab_start=10, mask_id=20)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_compiled_for_hopper_it_reads_16_bytes_at_a_time(
    dtype: str,
) -> None:
    """One condition too many in the mask of the load makes it one element wide."""
    pytest.importorskip("triton", reason="Triton is not installed")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from llada_sglang.kernels.vocab_statistics import STAGES, TILE, WARPS, _reduce_columns

    pointers = {"logits": f"*{dtype}", "maximum": "*fp32", "token": "*i64", "sum_exp": "*fp32"}
    numbers = ("row_stride", "shard", "chunk", "vocab_start", "mask_column")
    constants = {"TILE": TILE, "STAGES": STAGES}
    signature = pointers | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    # As the launcher specialises: pointers, stride, width and chunk are multiples of 16.
    multiples = {(i,): [["tt.divisibility", 16]] for i in range(7)}
    compiled = triton.compile(
        ASTSource(_reduce_columns, signature, constants, multiples),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": WARPS},
    )
    ptx = compiled.asm["ptx"]
    assert "cp.async.cg.shared.global" in ptx  # 16 bytes, by definition
    assert "cp.async.ca" not in ptx
    assert "ld.global" not in ptx


def test_few_positions_are_split_so_that_they_fill_the_device() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llada_sglang.kernels.vocab_statistics import MAX_SPLITS, TILE, split_count

    programs = 132 * 4
    assert split_count(1, VOCAB, programs) == MAX_SPLITS
    assert split_count(1, 10 * TILE, programs) == 10
    assert split_count(33, VOCAB, programs) == 16
    assert split_count(programs, VOCAB, programs) == 1
    assert split_count(10**6, VOCAB, programs) == 1
    assert split_count(1, 100, programs) == 1
    assert split_count(0, VOCAB, programs) == 1


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (torch.zeros(4), "must be"),
        (torch.zeros(4, 0), "shard > 0"),
        (torch.zeros(8, 4).t(), "contiguous rows"),
        (torch.zeros(4, 8, dtype=torch.float64), "float64"),
    ],
)
def test_logits_the_kernel_cannot_read_are_refused(logits: Tensor, reason: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llada_sglang.kernels.vocab_statistics import fused_vocab_statistics

    with pytest.raises(ValueError, match=reason):
        fused_vocab_statistics(logits, vocab_start=0, mask_id=0)


def test_the_package_imports_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from llada_sglang.kernels import vocab_statistics\n"
        "vocab_statistics(torch.zeros(1, 4), vocab_start=0, mask_id=0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
