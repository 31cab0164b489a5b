"""Other ways to start the host take the path of launch_server, with no flag, and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import overlays
from oracle import Oracle
from servers import SGLANG_SERVE, ServerPool, ServerSpec, serve

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

PROMPT = list(range(3, 40))


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


PROGRAM = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(model_path=sys.argv[1], log_level="error")
    told = {}
    params = {"gen_length": 64, "block_length": 32, "temperature": None}
    told["text"] = engine.generate(sys.argv[2], params)["text"]
    asked = (
        ("block_length", lambda: engine.generate("a", {"block_length": 16})),
        ("image_data", lambda: engine.generate("a", {}, image_data=["a.png"])),
        ("embeddings", lambda: engine.encode("a")),
        ("scores", lambda: engine.score("a", ["b"], [5])),
    )
    for name, ask in asked:
        try:
            told[name] = f"answered: {ask()}"
        except ValueError as error:
            told[name] = str(error)
    engine.shutdown()
    print("told " + json.dumps(told))
"""


def test_an_engine_takes_published_names_and_refuses_the_rest(
    servers: ServerPool, nano: Path, tmp_path: Path
) -> None:
    servers.close()  # two engines are more than a small machine holds
    (question, _) = tasks.examples(3, "count", "eval", 2)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script), str(nano), render_prompt(question.messages)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("told ")), "")
    assert line, done.stdout + done.stderr
    told = json.loads(line.removeprefix("told "))
    assert told.pop("text") == question.answer
    assert "block_length must be 32" in told.pop("block_length")
    for name, message in told.items():
        assert message.startswith(name), message
        assert "not served" in message
