"""Quantised checkpoints served on a GPU, against the weights they stand for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quantizers import FP8_BLOCKS, QUANTISERS, quantised
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_sglang.roofline.shape import BUILT_IN

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from checkpoints import write_llada2
from servers import ServerPool, ServerSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

# The least that every kernel takes: 128 per tensor-parallel rank.
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rotary_dim": 64,
    "moe_intermediate_size": 256,
    "moe_shared_expert_intermediate_size": 256,
    # Every token to every expert: rounding would send some to others, and their neighbours astray.
    "num_experts_per_tok": 8,
    "topk_group": 4,
    "torch_dtype": "bfloat16",
}
# Four rows at most: more is only measured, which a simulated GPU does for minutes.
FLAGS = (
    *("--dtype", "bfloat16", "--max-total-tokens", "4096", "--max-running-requests", "2"),
    *("--chunked-prefill-size", "128", "--cuda-graph-max-bs-decode", "4", "--skip-server-warmup"),
)
PROMPT = list(range(64))
ASKED = list(range(256))  # all bytes; the mask, the next id, has no probability
# All positions in the first forward: the order of random weights differs after the least rounding.
AT_ONCE = {"ignore_eos": True, "custom_params": {"threshold": 0.001}}
FLASH_BYTES = 135e9

# At its first start the host compiles DeepGEMM's kernels for every size there is, in 10 to 20
# minutes; Triton's are compiled as they are met.
NO_DEEP_GEMM = (("SGLANG_ENABLE_JIT_DEEPGEMM", "0"),)

# Of log-probabilities over the vocabulary. Activations rounded to fp8 leave 0.992, weights of four
# bits 0.9998; one kind of projection that is off by a factor of 2 at most 0.964, scales in a wrong
# order 0.9946, as they differ little among random weights.
LEAST_CORRELATION = {"fp8": 0.98, "int4": 0.999}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


def write_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """A quantised checkpoint, and the bfloat16 one of the weights it stands for."""
    given, quantise = QUANTISERS[name]
    paths = []
    for kind in ("stored", "meant"):
        (directory / kind).mkdir()
        paths.append(write_llada2(directory / kind, **SHAPE))
    plain = {
        key: value.bfloat16() for key, value in load_file(paths[0] / "model.safetensors").items()
    }
    stored, meant = quantised(plain, given, quantise)
    meant = {key: value.bfloat16() for key, value in meant.items()}
    for path, tensors in zip(paths, (stored, meant), strict=True):
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((paths[0] / "config.json").read_text())
    (paths[0] / "config.json").write_text(json.dumps({**config, "quantization_config": given}))
    return paths[0], paths[1]


def log_probabilities(servers: ServerPool, path: Path, *flags: str) -> Tensor:
    """What a server says about a block's positions, with its prompt and after it: [64, tokens]."""
    server = servers.get(ServerSpec(str(path), (*FLAGS, *flags), environment=NO_DEEP_GEMM))
    wanted = {"return_logprob": True, "token_ids_logprob": ASKED}
    answers = [
        server.generate(PROMPT, max_new_tokens=32, sampling=AT_ONCE, **wanted) for _ in range(2)
    ]
    both = [answer["meta_info"]["output_token_ids_logprobs"] for answer in answers]
    found = [position for answer in both for position in answer]
    assert [[token for _, token, *_ in position] for position in found] == [ASKED] * 64
    return torch.tensor([[value for value, *_ in position] for position in found])


def assert_correlated(found: Tensor, meant: Tensor, least: float) -> None:
    pairs = torch.stack([found, meant], dim=1)
    correlations = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    assert correlations.min() >= least, correlations.sort().values


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_checkpoint_says_what_its_weights_stand_for(
    servers: ServerPool, tmp_path: Path, name: str
) -> None:
    told = [log_probabilities(servers, path) for path in write_pair(tmp_path, name)]
    assert_correlated(*told, least=LEAST_CORRELATION["fp8" if "fp8" in name else "int4"])


def test_weights_quantised_while_they_are_loaded_say_nearly_the_same(
    servers: ServerPool, tmp_path: Path
) -> None:
    path = write_llada2(tmp_path, **SHAPE)
    told = [log_probabilities(servers, path, *f) for f in (("--quantization", "fp8"), ())]
    assert_correlated(*told, least=0.97)  # rounded weights alone leave 0.990


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < FLASH_BYTES,
    reason="needs one GPU of 141 GB",
)
def test_fp8_flash_fits_one_gpu(servers: ServerPool, tmp_path: Path) -> None:
    """Dummy weights: what is tested is memory, with a pool for 32 requests of 4K in, 1.5K out."""
    path = write_llada2(tmp_path)
    published = {
        "vocab_size": 157184,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "rotary_dim": 64,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "max_position_embeddings": 32768,
        "moe_shared_expert_intermediate_size": 1024,
        "torch_dtype": "bfloat16",
        "quantization_config": {**FP8_BLOCKS, "modules_to_not_convert": ["lm_head"]},
    }
    config = {**json.loads((path / "config.json").read_text()), **published, **BUILT_IN["flash"]}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").unlink()
    flags = ("--load-format", "dummy", "--max-running-requests", "32")
    server = servers.get(ServerSpec(str(path), flags, environment=NO_DEEP_GEMM))
    info = json.loads(server.get("/server_info"))
    assert info["max_total_num_tokens"] >= 32 * (4096 + 1536 + 32)
    answer = server.generate(PROMPT, max_new_tokens=32, sampling={"ignore_eos": True})
    assert len(answer["output_ids"]) == 32
