"""Fixtures of the tests that talk to real servers. One server is alive at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_llada2, write_qwen2
from servers import Server, ServerPool, ServerSpec


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """The server pool: `servers.get(ServerSpec(model, flags))` starts one or reuses it."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


@pytest.fixture
def nano_server(servers: ServerPool, nano: Path) -> Server:
    """The trained nano checkpoint, started with no flag but float32 for exact comparisons."""
    return servers.get(ServerSpec(str(nano), ("--dtype", "float32")))


@pytest.fixture(scope="session")
def random_llada2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaDA2 checkpoint with random weights."""
    return write_llada2(tmp_path_factory.mktemp("llada2"))


@pytest.fixture(scope="session")
def random_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 checkpoint with random weights."""
    return write_qwen2(tmp_path_factory.mktemp("qwen2"))
