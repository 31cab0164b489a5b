"""The configuration class and its registration: no Python of a checkpoint is ever run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from llada_sglang.models.config import LLaDA2MoeConfig
from llada_sglang.weights import SHAPE_DEFAULTS

POISON = "raise SystemExit('remote code was run')\n"


def test_defaults_are_llada2_mini_and_agree_with_the_expected_tensors() -> None:
    config = LLaDA2MoeConfig()
    assert (config.mask_token_id, config.eos_token_id, config.block_size) == (156895, 156892, 32)
    assert config.norm_topk_prob is True
    for key, value in SHAPE_DEFAULTS.items():
        if key != "moe_shared_expert_intermediate_size":
            assert getattr(config, key) == value, key
    assert config.moe_shared_expert_intermediate_size == config.moe_intermediate_size


def test_keys_of_the_checkpoint_win_and_unknown_ones_are_kept() -> None:
    config = LLaDA2MoeConfig(hidden_size=64, num_attention_heads=4, head_dim=None, novelty=3)
    assert config.head_dim == 16
    assert config.novelty == 3
    assert LLaDA2MoeConfig(eos_token_id=[1, 2]).eos_token_id == [1, 2]


def test_both_spellings_of_the_rotary_base_reach_the_host() -> None:
    from sglang.srt.utils.hf_transformers_utils import get_rope_config

    assert get_rope_config(LLaDA2MoeConfig(rope_theta=123.0))[0] == 123.0
    new = LLaDA2MoeConfig(rope_parameters={"rope_type": "default", "rope_theta": 456.0})
    assert get_rope_config(new)[0] == 456.0


def test_it_survives_the_way_to_the_scheduler_process() -> None:
    config = LLaDA2MoeConfig(hidden_size=64, novelty=[1])
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_checkpoints_own_python_is_never_run(tmp_path: Path, trust_remote_code: bool) -> None:
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.utils.hf_transformers_utils import get_config

    from llada_sglang import models

    models.register()
    models.register()
    auto_map = {
        "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
        "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
        "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
    }
    content = {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "llada2_moe",
        "hidden_size": 48,
        "torch_dtype": "bfloat16",
        "auto_map": auto_map,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    for name in ("configuration_llada2_moe.py", "modeling_llada2_moe.py"):
        (tmp_path / name).write_text(POISON)
    config = get_config(str(tmp_path), trust_remote_code=trust_remote_code)
    assert type(config) is LLaDA2MoeConfig
    assert config.hidden_size == 48
    served, _ = ModelRegistry.resolve_model_cls(config.architectures)
    assert served.__module__ == "llada_sglang.models.llada2"
