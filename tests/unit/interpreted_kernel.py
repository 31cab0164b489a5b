"""Runs the cases of `kernel_cases` through Triton's interpreter: TRITON_INTERPRET=1 python <this>.

A process of its own, because Triton decides at its import whether it interprets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    out, tests = sys.argv[1:]
    sys.path.insert(0, tests)
    torch.set_num_threads(1)
    from kernel_cases import CASES

    from llada_sglang.kernels.vocab_statistics import fused_vocab_statistics

    results = {}
    for name, case in CASES.items():
        before = case.logits.clone()
        results[name] = tuple(
            fused_vocab_statistics(
                case.logits,
                vocab_start=case.vocab_start,
                mask_id=case.mask_id,
                splits=case.splits,
            )
        )
        assert torch.equal(before.nan_to_num(), case.logits.nan_to_num()), "logits are only read"
    torch.save(results, Path(out))
