"""Two tensor-parallel ranks, over gloo on a CPU, give the reference's text, as one rank does."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checkpoints import VOCABULARY
from oracle import Oracle
from servers import Server, ServerPool, ServerSpec

LENGTHS = (5, 32, 47, 64, 130, 200)


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCABULARY - 2) for _ in range(length)] for length in LENGTHS]


def asked(number: int) -> dict[str, Any]:
    """What is asked behind a prompt: different thresholds and lengths."""
    return {
        "max_new_tokens": 40 + 9 * number,
        "ignore_eos": number % 2 == 0,
        "threshold": (0.95, 0.02)[number % 2],
    }


def answers(server: Server) -> list[dict[str, Any]]:
    """Every prompt at once."""

    def ask(number: int) -> dict[str, Any]:
        case = asked(number)
        sampling: Mapping[str, Any] = {
            "ignore_eos": case["ignore_eos"],
            "custom_params": {"threshold": case["threshold"]},
        }
        most = case["max_new_tokens"]
        return server.generate(prompts()[number], max_new_tokens=most, sampling=sampling)

    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        return list(pool.map(ask, range(len(LENGTHS))))


def test_two_ranks_give_the_tokens_of_the_reference(
    servers: ServerPool, random_llada2: Path, random_oracle: Oracle
) -> None:
    flags = ("--dtype", "float32", "--tp-size", "2")
    environment = (("OMP_NUM_THREADS", "1"),)
    server = servers.get(ServerSpec(str(random_llada2), flags, environment=environment))
    first, cached = answers(server), answers(server)
    assert [a["output_ids"] for a in first] == [a["output_ids"] for a in cached]
    for number, answer in enumerate(first):
        expected = random_oracle(prompts()[number], **asked(number))
        assert len(set(expected.output_ids)) > 2, "no text to compare"
        assert tuple(answer["output_ids"]) == expected.output_ids
        assert answer["meta_info"]["finish_reason"]["type"] == expected.finish_reason
        assert answer["meta_info"]["denoise_forwards"] == expected.forwards
