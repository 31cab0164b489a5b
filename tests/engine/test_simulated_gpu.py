"""The server as it runs on an NVIDIA GPU, on one that is simulated: see tests/simulated_gpu.

Kernels' results come from torch. All else is what a GPU has: the host's start, graphs, pinned
copies, events, the libraries' checks of what their kernels are given.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
from oracle import Oracle, alive_and_exact
from policy_cases import EDITING, UNMASKING, reference
from servers import Server, ServerPool, ServerSpec
from tokenizers import Tokenizer

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

pytestmark = pytest.mark.skipif(
    simulated_gpu.why_not() is not None, reason=str(simulated_gpu.why_not())
)

REPOSITORY = Path(__file__).resolve().parents[2]
GPU_TESTS = REPOSITORY / "tests" / "gpu"
FLAGS = ("--max-total-tokens", "8192", "--max-running-requests", "8")
GRAPHS = ("--cuda-graph-max-bs-decode", "4")
ANSWER = 40


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that finds a GPU."""
    return simulated_gpu.environment(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def prompts(nano: Path) -> list[list[int]]:
    """Questions of several families, of one block and of more."""
    tokenizer = Tokenizer.from_file(str(nano / "tokenizer.json"))
    examples = [tasks.examples(9, family, "eval", 1)[0] for family in tasks.FAMILIES[:6]]
    return [
        tokenizer.encode(render_prompt(example.messages, tools=example.tools)).ids
        for example in examples
    ]


def at_once(server: Server, questions: list[tuple[list[int], dict[str, Any]]]) -> list[list[int]]:
    def ask(question: tuple[list[int], dict[str, Any]]) -> list[int]:
        prompt, case = question
        sampling = {"custom_params": case} if case else None
        answer = server.generate(prompt, max_new_tokens=ANSWER, sampling=sampling)
        return list(answer["output_ids"])

    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


def test_float32_is_the_reference_under_the_policies_of_nano(
    servers: ServerPool, nano: Path, oracle: Oracle, gpu: dict[str, str], prompts: list[list[int]]
) -> None:
    spec = ServerSpec(str(nano), (*FLAGS, "--dtype", "float32")).with_environment(gpu)
    server = servers.get(spec)
    each = {case["policy"]: case for case in (*UNMASKING, *EDITING)}
    cases: tuple[dict[str, Any], ...] = ({}, {"lookahead": 3}, *each.values())
    questions = [(prompts[at % len(prompts)], case) for at, case in enumerate(cases)]
    for (prompt, case), ids in zip(questions, at_once(server, questions), strict=True):
        expected = oracle(prompt, max_new_tokens=ANSWER, **reference(case))
        assert tuple(ids) == expected.output_ids, case
    alive_and_exact(server, oracle)


@pytest.mark.parametrize(
    "flags",
    [
        GRAPHS,
        ("--attention-backend", "flashinfer", "--kv-cache-dtype", "fp8_e4m3", *GRAPHS),
        ("--attention-backend", "triton", *GRAPHS),
    ],
    ids=["fa3", "flashinfer-fp8-cache", "triton"],
)
def test_bfloat16_says_nearly_what_the_reference_says(
    servers: ServerPool,
    nano: Path,
    oracle: Oracle,
    gpu: dict[str, str],
    prompts: list[list[int]],
    flags: tuple[str, ...],
) -> None:
    """Steps launched ahead, graphs, requests together; rounding may turn a token of a text."""
    spec = ServerSpec(str(nano), (*FLAGS, "--dtype", "bfloat16", *flags)).with_environment(gpu)
    server = servers.get(spec)
    assert "llada_sglang: CUDA graphs" in server.log()
    cases: list[dict[str, Any]] = [{}, {"lookahead": 2}]
    questions = [(prompt, case) for case in cases for prompt in prompts]
    got = at_once(server, questions)
    expected = [
        list(oracle(prompt, max_new_tokens=ANSWER, **reference(case)).output_ids)
        for prompt, case in questions
    ]
    same = [one == other for one, other in zip(got, expected, strict=True)]
    assert sum(same) >= 0.75 * len(same), same
    assert got == at_once(server, questions), "not the same text twice"


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("rounds", "idles or plain and not steps"),
        ("graphs", "served and not measured_to_be_faster"),
        ("engine", "waits"),
    ],
)
def test_the_tests_for_a_gpu_pass(
    servers: ServerPool, gpu: dict[str, str], name: str, chosen: str
) -> None:
    servers.close()  # an idle scheduler keeps a core busy
    module = str(GPU_TESTS / f"test_{name}_cuda.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module, "-k", chosen],
        env={**os.environ, **gpu},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout


def test_the_benchmark_of_a_gpu_measures_both_engines(
    servers: ServerPool, gpu: dict[str, str]
) -> None:
    """Steps in the schedulers of both; their times here are nobody's."""
    servers.close()
    sections = [f"steps-{engine}" for engine in ("llada_sglang", "stock")]
    trial = ["--shape", "tiny", "--again", "--only", ",".join(sections)]
    small = f"--flags={' '.join(GRAPHS)} --chunked-prefill-size 128"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *trial, small],
        cwd=REPOSITORY,
        env={**os.environ, **gpu},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rows in ("1 row", "2 rows"):
        (line,) = re.findall(rf"^\| step, {rows}, ms .*", done.stdout, re.MULTILINE)
        times = [float(column.split()[0]) for column in line.split("|")[2:4]]
        assert min(times) > 0
