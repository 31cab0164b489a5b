"""Fixtures of the tests that talk to real servers. A worker keeps one alive at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checkpoints import write_llada2, write_qwen2
from servers import Server, ServerPool, ServerSpec

if TYPE_CHECKING:
    from inprocess import InProcessEngine
    from oracle import Oracle


ON_THE_NANO_SERVER = frozenset(
    f"test_{name}"
    for name in (
        *("chat_command", "clients", "http_requests", "openai_fields", "published_requests"),
        "tools",
    )
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers get whole files, and one of them all files of the nano server, which starts once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            stem = Path(nodeid.partition("::")[0]).stem
            if stem == "test_simulated_gpu":
                return nodeid  # slow, and no two share a server
            return "the nano server" if stem in ON_THE_NANO_SERVER else stem

    return ByServer(config, log)


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


class _EngineHolder:
    """The one scheduler of this process, and the environment it made for itself."""

    def __init__(self) -> None:
        self.engine: InProcessEngine | None = None
        self.environment: dict[str, str] = {}


@pytest.fixture(scope="session")
def engine_holder() -> _EngineHolder:
    """Keeps the engine between modules: SGLang's globals allow one per process."""
    return _EngineHolder()


@pytest.fixture(scope="module")
def engine(nano: Path, engine_holder: _EngineHolder) -> Iterator[InProcessEngine]:
    """The real scheduler on nano in this process, in float32."""
    from inprocess import InProcessEngine

    # The host and we set variables for child processes; other modules' servers must not see them.
    before = dict(os.environ)
    os.environ.update(engine_holder.environment)
    if engine_holder.engine is None:
        engine_holder.engine = InProcessEngine(
            str(nano), "--dtype", "float32", "--enable-priority-scheduling"
        )
        engine_holder.environment = {
            key: value for key, value in os.environ.items() if before.get(key) != value
        }
    yield engine_holder.engine
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def oracle(nano: Path) -> Oracle:
    """The reference model on nano."""
    from oracle import Oracle

    return Oracle(nano)


@pytest.fixture(scope="session")
def random_oracle(random_llada2: Path) -> Oracle:
    """The reference model on the random checkpoint."""
    from oracle import Oracle

    return Oracle(random_llada2)
