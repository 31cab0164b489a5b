"""A server whose command line names decoding defaults and the host's other grammar backend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from json_schemas import check_answers, schemas
from oracle import Oracle
from servers import Server, ServerPool, ServerSpec


@pytest.fixture
def configured_server(servers: ServerPool, nano: Path) -> Server:
    decoding = "{threshold: 1.0, steps: 8}"
    flags = ("--dllm-algorithm-config", decoding, "--grammar-backend", "llguidance")
    return servers.get(ServerSpec(str(nano), ("--dtype", "float32", *flags)))


def test_the_server_s_decoding_defaults_from_its_command_line(
    configured_server: Server, oracle: Oracle
) -> None:
    prompt = list(range(40, 75))
    answer = configured_server.generate(prompt, max_new_tokens=40)
    assert tuple(answer["output_ids"]) == (
        oracle(prompt, max_new_tokens=40, threshold=1.0, steps=8).output_ids
    )
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 40, "custom_params": {"steps": 32}},
    }
    expected = oracle(prompt, max_new_tokens=40, threshold=1.0, steps=32)
    assert tuple(configured_server.post("/generate", body)["output_ids"]) == expected.output_ids


def test_the_hosts_other_grammar_backend(configured_server: Server) -> None:
    # Every fourth one, sampled and greedy in turn.
    check_answers(configured_server.url, schemas(200)[::4])
    url = f"{configured_server.url}/generate"
    body = {"text": "go", "sampling_params": {"max_new_tokens": 60, "regex": "(ab|cd){3,9}x"}}
    text = requests.post(url, json=body, timeout=300).json()["text"]
    assert re.fullmatch("(ab|cd){3,9}x", text)
    bad = {"text": "go", "sampling_params": {"json_schema": '{"type": "nothing"}'}}
    assert requests.post(url, json=bad, timeout=300).status_code == 400
