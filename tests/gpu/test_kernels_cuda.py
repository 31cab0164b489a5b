"""The fused vocabulary statistics on the device: the cases of the interpreter, and its promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from kernel_cases import CASES, MASK, VOCAB, Case, check

from llada_sglang.kernels import vocab_statistics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@contextmanager
def host_sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_reduces_a_shard_as_defined(name: str) -> None:
    from llada_sglang.kernels.vocab_statistics import fused_vocab_statistics

    case = CASES[name]
    # The strides as they are: a copy of a view would be contiguous.
    rows, width = case.logits.shape
    wide = torch.full((rows, case.logits.stride(0)), float("inf"), dtype=case.logits.dtype)
    logits = wide.cuda()[:, :width]
    logits.copy_(case.logits)
    check(
        case,
        fused_vocab_statistics(
            logits, vocab_start=case.vocab_start, mask_id=case.mask_id, splits=case.splits
        ),
    )


@pytest.mark.parametrize("positions", [1, 5, 64, 700])
def test_the_dispatch_takes_any_number_of_positions(positions: int) -> None:
    logits = torch.randn(positions, VOCAB, device="cuda").bfloat16()
    got = vocab_statistics(logits, vocab_start=0, mask_id=MASK)
    check(Case(logits[:3].cpu()), tuple(field[:3] for field in got))
    check(Case(logits[-3:].cpu()), tuple(field[-3:] for field in got))


def test_no_host_sync_and_no_copy_of_the_logits() -> None:
    logits = torch.randn(256, VOCAB, device="cuda").bfloat16()
    vocab_statistics(logits, vocab_start=0, mask_id=MASK)  # compiled
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with host_sync_is_an_error():
        vocab_statistics(logits, vocab_start=0, mask_id=MASK)
    assert torch.cuda.max_memory_allocated() - before < logits.nbytes // 100
