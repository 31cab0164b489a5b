"""What Prometheus and the log say about a server, against what its answers say."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, ServerPool, ServerSpec

BLOCK = 32
LOG_INTERVAL = 8
POOL = 1024
KINDS = ("prefill", "denoise", "commit")


@pytest.fixture(scope="module")
def server(servers: ServerPool, random_llada2: Path) -> Server:
    """A server that takes more requests than its pool can hold to their end."""
    flags = (
        *("--enable-metrics", "--decode-log-interval", str(LOG_INTERVAL)),
        *("--max-total-tokens", str(POOL), "--max-running-requests", "4"),
        *("--schedule-conservativeness", "0.01", "--dtype", "float32"),
    )
    return servers.get(ServerSpec(str(random_llada2), flags))


class Metrics:
    """One reading of /metrics."""

    def __init__(self, server: Server) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(server.get("/metrics").decode()):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all series of `sglang:<name>` with these labels; 0 if there is none."""
        return sum(
            value
            for has, value in self._samples.get(f"sglang:{name}", [])
            if labels.items() <= has.items()
        )

    def labels(self, name: str) -> set[str]:
        return {label for has, _ in self._samples[f"sglang:{name}"] for label in has}


def eventually(server: Server, holds: Callable[[Metrics], bool]) -> Metrics:
    """Read /metrics until it is so: an answer leaves before its round is counted."""
    deadline = time.monotonic() + 120
    while True:
        metrics = Metrics(server)
        if holds(metrics):
            return metrics
        assert time.monotonic() < deadline, server.get("/metrics").decode()
        time.sleep(0.2)


def ask(server: Server, prompt: list[int], tokens: int) -> dict[str, Any]:
    sampling = {"ignore_eos": True}
    info: dict[str, Any] = server.generate(prompt, max_new_tokens=tokens, sampling=sampling)[
        "meta_info"
    ]
    return info


def prompt_of(length: int, seed: int) -> list[int]:
    return [(seed * 31 + i * 7) % 200 for i in range(length)]


def test_forwards_rows_and_tokens_are_counted_as_the_answers_say(server: Server) -> None:
    before = eventually(server, lambda m: m("num_running_reqs") == 0)
    # One after the other: then every forward is of one request.
    infos = [ask(server, prompt_of(100, seed), 64) for seed in (1, 2, 1)]
    after = eventually(
        server,
        lambda m: (
            m("llada_tokens_per_forward_count") >= before("llada_tokens_per_forward_count") + 3
        ),
    )

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    denoised = sum(info["denoise_forwards"] for info in infos)
    cached = sum(info["cached_tokens"] for info in infos)
    assert cached == 96, "the third prompt was to be found in the cache"
    assert grown("llada_rows_total", kind="denoise") == denoised
    assert grown("llada_forwards_total", kind="denoise") == denoised
    # 100 prompt tokens: three full blocks, then a block of 4 + 28, two of 32, one of 4 tokens.
    assert grown("llada_rows_total", kind="prefill") == 2 * 3
    assert grown("llada_forwards_total", kind="prefill") == sum(
        info["prefill_forwards"] for info in infos
    )
    assert grown("llada_rows_total", kind="commit") == 3 * 2
    # A commit rides with the next block's first step, and here a prefill with the first block's.
    assert grown("llada_forwards_total", kind="commit") == 3 * 2
    assert grown("llada_rows_per_forward_count") == denoised
    assert grown("llada_rows_per_forward_sum") == sum(
        grown("llada_rows_total", kind=kind) for kind in KINDS
    )
    assert grown("llada_tokens_per_forward_sum") == pytest.approx(
        sum(info["completion_tokens"] / info["denoise_forwards"] for info in infos)
    )
    assert grown("realtime_tokens_total", mode="decode") == 3 * 64
    assert grown("realtime_tokens_total", mode="prefill_cache") == cached
    assert grown("realtime_tokens_total", mode="prefill_compute") == 3 * 100 - cached
    assert grown("prefill_effective_tokens_total", mode="device_hit") == cached
    assert grown("prefill_effective_tokens_total", mode="input") == 3 * 100 - cached


def test_our_series_carry_the_labels_of_the_hosts(server: Server) -> None:
    metrics = Metrics(server)
    host = metrics.labels("num_running_reqs")
    for name in ("llada_forwards_total", "llada_rows_total"):
        assert metrics.labels(name) == host | {"kind"}
    assert metrics.labels("llada_tokens_per_forward_count") == host


def test_the_cache_hit_rate_is_that_of_the_last_prompts(server: Server) -> None:
    prompt = prompt_of(90, 9)
    ask(server, prompt, 4)
    time.sleep(1.1)  # gauges are that old at most
    info = ask(server, prompt + prompt_of(10, 3), 128)
    assert info["cached_tokens"] == 64
    eventually(server, lambda m: m("cache_hit_rate") == pytest.approx(64 / 100))


def test_gauges_show_running_queued_and_retracted_requests(server: Server) -> None:
    before = eventually(server, lambda m: m("num_running_reqs") == 0)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, server, prompt_of(40, seed), 480) for seed in range(6)]
        busy = eventually(server, lambda m: m("num_queue_reqs") > 0 and m("gen_throughput") > 0)
        assert 1 <= busy("num_running_reqs") <= 4
        assert busy("num_running_reqs") + busy("num_queue_reqs") <= 6
        assert 0 < busy("token_usage") <= 1
        assert BLOCK <= busy("num_used_tokens") <= POOL
        infos = [answer.result() for answer in asked]
    assert [info["completion_tokens"] for info in infos] == [480] * 6
    after = eventually(server, lambda m: m("num_running_reqs") == m("gen_throughput") == 0)
    assert after("num_queue_reqs") == 0
    assert after("token_usage") == 0
    retracted = after("num_retracted_requests_total") - before("num_retracted_requests_total")
    assert retracted > 0, "the pool holds a third of what was asked"
    tokens = after("num_retracted_input_tokens_total") - before("num_retracted_input_tokens_total")
    assert tokens == 40 * retracted


def test_the_log_has_one_line_per_interval_and_none_per_forward(server: Server) -> None:
    forwards = eventually(server, lambda m: m("num_running_reqs") == 0)(
        "llada_rows_per_forward_count"
    )
    lines = [line for line in server.log().splitlines() if "Diffusion batch" in line]
    counts = [int(count) for line in lines for count in re.findall(r"#forward: (\d+)", line)]
    assert len(counts) == len(lines) > 0
    assert all(LOG_INTERVAL <= count < LOG_INTERVAL + 4 for count in counts)  # a round: 4 steps
    assert forwards - LOG_INTERVAL < sum(counts) <= forwards
    assert not re.search(r"(Prefill|Decode) batch", server.log())
    for part in ("#running-req", "#queue-req", "gen throughput", "tokens per forward", "denoise"):
        assert all(part in line for line in lines)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_usage_of_an_openai_stream_says_how_many_forwards_it_took(
    server: Server, path: str
) -> None:
    question = {"messages": [{"role": "user", "content": "abc " * 20}]}
    body = {
        "model": "default",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 48,
        "ignore_eos": True,
        "n": 2,
        **(question if "chat" in path else {"prompt": "abc " * 20}),
    }
    before = eventually(server, lambda m: m("num_running_reqs") == 0)
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        lines = answer.read().decode().splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    usage = json.loads(events[-2])["usage"]
    assert usage["completion_tokens"] == 2 * 48
    ended = before("llada_tokens_per_forward_count") + 2
    after = eventually(server, lambda m: m("llada_tokens_per_forward_count") >= ended)
    rows = after("llada_rows_total", kind="denoise") - before("llada_rows_total", kind="denoise")
    assert usage["denoise_forwards"] == rows
    # The host sends a request of its own ahead of n > 1, which has prefilled for both choices.
    assert usage["prefill_forwards"] == 0
    assert usage["tokens_per_forward"] == pytest.approx(96 / rows, abs=1e-3)
