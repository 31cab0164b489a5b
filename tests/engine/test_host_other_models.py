"""A model that is not ours is served as if the package were not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import overlays
from servers import ServerSpec, serve

FLAGS = ("--device", "cpu", "--max-total-tokens", "4096", "--random-seed", "1")
PROMPTS = [[5], list(range(2, 35)), [7, 8, 9] * 40]


def test_qwen2_gives_the_tokens_and_logprobs_of_the_unchanged_host(
    random_qwen2: Path, tmp_path: Path
) -> None:
    """The unchanged host needs some platform to start on a CPU: the least possible one is given."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    overlays.plain_cpu_platform(overlay)
    ours, log = _answers(ServerSpec(str(random_qwen2), FLAGS), tmp_path / "ours.log")
    assert "Applied" not in log
    stock_only = (("PYTHONPATH", str(overlay)), ("SGLANG_PLUGINS", "plain_cpu"))
    stock, log = _answers(
        ServerSpec(str(random_qwen2), FLAGS, environment=stock_only), tmp_path / "stock.log"
    )
    assert "llada" not in log
    assert ours == stock


def _answers(spec: ServerSpec, log_path: Path) -> tuple[list[Any], str]:
    answers = []
    with serve(spec, log_path) as server:
        for prompt in PROMPTS:
            answer = server.generate(prompt, max_new_tokens=24, return_logprob=True)
            answers.append((answer["output_ids"], answer["meta_info"]["output_token_logprobs"]))
        return answers, server.log()
