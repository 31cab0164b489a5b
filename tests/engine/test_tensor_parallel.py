"""Two tensor-parallel ranks, over gloo on a CPU, give the text of one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checkpoints import VOCABULARY
from servers import Server, ServerPool, ServerSpec

LENGTHS = (5, 32, 47, 64, 130, 200)


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCABULARY - 2) for _ in range(length)] for length in LENGTHS]


def answers(server: Server) -> list[dict[str, Any]]:
    """Every prompt at once, at different thresholds and lengths."""

    def ask(number: int) -> dict[str, Any]:
        sampling: Mapping[str, Any] = {
            "ignore_eos": number % 2 == 0,
            "custom_params": {"threshold": (0.95, 0.02)[number % 2]},
        }
        return server.generate(prompts()[number], max_new_tokens=40 + 9 * number, sampling=sampling)

    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        return list(pool.map(ask, range(len(LENGTHS))))


def test_two_ranks_give_the_tokens_of_one(servers: ServerPool, random_llada2: Path) -> None:
    got: dict[int, list[dict[str, Any]]] = {}
    for ranks in (1, 2):
        flags = ("--dtype", "float32", "--tp-size", str(ranks))
        server = servers.get(
            ServerSpec(str(random_llada2), flags, environment=(("OMP_NUM_THREADS", "1"),))
        )
        first, cached = answers(server), answers(server)
        assert [a["output_ids"] for a in first] == [a["output_ids"] for a in cached]
        assert all(len(set(a["output_ids"])) > 2 for a in first), "no text to compare"
        got[ranks] = first
    for one, two in zip(got[1], got[2], strict=True):
        assert one["output_ids"] == two["output_ids"]
        assert one["meta_info"]["finish_reason"] == two["meta_info"]["finish_reason"]
        assert one["meta_info"]["denoise_forwards"] == two["meta_info"]["denoise_forwards"]
