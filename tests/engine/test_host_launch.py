"""The host's command lines serve a checkpoint with no flag, and leave nothing behind.

`sgl.Engine` is in test_published_requests.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import overlays
from oracle import Oracle
from servers import SGLANG_SERVE, Server, ServerPool, ServerSpec, serve

PROMPT = list(range(3, 40))


def test_launch_server_without_a_flag(random_server: Server, random_oracle: Oracle) -> None:
    answer = random_server.generate(PROMPT)
    assert tuple(answer["output_ids"]) == random_oracle(PROMPT, max_new_tokens=32).output_ids
    assert len(answer["output_ids"]) == 32


def test_serve_takes_the_same_path(
    servers: ServerPool, random_llada2: Path, random_oracle: Oracle, tmp_path: Path
) -> None:
    servers.close()
    # At the same time: an untested version whose every symbol is known may start, with a warning.
    overlays.host_version(tmp_path, "0.5.99")
    environment = (("PYTHONPATH", str(tmp_path)),)
    spec = ServerSpec(str(random_llada2), command=SGLANG_SERVE, environment=environment)
    with serve(spec, tmp_path / "serve.log") as server:
        answer = server.generate(PROMPT)
        assert tuple(answer["output_ids"]) == random_oracle(PROMPT, max_new_tokens=32).output_ids
        assert "SGLang 0.5.99 is untested" in server.log()
        members = [member.pid for member in server.processes()]
    assert len(members) >= 3
    assert not any(os.path.exists(f"/proc/{pid}") for pid in members)
