"""The host's own decoding algorithms stay available by name."""

from __future__ import annotations

from pathlib import Path

from servers import ServerPool, ServerSpec


def test_low_confidence_runs_the_hosts_loop_and_gives_our_tokens(
    servers: ServerPool, random_llada2: Path
) -> None:
    """Both unmask what is above 0.95, or else the best position; the loops are not the same."""
    prompts = [[5], list(range(3, 40)), [9, 8, 7] * 30]
    flags = ("--attention-backend", "block_row_torch")
    ours = servers.get(ServerSpec(str(random_llada2), flags))
    wanted = [ours.generate(prompt)["output_ids"] for prompt in prompts]

    flags += ("--dllm-algorithm", "LowConfidence")
    stock = servers.get(ServerSpec(str(random_llada2), flags))
    assert [stock.generate(prompt)["output_ids"] for prompt in prompts] == wanted
    assert "dllm_algorithm=BlockDiffusion" in ours.log()
    assert "dllm_algorithm=BlockDiffusion" not in stock.log()
