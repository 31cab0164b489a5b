"""What is read from a checkpoint directory, and how a broken one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llada_sglang.checkpoint import is_llada2, read_family
from llada_sglang.errors import CheckpointError
from llada_sglang.quantization import stored_names
from llada_sglang.validation import validate
from llada_sglang.weights import normalized, weight_shapes

CONFIG: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_shared_experts": 1,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "mask_token_id": 90,
    "eos_token_id": [91, 92],
    "block_size": 16,
}
TOKENIZER = {
    "added_tokens": [{"id": 70, "content": "<|mask|>"}, {"id": 71, "content": "<|endoftext|>"}],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    save_file(
        {name: torch.zeros(shape) for name, shape in weight_shapes(CONFIG).items()},
        directory / "model.safetensors",
    )
    return directory


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def configure(directory: Path, *without: str, **changes: Any) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in without} | changes
    (directory / "config.json").write_text(json.dumps(config))


def shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors in two, with an index, as published checkpoints are."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    where = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if where[n] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def test_a_whole_checkpoint_is_accepted_single_and_sharded(broken: Path) -> None:
    assert validate(broken).block_size == 16
    shard(broken)
    assert validate(broken).mask_id == 90


def test_ids_come_from_config_first(good: Path) -> None:
    family = read_family(good)
    assert (family.mask_id, family.eos_ids, family.block_size) == (90, (91, 92), 16)
    assert (family.vocab_size, family.path) == (96, str(good))
    assert family.config == CONFIG


def test_ids_come_from_the_tokenizer_second(broken: Path) -> None:
    configure(broken, "mask_token_id", "eos_token_id")
    family = read_family(broken)
    assert (family.mask_id, family.eos_ids) == (70, (71,))


def test_ids_of_added_tokens_may_stand_in_tokenizer_config(broken: Path) -> None:
    configure(broken, "mask_token_id", "eos_token_id")
    (broken / "tokenizer.json").unlink()
    decoder = {"60": {"content": "<|mask|>"}, "61": {"content": "</s>"}}
    settings = {"added_tokens_decoder": decoder, "eos_token": {"content": "</s>"}}
    (broken / "tokenizer_config.json").write_text(json.dumps(settings))
    family = read_family(broken)
    assert (family.mask_id, family.eos_ids) == (60, (61,))


def test_published_ids_are_the_last_resort(broken: Path) -> None:
    configure(broken, "mask_token_id", "eos_token_id", "block_size", vocab_size=157184)
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    family = read_family(broken)
    assert (family.mask_id, family.eos_ids, family.block_size) == (156895, (156892,), 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 96}, r"mask_token_id must be in \[0, 96\), got 96"),
        ({"mask_token_id": True}, "mask_token_id must be"),
        ({"eos_token_id": [91, "x"]}, "eos_token_id must be"),
        ({"eos_token_id": []}, "must not be an empty list"),
        ({"eos_token_id": 90}, "are both 90"),
        ({"block_size": 0}, "block_size in config.json must be an integer >= 1, got 0"),
        ({"vocab_size": None}, "vocab_size in config.json must be an integer >= 1"),
        ({"architectures": ["LLaDAModelLM"]}, r"\['LLaDAModelLM'\]; llada_sglang serves LLaDA2Moe"),
        ({"architectures": None}, "serves LLaDA2MoeModelLM"),
    ],
)
def test_a_config_that_cannot_be_is_named(
    broken: Path, changes: dict[str, Any], message: str
) -> None:
    configure(broken, **changes)
    with pytest.raises(CheckpointError, match=message):
        validate(broken)


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _cut_header(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def _extend(directory: Path) -> None:
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"rest")


def _web_page(directory: Path) -> None:
    (directory / "model.safetensors").write_text("<html>404 not found</html>")


def _drop_shard(directory: Path) -> None:
    (directory / shard(directory)["lm_head.weight"]).unlink()


def _misplace_tensor(directory: Path) -> None:
    where = shard(directory)
    where["model.norm.weight"] = next(f for f in where.values() if f != where["model.norm.weight"])
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def _lose_tensors(directory: Path) -> None:
    _rewrite(directory, lambda t: [t.pop(n) for n in list(t) if ".experts.3." in n])


def _unknown_tensor(directory: Path) -> None:
    _rewrite(directory, lambda t: t.update({"model.layers.1.mlp.gate.wait": torch.zeros(1)}))


def _wrong_shape(directory: Path) -> None:
    _rewrite(directory, lambda t: t.update({"model.norm.weight": torch.zeros(17)}))


def _remove(*names: str) -> Edit:
    return lambda directory: [(directory / name).unlink() for name in names]


def _garble(name: str) -> Edit:
    return lambda directory: (directory / name).write_text('{"a": ')


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_remove("config.json"), "is no checkpoint: it has no config.json"),
        (_garble("config.json"), "config.json is not readable JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "must be a JSON object, got list"),
        (_remove("tokenizer.json"), "has no tokenizer"),
        (_garble("tokenizer.json"), "tokenizer.json is not readable JSON"),
        (_garble("tokenizer_config.json"), "tokenizer_config.json is not readable JSON"),
        (_remove("model.safetensors"), "has no weights"),
        (_truncate, r"model.safetensors is truncated: \d+ bytes, its header describes \d+"),
        (_cut_header, "truncated or no safetensors file: 40 bytes"),
        (_extend, "is too long"),
        (_web_page, "truncated or no safetensors file"),
        (_drop_shard, "safetensors is missing; model.safetensors.index.json lists it"),
        (_misplace_tensor, "does not hold model.norm.weight"),
        (_lose_tensors, r"6 missing \(model.layers.1.mlp.experts.3.down_proj.weight, "),
        (_unknown_tensor, r"1 unknown \(model.layers.1.mlp.gate.wait\)"),
        (_wrong_shape, r"model.norm.weight has shape \[17\], config.json asks for \[16\]"),
    ],
)
def test_a_broken_directory_is_one_clear_error(broken: Path, edit: Edit, message: str) -> None:
    edit(broken)
    with pytest.raises(CheckpointError, match=message):
        validate(broken)


def test_what_a_launch_does_not_need_is_not_asked_for(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "model.safetensors").unlink()
    assert validate(broken, need_tokenizer=False, need_weights=False).mask_id == 90


def test_a_path_that_does_not_exist_is_not_looked_up_on_a_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        validate(tmp_path / "nowhere")


def test_quantized_checkpoints_have_the_tensors_of_their_method(broken: Path) -> None:
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    configure(broken, quantization_config=fp8)
    with pytest.raises(CheckpointError, match=r"\d+ missing .*\.weight_scale"):
        validate(broken)

    def scale(tensors: dict[str, torch.Tensor]) -> None:
        names = stored_names({"quantization_config": fp8}, weight_shapes(CONFIG)).required
        tensors.update({name: torch.zeros(()) for name in names - tensors.keys()})

    _rewrite(broken, scale)
    validate(broken)


def test_fused_experts_and_wrapper_prefixes_are_the_same_tensors() -> None:
    given = {
        "model.language_model.layers.1.mlp.experts.up_proj": (4, 12, 16),
        "model.lm_head.weight": (96, 16),
    }
    renamed = normalized(given, num_experts=4)
    expected = weight_shapes(CONFIG)
    assert len(renamed) == 5
    assert all(expected[name] == shape for name, shape in renamed.items())


def test_only_a_llada_is_ours_to_serve_or_to_refuse() -> None:
    assert is_llada2({"architectures": ["LLaDA2MoeModelLM"]})
    assert is_llada2({"architectures": ["LLaDAModelLM"], "model_type": "llada"})
    assert is_llada2({"model_type": "llada2_moe"})
    assert not is_llada2({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})
    assert not is_llada2({})


def test_the_expected_tensors_are_those_of_a_real_checkpoint(nano: Path) -> None:
    if not (nano / "config.json").is_file():
        pytest.skip("the trained checkpoint is not in this tree")
    config = json.loads((nano / "config.json").read_text())
    with safe_open(nano / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == weight_shapes(config)
