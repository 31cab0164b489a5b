"""Attention's Triton kernels interpreted: page numbers, and rows on the host's kernel."""

from __future__ import annotations

import interpreter
import pytest
import torch
from torch import Tensor

Results = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("attention") / "results.pt"
    return interpreter.interpreted("interpreted_attention.py", out)


def test_the_kernel_writes_the_pages_that_the_torch_twin_writes(interpreted: Results) -> None:
    names = [name for name in interpreted if name.startswith(("list", "table"))]
    assert any(name.endswith("False") for name in names), "no forward of tiles among the cases"
    for name in names:
        kernel, twin = interpreted[name]
        assert torch.equal(kernel, twin), name


@pytest.mark.parametrize("name", ["attend-0", "attend-1"])
def test_rows_on_the_hosts_kernel_are_attention_by_definition(
    name: str, interpreted: Results
) -> None:
    got, expected = interpreted[name]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
