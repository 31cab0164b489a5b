"""A server of random weights, started with no flag but its checkpoint."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
from json_schemas import schemas
from oracle import Oracle
from servers import Server, ServerPool, ServerSpec

PROMPT = list(range(3, 40))


@pytest.fixture
def random_server(servers: ServerPool, random_llada2: Path) -> Server:
    return servers.get(ServerSpec(str(random_llada2)))


def test_no_flag_gives_the_tokens_of_the_reference(
    random_server: Server, random_oracle: Oracle
) -> None:
    answer = random_server.generate(PROMPT)
    assert tuple(answer["output_ids"]) == random_oracle(PROMPT, max_new_tokens=32).output_ids
    assert len(answer["output_ids"]) == 32


def test_two_hundred_schemas_on_random_weights(random_server: Server) -> None:
    def ask(case: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        index, schema = case
        body = {
            "text": "go",
            "sampling_params": {
                "max_new_tokens": 500,
                "json_schema": json.dumps(schema),
                "temperature": float(index % 2),
                "sampling_seed": index,
            },
        }
        reply = requests.post(f"{random_server.url}/generate", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    asked = schemas(200)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, enumerate(asked)))
    for schema, reply in zip(asked, replies, strict=True):
        assert reply["meta_info"]["finish_reason"]["type"] == "stop", (schema, reply)
        jsonschema.validate(json.loads(reply["text"]), schema)
