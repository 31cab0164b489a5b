"""Launch defaults leave a user's flag alone, and what cannot work is an error with a way out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sglang import env
from llada_sglang.checkpoint import CheckpointFamily
from llada_sglang.errors import LaunchConfigError
from llada_sglang.serving import defaults, dllm_config, memory
from llada_sglang.serving.rules import ALGORITHM, RULES, check_launch, flag, parse_decoding

GIB = 1 << 30
ALGORITHMS = frozenset({ALGORITHM, "LowConfidence"})
MINI = {  # LLaDA2.0-mini as published
    "architectures": ["LLaDA2MoeModelLM"],
    "num_hidden_layers": 20,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}


def family(**config: Any) -> CheckpointFamily:
    return CheckpointFamily(
        path="/nowhere",
        mask_id=156895,
        eos_ids=(156892,),
        block_size=32,
        vocab_size=157184,
        config={**MINI, **config},
    )


@pytest.fixture(scope="module")
def stock_values() -> dict[str, Any]:
    """The host's own value of every server argument."""
    from sglang.srt.arg_groups.arg_utils import record_fields
    from sglang.srt.server_args import ServerArgs

    return {f.name: f.default for f in record_fields(ServerArgs)}


@pytest.fixture
def arguments(stock_values: dict[str, Any]) -> SimpleNamespace:
    """Server arguments as they stand where nobody gave a flag, on a CPU."""
    return SimpleNamespace(**{**stock_values, "device": "cpu"})


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def test_a_cpu_server_needs_no_flag(arguments: SimpleNamespace) -> None:
    chosen = defaults.choose_defaults(arguments, family())
    assert chosen == {
        "dllm_algorithm": "BlockDiffusion",
        "page_size": 32,
        "attention_backend": "block_row_torch",
        "disable_cuda_graph": True,
        "dtype": "bfloat16",
        "sleep_on_idle": True,
        "max_total_tokens": 32768,  # one whole context: 1.25 GiB
        "max_running_requests": 8,
        "constrained_json_disable_any_whitespace": True,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dllm_algorithm", "LowConfidence"),
        ("attention_backend", "torch_native"),
        ("dtype", "float32"),
        ("max_total_tokens", 4096),
        ("max_running_requests", 3),
        ("page_size", 32),
    ],
)
def test_a_flag_the_user_gave_always_wins(
    arguments: SimpleNamespace, name: str, value: object
) -> None:
    setattr(arguments, name, value)
    assert name not in defaults.choose_defaults(arguments, family())


def test_an_accelerator_keeps_the_hosts_pool(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.utils import common

    monkeypatch.setattr(common, "get_device_memory_capacity", lambda device: 80 * 1024)
    arguments.device = "cuda"
    chosen = defaults.choose_defaults(arguments, family())
    assert chosen == {
        "dllm_algorithm": "BlockDiffusion",
        "page_size": 32,
        "max_running_requests": 128,
        "attention_backend": "flashinfer",
        "disable_cuda_graph": True,
        "constrained_json_disable_any_whitespace": True,
    }


def test_the_hosts_own_algorithms_keep_its_graphs(arguments: SimpleNamespace) -> None:
    arguments.device = "xpu"
    arguments.dllm_algorithm = "LowConfidence"
    arguments.max_running_requests = 4
    arguments.cuda_graph_backend_decode = "full"
    check_launch(arguments, family(), ALGORITHMS)
    assert defaults.choose_defaults(arguments, family()) == {"page_size": 32}


def test_an_accelerator_of_unknown_memory_still_runs_several_requests(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.utils import common

    monkeypatch.setattr(common, "get_device_memory_capacity", lambda device: None)
    arguments.device = "xpu"
    assert defaults.choose_defaults(arguments, family())["max_running_requests"] == 8


def test_kv_of_the_published_models_has_the_published_size() -> None:
    flash = {**MINI, "num_hidden_layers": 32}
    assert memory.kv_bytes_per_token(MINI, 2) == 40 * 1024
    assert memory.kv_bytes_per_token(flash, 2) == 64 * 1024


@pytest.mark.parametrize(
    ("bytes_per_token", "available", "context", "expected"),
    [
        (2048, 64 * GIB, 4096, 262_144),  # a small model: bounded by the number of tokens
        (64 * 1024, 64 * GIB, 4096, 16_384),  # a large one: by one GiB
        (64 * 1024, 64 * GIB, 32768, 32_768),  # but one context fits
        (64 * 1024, 1 * GIB, 32768, 4096),  # unless it would take over a quarter of the memory
        (64 * 1024, 0, 32768, 64),  # and never less than two blocks
        (3000, 1 * GIB, 1000, 89_472),  # whole blocks
    ],
)
def test_the_cpu_pool_is_bounded(
    bytes_per_token: int, available: int, context: int, expected: int
) -> None:
    assert memory.cpu_pool_tokens(bytes_per_token, available, context, 32) == expected


def test_weight_size_counts_every_shard(tmp_path: Path) -> None:
    for shard in (1, 2):
        (tmp_path / f"model-{shard}.safetensors").write_bytes(b"x" * 10 * shard)
    assert memory.weight_bytes(tmp_path) == 30


def test_the_hosts_own_values_break_no_rule(arguments: SimpleNamespace) -> None:
    check_launch(arguments, family(), ALGORITHMS)


BAD = {
    "disaggregation_mode": "prefill",
    "model_impl": "transformers",
    "speculative_algorithm": "EAGLE",
    "speculative_draft_model_path": "draft",
    "lora_paths": ["adapter"],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_flag_that_cannot_work_is_an_error_naming_it(
    arguments: SimpleNamespace, stock_values: dict[str, Any], rule: Any
) -> None:
    stock = stock_values[rule.name]
    bad = BAD.get(rule.name, 2 if stock == 1 and stock is not True else True)
    setattr(arguments, rule.name, bad)
    with pytest.raises(LaunchConfigError) as raised:
        check_launch(arguments, family(), ALGORITHMS)
    assert str(raised.value).startswith(f"{flag(rule.name)} must be {rule.expected} for a LLaDA2")
    assert repr(bad) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("page_size", 16, "--page-size must be 32"),
        ("page_size", 64, "--page-size must be 32"),
        ("chunked_prefill_size", 31, "--chunked-prefill-size must be at least 32"),
        ("max_total_tokens", 63, "--max-total-tokens must be at least 64"),
        ("max_running_requests", 0, "--max-running-requests must be at least 1"),
        ("dllm_algorithm", "Unknown", "--dllm-algorithm must be one of BlockDiffusion, LowConf"),
        ("cuda_graph_backend_decode", "full", "--cuda-graph-backend-decode must be disabled"),
        ("cuda_graph_config", {"decode": {"backend": "full"}}, "--cuda-graph-config cannot"),
        ("dllm_fdfo", False, "--no-dllm-fdfo needs one of the host's own algorithms"),
    ],
)
def test_a_width_or_name_that_cannot_work_is_an_error(
    arguments: SimpleNamespace, name: str, value: object, message: str
) -> None:
    setattr(arguments, name, value)
    with pytest.raises(LaunchConfigError) as raised:
        check_launch(arguments, family(), ALGORITHMS)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "value"),
    [("page_size", 32), ("chunked_prefill_size", -1), ("dllm_algorithm", "LowConfidence")],
)
def test_a_flag_that_works_is_let_through(
    arguments: SimpleNamespace, name: str, value: object
) -> None:
    setattr(arguments, name, value)
    check_launch(arguments, family(), ALGORITHMS)


def test_block_routing_is_served_on_a_cpu_too(arguments: SimpleNamespace) -> None:
    assert arguments.device == "cpu"
    check_launch(arguments, family(expert_capacity=48), ALGORITHMS)


def test_a_server_that_passes_our_checks_by_is_refused(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(defaults.NO_COPY, "1")
    monkeypatch.setenv("SGLANG_RUST_SERVER", "0")
    defaults._require_host_settings(arguments)
    monkeypatch.setenv("SGLANG_RUST_SERVER", "true")
    with pytest.raises(LaunchConfigError, match="SGLANG_RUST_SERVER must be 0 or unset"):
        defaults._require_host_settings(arguments)


def test_the_hosts_synchronous_mode_is_left_to_its_own_algorithms(
    arguments: SimpleNamespace,
) -> None:
    arguments.dllm_fdfo = False
    arguments.dllm_algorithm = "LowConfidence"
    check_launch(arguments, family(), ALGORITHMS)


def test_the_algorithm_is_registered_under_the_name_that_is_declared() -> None:
    from llada_sglang.scheduler import algorithm

    assert algorithm.NAME == ALGORITHM


@pytest.fixture
def host_config(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the host makes of a LLaDA2 model: the ids of LLaDA2.0, hard-coded."""
    monkeypatch.setattr(dllm_config, "serves_llada2", lambda path, revision: True)
    monkeypatch.setattr(dllm_config, "require_installed", lambda: None)
    ours = CheckpointFamily("", mask_id=7, eos_ids=(8,), block_size=16, vocab_size=9, config={})
    monkeypatch.setattr(dllm_config, "read_family", lambda path, revision: ours)
    return SimpleNamespace(mask_id=156895, block_size=32, algorithm_config={})


SERVER = SimpleNamespace(model_path="/nowhere", revision=None, _resolved_overrides=[])


def test_mask_id_and_block_size_come_from_the_checkpoint(host_config: SimpleNamespace) -> None:
    config = dllm_config.checkpoint_config(lambda args: host_config, SERVER)
    assert (config.mask_id, config.block_size) == (7, 16)


def test_another_block_size_than_the_checkpoints_is_an_error(host_config: SimpleNamespace) -> None:
    host_config.algorithm_config["block_size"] = 32
    with pytest.raises(LaunchConfigError, match="block_size in --dllm-algorithm-config must be 16"):
        dllm_config.checkpoint_config(lambda args: host_config, SERVER)


def test_a_server_without_diffusion_is_left_alone() -> None:
    assert dllm_config.checkpoint_config(lambda args: None, SERVER) is None


def test_a_path_that_cannot_be_read_is_left_to_the_host(tmp_path: Path) -> None:
    assert not defaults.serves_llada2(str(tmp_path), None)
    (tmp_path / "config.json").write_text("{")
    assert not defaults.serves_llada2(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    assert not defaults.serves_llada2(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"architectures": ["LLaDA2MoeModelLM"]}')
    assert defaults.serves_llada2(str(tmp_path), None)


@pytest.mark.parametrize("inline", [True, False])
def test_decoding_defaults_may_be_a_file_or_inline(
    arguments: SimpleNamespace, tmp_path: Path, inline: bool
) -> None:
    def given(text: str) -> str:
        if inline:
            return text
        (tmp_path / "decoding.yaml").write_text(text)
        return str(tmp_path / "decoding.yaml")

    arguments.dllm_algorithm_config = given("{threshold: 0.8, steps: 16}")
    check_launch(arguments, family(), ALGORITHMS)
    for text, message in (
        ("{threshold: 1.8}", r"threshold must be a number in \(0, 1\], got 1.8"),
        ("{treshold: 0.8}", "treshold"),
        ("{threshold: 0.8", "--dllm-algorithm-config"),
    ):
        arguments.dllm_algorithm_config = given(text)
        with pytest.raises(LaunchConfigError, match=message):
            check_launch(arguments, family(), ALGORITHMS)


def test_a_file_that_is_none_is_named(arguments: SimpleNamespace) -> None:
    arguments.dllm_algorithm_config = "/nowhere/decoding.yaml"
    with pytest.raises(LaunchConfigError, match=r"/nowhere/decoding\.yaml"):
        check_launch(arguments, family(), ALGORITHMS)


def test_inline_decoding_defaults_reach_the_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLADA_SGLANG_DECODING", raising=False)
    env.set_decoding("{threshold: 0.8}")
    assert parse_decoding(env.load().decoding) == {"threshold": 0.8}
    env.set_decoding(None)
    assert env.load().decoding == ""
    monkeypatch.setenv("LLADA_SGLANG_DECODING", "{steps: 4}")
    env.set_decoding(None)
    assert parse_decoding(env.load().decoding) == {"steps": 4}
