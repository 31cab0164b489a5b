"""Every way to start the host takes the same path, with no flag but the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import overlays
import pytest
from servers import SGLANG_SERVE, ServerPool, ServerSpec, serve

PROMPT = list(range(3, 40))

ENGINE = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(model_path=sys.argv[1])
    sampling = {"temperature": 0, "max_new_tokens": 32}
    answer = engine.generate(input_ids=json.loads(sys.argv[2]), sampling_params=sampling)
    print("ANSWER", json.dumps(answer["output_ids"]))
    engine.shutdown()
"""


@pytest.fixture
def output_ids(servers: ServerPool, random_llada2: Path) -> list[int]:
    """What `python -m sglang.launch_server` without a flag answers."""
    server = servers.get(ServerSpec(str(random_llada2)))
    ids: list[int] = server.generate(PROMPT)["output_ids"]
    servers.close()  # one server at a time: the tests here start their own
    return ids


def test_launch_server_serve_and_engine_give_the_same_tokens(
    output_ids: list[int], random_llada2: Path, tmp_path: Path
) -> None:
    assert len(output_ids) == 32

    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    done = subprocess.run(
        [sys.executable, str(script), str(random_llada2), json.dumps(PROMPT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(answers[0].removeprefix("ANSWER")) == output_ids

    # At the same time: an untested version whose every symbol is known may start, with a warning.
    overlays.host_version(tmp_path, "0.5.99")
    environment = (("PYTHONPATH", str(tmp_path)),)
    spec = ServerSpec(str(random_llada2), command=SGLANG_SERVE, environment=environment)
    with serve(spec, tmp_path / "serve.log") as server:
        assert server.generate(PROMPT)["output_ids"] == output_ids
        assert "SGLang 0.5.99 is untested" in server.log()
        members = [member.pid for member in server.processes()]
    assert len(members) >= 3
    assert not any(os.path.exists(f"/proc/{pid}") for pid in members)
