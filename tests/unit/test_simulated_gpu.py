"""The simulated GPU refuses what a GPU refuses, and its graphs repeat what was captured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_gpu

pytestmark = pytest.mark.skipif(
    simulated_gpu.why_not() is not None, reason=str(simulated_gpu.why_not())
)

ON_IT = """
import pytest, torch, triton, triton.language as tl

assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
host = torch.arange(6.0)
there = host.to("cuda")
assert there.is_cuda and (there * 2).sum().item() == 30.0
assert there.new_empty(0).device == there.device
assert there.clone().resize_(2, 3).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
grown = there.clone().resize_(4, 3)
assert grown.shape == (4, 3) and grown.flatten()[:6].tolist() == host.tolist()

# Two devices.
with pytest.raises(RuntimeError, match="same device"):
    there + host
with pytest.raises(RuntimeError, match="same device"):
    torch.where(there > 1, host, 0.0)
assert (there + torch.tensor(1.0)).device == there.device, "a number of the host is none"

# Waiting where nothing may.
torch.cuda.set_sync_debug_mode("error")
for wait in (there.sum().item, there.tolist, there.cpu, there.nonzero, lambda: there[there > 1]):
    with pytest.raises(RuntimeError, match="synchronizing"):
        wait()
copied = torch.empty(6, pin_memory=True)
assert copied.is_pinned() and not host.is_pinned()
copied.copy_(there, non_blocking=True)
there.copy_(copied, non_blocking=True)
torch.cuda.set_sync_debug_mode("default")
assert torch.equal(copied, host)

# A graph reads its inputs again, keeps the host's numbers, and repeats Triton's kernels.
@triton.jit
def double(x, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, tl.load(x + at) * 2)

given, taken, number = torch.zeros(4, device="cuda"), torch.empty(4, device="cuda"), 1.0
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    moved = given + number
    double[(1,)](moved, taken, COUNT=4)
number = 5.0
given.fill_(2)
graph.replay()
assert taken.tolist() == [6.0] * 4 and moved.tolist() == [3.0] * 4
for forbidden in (given.cpu, lambda: given.sum().item(), lambda: given.copy_(torch.zeros(4))):
    with pytest.raises(RuntimeError, match="capture|graph"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            forbidden()

# Its memory has an end.
with pytest.raises(torch.OutOfMemoryError):
    torch.empty(1 << 36, device="cuda")

# The checks of a library's own host code are real.
from sgl_kernel.flash_attn import flash_attn_with_kvcache
query = torch.zeros(32, 4, 128, dtype=torch.bfloat16, device="cuda")
cache = torch.zeros(2, 32, 2, 128, dtype=torch.bfloat16, device="cuda")
lens = torch.tensor([32], dtype=torch.int32, device="cuda")
starts = torch.tensor([0, 32], dtype=torch.int32, device="cuda")
call = dict(q=query, k_cache=cache, v_cache=cache, cache_seqlens=lens, softmax_scale=1.0,
            page_table=lens[None] // 32, cu_seqlens_q=starts, max_seqlen_q=32)
assert flash_attn_with_kvcache(**call).shape == query.shape
with pytest.raises(RuntimeError, match="int32"):
    flash_attn_with_kvcache(**{**call, "page_table": call["page_table"].long()})
with pytest.raises(RuntimeError, match="dtype"):
    flash_attn_with_kvcache(**{**call, "k_cache": cache.half(), "v_cache": cache.half()})
"""


def test_it_is_as_strict_as_a_gpu(tmp_path: Path) -> None:
    script = tmp_path / "on_it.py"
    script.write_text(ON_IT)
    simulated_gpu.run(simulated_gpu.environment(tmp_path), str(script))


def test_the_command_runs_python_on_it() -> None:
    said = subprocess.run(
        [
            *(sys.executable, "-m", "simulated_gpu", "-c"),
            "import torch; print(torch.cuda.get_device_name())",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(simulated_gpu.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert said.stdout.split("\n")[-2] == "simulated GPU"
