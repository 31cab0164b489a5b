"""Launch defaults of LLaDA2 checkpoints, chosen by their architecture. A user's flag always wins.

The host resolves its arguments in steps that a plugin may wrap (`arg_groups/resolution_hooks.py`);
an exception raised in one stops the launch, unlike one raised while plugins are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llada_sglang import compat, env
from llada_sglang.attention.choice import FLASHINFER, default_backend
from llada_sglang.checkpoint import (
    CheckpointFamily,
    is_llada2,
    read_config,
    read_family,
)
from llada_sglang.errors import LaunchConfigError
from llada_sglang.platform.detect import accelerator
from llada_sglang.serving import memory, parsers, temperature
from llada_sglang.serving.rules import ALGORITHM, check_launch, is_inline
from llada_sglang.validation import validate

logger = logging.getLogger(__name__)

CPU_ATTENTION = "block_row_torch"
SOURCE = "llada_sglang"
PAGED = "SGLANG_FLASHINFER_USE_PAGED"
RUST_SERVER = "SGLANG_RUST_SERVER"
NO_COPY = "SGLANG_EAGER_INPUT_NO_COPY"
SPIN = "GOMP_SPINCOUNT"

Step = Callable[[Any], None]


@cache
def register() -> None:
    """Wrap the two resolution steps where the model is known and where defaults are filled in.

    The command line is parsed before the model is known, so it learns the names of our attention
    backend and of our parsers here.
    """
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
    from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES

    for names in (TOOL_CALL_PARSER_NAMES, REASONING_PARSER_NAMES):
        if parsers.FAMILY not in names:
            names.append(parsers.FAMILY)
    if CPU_ATTENTION not in ATTENTION_BACKEND_CHOICES:
        ATTENTION_BACKEND_CHOICES.append(CPU_ATTENTION)
    register_resolution_hook("handle_model_source_paths")(_prepare_host)
    register_resolution_hook("handle_missing_default_values")(_declare_defaults)


def serves_llada2(model_path: str, revision: str | None) -> bool:
    """Whether a path or hub id holds a LLaDA model; what cannot be read is left to the host."""
    try:
        return is_llada2(read_config(model_path, revision=revision))
    except Exception:
        return False


def _prepare_host(server_args: Any, previous: Step) -> None:
    """Install our changes for a LLaDA2 model, before the host first reads its configuration.

    For any other model nothing is changed, in this process or in its children.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    previous(server_args)
    config = resolving_view(server_args)
    ours = serves_llada2(config.model_path, config.revision)
    env.set_active(ours)
    if ours:
        env.load()  # refuses unknown variables of ours
        # Before the host asks transformers for the configuration of an architecture unknown to it.
        read_family(config.model_path, revision=config.revision)
        compat.install(apply=True)


def _declare_defaults(server_args: Any, previous: Step) -> None:
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    config = resolving_view(server_args)
    if config.device is None and accelerator() is None:
        # The host asks the platform, which answers with a torch.device, and then splits it as text.
        declare_resolution(server_args, SOURCE, device="cpu")
    previous(server_args)
    if not env.is_active():
        return
    from sglang.srt.dllm.algorithm import algo_name_to_cls

    family = validate(
        config.model_path,
        revision=config.revision,
        need_weights=config.load_format != "dummy",
        need_tokenizer=not config.skip_tokenizer_init
        and config.tokenizer_path in (None, config.model_path),
    )
    check_launch(config, family, frozenset(algo_name_to_cls))
    defaults = choose_defaults(config, family) | parsers.choose(config)
    _require_host_settings(config)
    decoding = config.dllm_algorithm_config
    inline = config.dllm_algorithm in (None, ALGORITHM) and is_inline(decoding)
    env.set_decoding(decoding if inline else None)
    if inline:
        defaults["dllm_algorithm_config"] = None  # the host would look for a file of that name
    declare_resolution(server_args, SOURCE, **defaults)
    declare_resolution(
        server_args,
        SOURCE,
        preferred_sampling_params=temperature.preferred(
            config.preferred_sampling_params, config.sampling_defaults
        ),
    )
    logger.info(
        "llada_sglang: block %d, mask id %d, %s",
        family.block_size,
        family.mask_id,
        ", ".join(f"{name}={value}" for name, value in sorted(defaults.items())),
    )


def _require_host_settings(config: Any) -> None:
    if config.device == "cpu":
        # Threads that spin after a shared operation keep a core from whoever works next.
        env.set_host_default(SPIN, "3000")
    if env.is_set(RUST_SERVER):
        raise LaunchConfigError(
            f"{RUST_SERVER} must be 0 or unset for a LLaDA2 model: that server passes requests on "
            f"without our checks. Unset it."
        )
    if config.device == "cuda":
        _require_setting(
            PAGED,
            "the rows of a forward read each other's keys and values from the pool, which "
            "FlashInfer's other wrapper fills too late",
        )
    if config.dllm_algorithm in (None, ALGORITHM):
        _require_setting(
            NO_COPY,
            "a forward has more rows than requests may run, and the host's input buffers are "
            "sized by the latter",
        )


def _require_setting(name: str, reason: str) -> None:
    if env.set_host_default(name, "1").lower() not in ("1", "true", "yes", "y"):
        raise LaunchConfigError(
            f"{name} must be 1 or unset for a LLaDA2 model: {reason}. Unset it."
        )


def choose_defaults(config: Any, family: CheckpointFamily) -> dict[str, Any]:
    """Return the server arguments to declare: only those that `config` leaves open.

    config: the host's view of the arguments, its device already resolved.
    """
    chosen: dict[str, Any] = {}
    if config.dllm_algorithm is None:
        chosen["dllm_algorithm"] = ALGORITHM
    if config.page_size is None:
        chosen["page_size"] = family.block_size
    if config.dllm_algorithm in (None, ALGORITHM):
        # The host's graphs are captured with its own forward, which computes all logits. The
        # scheduler captures ours, by the flags as the user gave them (graphs/setup.py).
        chosen["disable_cuda_graph"] = True
        if config.constrained_json_max_whitespace_cnt is None and (
            config.constrained_json_whitespace_pattern is None
        ):
            # Free whitespace is a loop a constrained row may never leave, and fixed separators
            # are text that costs no step.
            chosen["constrained_json_disable_any_whitespace"] = True
    if config.device == "cpu":
        chosen.update(_cpu_defaults(config, family))
    else:
        chosen.update(_accelerator_defaults(config, family))
    return chosen


def _cpu_defaults(config: Any, family: CheckpointFamily) -> dict[str, Any]:
    import psutil

    chosen: dict[str, Any] = {}
    if config.attention_backend is None:
        chosen["attention_backend"] = CPU_ATTENTION
    if config.dtype == "auto":
        # The host turns float32 into float16, which a CPU computes slowly.
        chosen["dtype"] = _stored_dtype(family.config)
    chosen["disable_cuda_graph"] = True
    # The host's idle loop spins; here it would take a core from whatever else runs.
    chosen["sleep_on_idle"] = True
    tokens = config.max_total_tokens
    if tokens is None:
        tokens = memory.cpu_pool_tokens(
            memory.kv_bytes_per_token(family.config, _element_bytes(config, family)),
            psutil.virtual_memory().available,
            config.context_length or family.config.get("max_position_embeddings", 0),
            family.block_size,
        )
        chosen["max_total_tokens"] = tokens
    if config.max_running_requests is None:
        chosen["max_running_requests"] = memory.running_requests(tokens, least=8, most=64)
    return chosen


def _accelerator_defaults(config: Any, family: CheckpointFamily) -> dict[str, Any]:
    from sglang.srt.utils.common import get_device_memory_capacity

    chosen: dict[str, Any] = {}
    if config.max_running_requests is None:
        tokens = config.max_total_tokens
        if tokens is None:
            mebibytes = get_device_memory_capacity(config.device) or 0
            tokens = memory.accelerator_pool_tokens(
                memory.kv_bytes_per_token(family.config, _element_bytes(config, family)),
                int(mebibytes) << 20,
                memory.weight_bytes(Path(family.path)),
                config.tp_size,
            )
        # The host's own algorithms capture graphs for as many rows as requests may run.
        chosen["max_running_requests"] = memory.running_requests(tokens, least=8, most=128)
    if config.attention_backend is None and config.device == "cuda":
        ours = config.dllm_algorithm in (None, ALGORITHM)
        chosen["attention_backend"] = _cuda_attention(config, family) if ours else FLASHINFER
    return chosen


def _cuda_attention(config: Any, family: CheckpointFamily) -> str:
    import torch
    from sglang.srt.utils.common import is_hopper_with_cuda_12_3

    dtype = config.dtype if config.dtype not in ("auto", None) else _stored_dtype(family.config)
    if config.dtype in ("auto", None) and dtype == "float32":
        dtype = "float16"  # the host's choice on a GPU
    return default_backend(
        {"half": "float16", "float": "float32"}.get(dtype, dtype),
        str(config.kv_cache_dtype),
        hopper=is_hopper_with_cuda_12_3(),
        flashinfer=find_spec("flashinfer") is not None,
        nvidia=torch.version.hip is None,
    )


def _element_bytes(config: Any, family: CheckpointFamily) -> int:
    if str(config.kv_cache_dtype).startswith("fp8"):
        return 1
    given = config.dtype if config.dtype not in ("auto", None) else _stored_dtype(family.config)
    return 4 if given in ("float32", "float") else 2


def _stored_dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
