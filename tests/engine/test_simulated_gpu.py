"""The server as it runs on an NVIDIA GPU, on one that is simulated: see tests/simulated_gpu.

Kernels' results come from torch. All else is what a GPU has: the host's start, graphs, pinned
copies, events, the libraries' checks of what their kernels are given.
"""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
from oracle import Oracle, alive_and_exact
from policy_cases import EDITING, LEVENSHTEIN, UNMASKING, reference
from quantizers import FP8_BLOCKS
from servers import Server, ServerPool, ServerSpec
from tokenizers import Tokenizer

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt
from llada_sglang.roofline import gpus
from llada_sglang.roofline.cost import Setup
from llada_sglang.roofline.shape import BUILT_IN, Shape

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are in no package

from benchmarks.gpu import shapes

pytestmark = pytest.mark.skipif(
    simulated_gpu.why_not() is not None, reason=str(simulated_gpu.why_not())
)

REPOSITORY = Path(__file__).resolve().parents[2]
GPU_TESTS = REPOSITORY / "tests" / "gpu"
FLAGS = ("--max-total-tokens", "8192", "--max-running-requests", "8")
NO_DEEP_GEMM = {"SGLANG_ENABLE_JIT_DEEPGEMM": "0"}  # compiled for 10 to 20 minutes at a start
GRAPHS = ("--cuda-graph-max-bs-decode", "4")
ANSWER = 40

Case = dict[str, Any]


def one_of_each(*cases: Case) -> tuple[Case, ...]:
    """The last case of each policy."""
    return tuple({case["policy"]: case for case in cases}.values())


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that finds a GPU."""
    return simulated_gpu.environment(tmp_path_factory.mktemp("gpu"))


def prompts(directory: Path) -> list[list[int]]:
    """Questions of several families, of one block and of more."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    examples = [tasks.examples(9, family, "eval", 1)[0] for family in tasks.FAMILIES[:6]]
    return [
        tokenizer.encode(render_prompt(example.messages, tools=example.tools)).ids
        for example in examples
    ]


def at_once(server: Server, questions: list[tuple[list[int], Case]]) -> list[list[int]]:
    def ask(question: tuple[list[int], Case]) -> list[int]:
        prompt, case = question
        sampling = {"custom_params": case} if case else None
        answer = server.generate(prompt, max_new_tokens=ANSWER, sampling=sampling)
        return list(answer["output_ids"])

    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


@pytest.mark.parametrize(
    ("checkpoint", "cases"),
    [
        ("checkpoint", ({}, {"lookahead": 3}, *one_of_each(*UNMASKING, *EDITING))),
        ("checkpoint_levenshtein", ({}, *LEVENSHTEIN)),
    ],
)
def test_float32_is_the_reference_under_every_policy(
    servers: ServerPool, nano: Path, gpu: dict[str, str], checkpoint: str, cases: tuple[Case, ...]
) -> None:
    directory = nano.parent / checkpoint
    spec = ServerSpec(str(directory), (*FLAGS, "--dtype", "float32")).with_environment(gpu)
    server, oracle, asked = servers.get(spec), Oracle(directory), prompts(directory)
    questions = [(asked[at % len(asked)], case) for at, case in enumerate(cases)]
    for (prompt, case), ids in zip(questions, at_once(server, questions), strict=True):
        expected = oracle(prompt, max_new_tokens=ANSWER, **reference(case))
        assert tuple(ids) == expected.output_ids, case
    alive_and_exact(server, oracle)


@pytest.mark.parametrize(
    ("checkpoint", "flags", "cases"),
    [
        ("checkpoint", (), ({}, {"lookahead": 2})),
        (
            "checkpoint",
            ("--attention-backend", "flashinfer", "--kv-cache-dtype", "fp8_e4m3"),
            ({}, {"lookahead": 2}),
        ),
        ("checkpoint", ("--attention-backend", "triton"), ({}, {"lookahead": 2})),
        ("checkpoint_levenshtein", (), ({},)),
    ],
    ids=["fa3", "flashinfer-fp8-cache", "triton", "block-routing"],
)
def test_bfloat16_says_nearly_what_the_reference_says(
    servers: ServerPool,
    nano: Path,
    gpu: dict[str, str],
    checkpoint: str,
    flags: tuple[str, ...],
    cases: tuple[Case, ...],
) -> None:
    """Steps launched ahead, graphs, requests together; rounding may turn a token of a text."""
    directory = nano.parent / checkpoint
    flags = (*FLAGS, *GRAPHS, "--dtype", "bfloat16", *flags)
    server = servers.get(ServerSpec(str(directory), flags).with_environment(gpu))
    oracle = Oracle(directory)
    assert "llada_sglang: CUDA graphs" in server.log()
    questions = [(prompt, case) for case in cases for prompt in prompts(directory)]
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
        ("quantized", "says and gptq and not order"),
    ],
)
def test_the_tests_for_a_gpu_pass(
    servers: ServerPool, gpu: dict[str, str], name: str, chosen: str
) -> None:
    servers.close()  # an idle scheduler keeps a core busy
    module = str(GPU_TESTS / f"test_{name}_cuda.py")
    told = simulated_gpu.run(
        gpu, "-m", "pytest", "-q", "-p", "no:cacheprovider", module, "-k", chosen
    )
    assert " skipped" not in told


FITS = """
import sys
sys.path.insert(0, "tests/engine")
from inprocess import InProcessEngine

engine = InProcessEngine(sys.argv[1], "--load-format", "dummy", "--max-running-requests", "32")
print("pool of", engine.scheduler.max_total_num_tokens)
"""


def test_fp8_flash_fits_one_gpu_with_graphs_and_a_pool_for_32_requests(
    servers: ServerPool, tmp_path: Path
) -> None:
    """With no flag of ours, on 140 GiB: 4K in and 1.5K out each. The allocator is torch's."""
    servers.close()
    quantised = {**FP8_BLOCKS, "modules_to_not_convert": ["lm_head"]}
    model = shapes.write("flash", tmp_path / "flash")
    config = {**shapes.FLASH, "quantization_config": quantised}
    (model / "config.json").write_text(json.dumps(config))
    told = simulated_gpu.run(
        {**simulated_gpu.environment(tmp_path, gib=140), **NO_DEEP_GEMM},
        "-c",
        FITS,
        str(model),
        cwd=REPOSITORY,
    )
    (weights,) = re.findall(r"quant=fp8.*mem usage=([\d.]+) GB", told)
    counted = Setup(Shape.of(BUILT_IN["flash"]), gpus.find("h200"), dtype="fp8").memory(rows=1)
    assert float(weights) * 2**30 == pytest.approx(counted.weight_bytes, rel=0.005)
    (taken, planned) = re.findall(r"up to 1536: ([\d.]+) GiB \(planned ([\d.]+)\)", told)[0]
    # The driver's part of the plan is not taken here.
    assert 0.75 * float(planned) <= float(taken) <= float(planned)
    (pool,) = re.findall(r"pool of (\d+)", told)
    assert int(pool) >= 32 * (4096 + 1536 + 32)


def test_the_benchmark_of_a_gpu_measures_both_engines(
    servers: ServerPool, gpu: dict[str, str]
) -> None:
    """Steps in the schedulers of both; their times here are nobody's."""
    servers.close()
    sections = [f"steps-{engine}" for engine in ("llada_sglang", "stock")]
    trial = ["--shape", "tiny", "--again", "--only", ",".join(sections)]
    small = f"--flags={' '.join(GRAPHS)} --chunked-prefill-size 128"
    told = simulated_gpu.run(gpu, "-m", "benchmarks.gpu", *trial, small, cwd=REPOSITORY)
    for rows in ("1 row", "2 rows"):
        (line,) = re.findall(rf"^\| step, {rows}, ms .*", told, re.MULTILINE)
        times = [float(column.split()[0]) for column in line.split("|")[2:4]]
        assert min(times) > 0
