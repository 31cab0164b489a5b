"""A server of random weights, started with no flag but its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from json_schemas import check_answers, schemas
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
    check_answers(random_server.url, schemas(200))
