"""The host's own decoding algorithms stay available by name."""

from __future__ import annotations

from pathlib import Path

from oracle import Oracle
from servers import ServerPool, ServerSpec


def test_low_confidence_runs_the_hosts_loop_and_gives_our_tokens(
    servers: ServerPool, random_llada2: Path, random_oracle: Oracle
) -> None:
    """Both unmask what is above 0.95, or else the best position; the loops are not the same."""
    flags = ("--attention-backend", "block_row_torch", "--dllm-algorithm", "LowConfidence")
    stock = servers.get(ServerSpec(str(random_llada2), flags))
    for prompt in ([5], list(range(3, 40)), [9, 8, 7] * 30):
        expected = random_oracle(prompt, max_new_tokens=32).output_ids
        assert tuple(stock.generate(prompt)["output_ids"]) == expected
    assert "'dllm_algorithm': 'LowConfidence'" in stock.log()
    assert "dllm_algorithm=BlockDiffusion" not in stock.log()
