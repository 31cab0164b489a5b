"""Runs the cases of a module through Triton's interpreter: TRITON_INTERPRET=1 python <this>.

A process of its own, because Triton decides at its import whether it interprets. Arguments: where
to save, the directory of the tests, and the module, which has CASES and `fused`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def round_to_bfloat16(convert: Any) -> Any:
    """The interpreter's conversion of floats, which cuts bfloat16 off where devices round."""

    def rounded(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: Any) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.array(data)).bfloat16().view(torch.uint16).numpy()

    return rounded


if __name__ == "__main__":
    out, tests, module = sys.argv[1:]
    sys.path.insert(0, tests)
    torch.set_num_threads(1)
    interpreter._convert_float = round_to_bfloat16(interpreter._convert_float)
    cases = import_module(module)
    torch.save({name: cases.fused(case, "cpu") for name, case in cases.CASES.items()}, Path(out))
