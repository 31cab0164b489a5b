"""Other people's clients work unchanged; bodies of any shape are answered or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle, alive_and_exact
from servers import Server

FRONTEND = """
import sys
import sglang as sgl

sgl.set_default_backend(sgl.RuntimeEndpoint(sys.argv[1]))


@sgl.function
def answer(s, question):
    s += "<role>HUMAN</role>" + question + "<|role_end|><role>ASSISTANT</role>"
    s += sgl.gen("first", max_tokens=32, temperature=0)
    s += sgl.gen("digits", max_tokens=8, regex="[0-9]{2}", temperature=0)


state = answer.run(question="What is 147 + 58?")
print(state["first"], state["digits"], sep="\\n")
states = answer.run_batch([{"question": f"What is {i} + 5?"} for i in range(4)])
print(len(states))
streamed = answer.run(question="What is 147 + 58?", stream=True)
print("".join(streamed.text_iter("first")) == state["first"])
"""


def test_the_frontend_language(nano_server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRONTEND, nano_server.url],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, digits, count, same = done.stdout.strip().splitlines()[-4:]
    assert "205" in first
    assert digits.isdigit()
    assert (count, same) == ("4", "True")


def test_plain_curl(nano_server: Server) -> None:
    body = {"prompt": "<role>HUMAN</role>Hi<|role_end|>", "max_new_tokens": 20}
    done = subprocess.run(
        [
            *("curl", "-sS", "-X", "POST", nano_server.url + "/generate"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["meta_info"]["completion_tokens"] >= 1


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai"])
def test_the_host_s_serving_benchmark(
    nano_server: Server, nano: Path, tmp_path: Path, backend: str
) -> None:
    report = tmp_path / "report.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sglang.bench_serving", "--backend", backend),
            *("--base-url", nano_server.url, "--model", str(nano), "--tokenizer", str(nano)),
            *("--dataset-name", "random-ids", "--num-prompts", "6", "--random-input-len", "40"),
            *("--random-output-len", "24", "--random-range-ratio", "1.0"),
            *("--output-file", str(report), "--disable-tqdm"),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    result = json.loads(report.read_text().splitlines()[-1])
    assert result["completed"] == 6
    assert result["total_output_tokens"] == 6 * 24


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 1e308, -0.5, 0.3, 1.0, 1.5]),
    st.sampled_from(["", "a", "Count from 3 to 9.", "\ud83d\ude00", "[0-9]+", "(", "{}"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "type"]), inner)
    ),
    max_leaves=4,
)
SAMPLING = st.fixed_dictionaries(
    {"max_new_tokens": st.sampled_from([0, 1, 7, 33, None, -1, "x", 20])},
    optional=dict.fromkeys(
        (
            *("temperature", "top_p", "top_k", "min_p", "sampling_seed", "n", "stop"),
            *("stop_token_ids", "stop_regex", "frequency_penalty", "presence_penalty"),
            *("repetition_penalty", "logit_bias", "min_new_tokens", "regex", "json_schema", "ebnf"),
            *("ignore_eos", "skip_special_tokens", "no_stop_trim", "custom_params", "gen_length"),
            *("block_length", "structural_tag", "beam_width", "stream_interval", "unknown"),
        ),
        VALUES,
    ),
)
NATIVE = st.fixed_dictionaries(
    {},
    optional={
        "text": VALUES,
        "prompt": VALUES,
        "input_ids": VALUES,
        "sampling_params": st.one_of(SAMPLING, VALUES),
        "return_logprob": VALUES,
        "top_logprobs_num": VALUES,
        "logprob_start_len": VALUES,
        "rid": st.none(),
        "threshold": VALUES,
        "steps": VALUES,
    },
)
CHAT = st.fixed_dictionaries(
    {"model": st.just("nano"), "max_tokens": st.sampled_from([1, 9, 33, 0, None, "x"])},
    optional={
        "messages": st.one_of(
            st.just([{"role": "user", "content": "What is 1 + 2?"}]),
            st.lists(st.dictionaries(st.sampled_from(["role", "content"]), VALUES), max_size=2),
            VALUES,
        ),
        **dict.fromkeys(
            (
                *("temperature", "top_p", "n", "seed", "stop", "logprobs", "top_logprobs"),
                *("response_format", "tools", "tool_choice", "custom_params", "logit_bias"),
                *("frequency_penalty", "presence_penalty", "stream_options", "unknown"),
            ),
            VALUES,
        ),
    },
)


def status_of(server: Server, path: str, body: Any) -> int:
    try:
        server.post(path, body, seconds=120)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def bounded(body: Any) -> bool:
    """Whether a body asks for a short text: a long one is no nonsense, it only takes its time."""
    text = json.dumps(body)
    return "2147483648" not in text and "9223372036854775808" not in text


@pytest.mark.parametrize(
    ("path", "bodies"), [("/generate", NATIVE), ("/v1/chat/completions", CHAT)]
)
def test_no_body_breaks_the_server(
    nano_server: Server, oracle: Oracle, path: str, bodies: st.SearchStrategy[Any]
) -> None:
    seen: set[int] = set()

    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(body=bodies.filter(bounded))
    def ask(body: Any) -> None:
        status = status_of(nano_server, path, body)
        seen.add(status)
        assert status < 500, body

    ask()
    assert {200, 400} <= seen
    alive_and_exact(nano_server, oracle)


def test_a_mixed_crowd_is_served(nano_server: Server, oracle: Oracle) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "sampling_seed": 3},
        {"regex": "[a-z]{20}"},
        {"json_schema": '{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}'},
        {"repetition_penalty": 1.3},
        {"stop": "7"},
        {"logit_bias": {"5": 3.0}, "min_new_tokens": 10},
    ]

    def ask(index: int) -> Any:
        sampling = {"max_new_tokens": 40, **kinds[index % len(kinds)]}
        body = {"input_ids": list(range(40, 60 + index % 5)), "sampling_params": sampling}
        return nano_server.post("/generate", body)

    with ThreadPoolExecutor(28) as pool:
        replies = list(pool.map(ask, range(56)))
    assert len(replies) == 56
    for first, again in zip(replies[:7], replies[35:42], strict=True):
        assert first["output_ids"] == again["output_ids"]
    alive_and_exact(nano_server, oracle)
