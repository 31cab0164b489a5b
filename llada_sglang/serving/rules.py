"""Server flags that cannot work with a LLaDA2 checkpoint. Each is an error, never a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_sglang import env
from llada_sglang.checkpoint import CheckpointFamily
from llada_sglang.config import Decoding
from llada_sglang.errors import DecodeParamError, LaunchConfigError, LLaDAError
from llada_sglang.quantization import quantization_config

ALGORITHM = "BlockDiffusion"


@dataclass(frozen=True, slots=True)
class Rule:
    """A server flag and the only values it may have.

    allowed: predicate on the value; expected: the allowed values in words; reason: a clause.
    """

    name: str
    allowed: Callable[[Any], bool]
    expected: str
    reason: str

    def check(self, config: Any) -> None:
        """Raise LaunchConfigError where `config` holds a value that is not allowed."""
        value = getattr(config, self.name)
        if not self.allowed(value):
            raise LaunchConfigError(
                f"{flag(self.name)} must be {self.expected} for a LLaDA2 model, got {value!r}: "
                f"{self.reason}."
            )


def flag(name: str) -> str:
    """The command line's spelling of a server argument."""
    return "--" + name.replace("_", "-")


def _off(value: Any) -> bool:
    return not value


def _one(value: Any) -> bool:
    return value in (None, 1)


def _unset(name: str, reason: str) -> Rule:
    return Rule(name, _off, "left off", reason)


def _single(name: str, reason: str) -> Rule:
    return Rule(name, _one, "1", reason)


_KV_ONE_TIER = "committed blocks live in one KV pool and one radix tree"
_NO_DRAFT = "a block is drafted and verified by its own denoise steps"
_NO_EXPERTS = ("awq", "gptq", "gguf", "bitsandbytes")
_ONE_FORWARD = "a denoise step needs the whole model in one forward"

RULES: tuple[Rule, ...] = (
    _single("pp_size", _ONE_FORWARD + "; use --tp-size"),
    _single("dcp_size", "a block row reads its whole prefix on one rank"),
    _single("attn_cp_size", "a block row reads its whole prefix on one rank"),
    _unset("enable_prefill_cp", "a block row reads its whole prefix on one rank"),
    _unset("enable_dp_attention", "ranks would run different numbers of steps; use --dp-size"),
    _unset("enable_two_batch_overlap", _ONE_FORWARD),
    _unset("enable_single_batch_overlap", _ONE_FORWARD),
    _unset("enable_pdmux", "prefill and denoise rows already share each forward"),
    _unset("enable_mixed_chunk", "prefill and denoise rows already share each forward"),
    Rule(
        "disaggregation_mode",
        lambda value: value == "null",
        "null",
        "prefill and denoise rows share one forward on one server",
    ),
    _unset("encoder_only", "the model has no encoder"),
    _unset("language_only", "the model has no encoder"),
    _unset("enable_lora", "the model's layers carry no adapters"),
    _unset("lora_paths", "the model's layers carry no adapters"),
    _unset("speculative_algorithm", _NO_DRAFT),
    _unset("speculative_draft_model_path", _NO_DRAFT),
    _unset(
        "enable_deterministic_inference",
        "the host aligns chunks to 4096 tokens there, rows are aligned to the block",
    ),
    _unset("enable_hierarchical_cache", _KV_ONE_TIER),
    _unset("enable_lmcache", _KV_ONE_TIER),
    _unset("enable_flexkv", _KV_ONE_TIER),
    _unset("enable_kv_cache_sharding", _KV_ONE_TIER),
    _unset("prefill_only_disable_kv_cache", "every denoise step reads the prefix from the KV pool"),
    _unset("is_embedding", "the model generates text and has no pooled embedding"),
    _unset("enable_watermark", "the host's watermark samples one token at a time"),
    _unset("use_ray", "the plugin is handed to child processes through their environment"),
    _single("tokenizer_worker_num", "the host loads no plugin in separate tokenizer workers"),
    _unset("smg_grpc_mode", "its server passes requests on without our checks; use --grpc-port"),
    _unset("grpc_mode", "its server passes requests on without our checks; use --grpc-port"),
    Rule(
        "quantization",
        lambda value: value is None or (isinstance(value, str) and value not in _NO_EXPERTS),
        f"left off or another than {', '.join(_NO_EXPERTS)}",
        "SGLang cannot load this model's experts in these ways. It reads a checkpoint's method from"
        " config.json, and takes awq_marlin or gptq_marlin for one of AWQ or GPTQ",
    ),
    Rule(
        "model_impl",
        lambda value: value in ("auto", "sglang"),
        "auto or sglang",
        "only our model class computes block rows",
    ),
)


def check_launch(config: Any, family: CheckpointFamily, algorithms: frozenset[str]) -> None:
    """Refuse what cannot work, naming the flag, its value, what is allowed and why.

    config: the host's view of the arguments as they stand. algorithms: the decoding algorithms the
    host knows. Raises LaunchConfigError.
    """
    for rule in RULES:
        rule.check(config)
    _check_algorithm(config, algorithms)
    _check_decoding(config, family)
    _check_graphs(config)
    _check_widths(config, family.block_size)
    _check_quantization(config, family)


def _check_algorithm(config: Any, algorithms: frozenset[str]) -> None:
    name = config.dllm_algorithm
    if name is not None and name not in algorithms:
        raise LaunchConfigError(
            f"--dllm-algorithm must be one of {', '.join(sorted(algorithms))}, got {name!r}; "
            f"the default is {ALGORITHM}."
        )
    if name in (None, ALGORITHM) and not config.dllm_fdfo:
        raise LaunchConfigError(
            f"--no-dllm-fdfo needs one of the host's own algorithms: {ALGORITHM} has no "
            f"synchronous mode, requests join and leave at any step. Drop the flag, or add "
            f"--dllm-algorithm LowConfidence."
        )


def is_inline(value: str | None) -> bool:
    """Whether `--dllm-algorithm-config` holds the parameters themselves and not a file's name."""
    return value is not None and value.lstrip().startswith("{")


def parse_decoding(text: str) -> dict[str, Any]:
    """Read a YAML mapping of decoding parameters. Raises LaunchConfigError where it is none."""
    import yaml

    given = yaml.safe_load(text) or {}
    if not isinstance(given, dict):
        raise LaunchConfigError("it must hold a mapping of parameter names to values.")
    return given


def server_decoding(family: CheckpointFamily, given: Mapping[str, Any] | None) -> Decoding:
    """The policies for a checkpoint and the defaults of a server.

    given: what `--dllm-algorithm-config` holds. Raises DecodeParamError.
    """
    from llada_sglang.decoding.policies import policy_classes
    from llada_sglang.decoding.policy import Checkpoint, PolicySet

    checkpoint = Checkpoint(family.block_size, family.mask_id, family.delete_id, family.split_id)
    return Decoding.of_server(PolicySet(checkpoint, policy_classes()), family.policy, given)


def _check_decoding(config: Any, family: CheckpointFamily) -> None:
    value = config.dllm_algorithm_config
    if config.dllm_algorithm not in (None, ALGORITHM):
        return
    import yaml

    given = env.load().decoding
    if value is not None:
        given = value
    try:
        server_decoding(family, None)
    except DecodeParamError as error:
        raise LaunchConfigError(f"decoding_policy in config.json: {error}") from error
    if not given:
        return
    try:
        text = given if value is None or is_inline(value) else Path(value).read_text("utf-8")
        server_decoding(family, parse_decoding(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LLaDAError) as error:
        source = "LLADA_SGLANG_DECODING" if value is None else "--dllm-algorithm-config"
        raise LaunchConfigError(f"{source} {given}: {error}") from error


def _check_graphs(config: Any) -> None:
    if config.dllm_algorithm not in (None, ALGORITHM):
        return
    for name in ("cuda_graph_backend_decode", "cuda_graph_backend_prefill"):
        value = getattr(config, name)
        if value not in (None, "disabled"):
            raise LaunchConfigError(
                f"{flag(name)} must be disabled for {ALGORITHM}, got {value!r}: the host's graphs "
                f"hold its own forward, not block rows. Drop the flag."
            )
    if config.cuda_graph_config is not None:
        raise LaunchConfigError(
            f"--cuda-graph-config cannot be given for {ALGORITHM}: the host's graphs hold its own "
            f"forward, not block rows. Drop the flag."
        )


def _check_quantization(config: Any, family: CheckpointFamily) -> None:
    stored = quantization_config(family.config)
    if config.device == "cpu" and (stored is not None or config.quantization is not None):
        method = config.quantization or (stored or {}).get("quant_method")
        raise LaunchConfigError(
            f"--device cpu cannot be given for weights quantised as {method!r}: SGLang's kernels "
            f"for them need a GPU. Serve an unquantised checkpoint here."
        )
    if stored is not None and config.quantization in (None, "awq_marlin", "gptq_marlin"):
        _check_expert_shares(config, family.config, stored)


def _check_expert_shares(config: Any, model: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse shares of experts whose scales SGLang brings in an order that no kernel reads.

    Source: sglang.srt.hardware_backend.gpu.quantization.gptq_kernels and awq_kernels.
    """
    method = str(stored.get("quant_method", "")).lower()
    if method not in ("awq", "gptq"):
        return
    shares, group = config.tp_size // config.ep_size, stored.get("group_size")
    if method == "gptq" and shares > 1 and group != -1:
        raise LaunchConfigError(
            f"--tp-size must be 1 for experts quantised as 'gptq', got {config.tp_size}: SGLang "
            f"gives a rank scales of other groups than its weights. Use one GPU, or an AWQ or fp8 "
            f"checkpoint."
        )
    hidden, width = model["hidden_size"], model["moe_intermediate_size"] // shares
    if width == group != hidden:
        raise LaunchConfigError(
            f"--tp-size {config.tp_size} leaves a rank {width} of each expert's "
            f"{model['moe_intermediate_size']} neurons, one group of the quantisation: SGLang then "
            f"takes the experts' scales in a wrong order. Use fewer ranks, or an fp8 checkpoint."
        )


def _check_widths(config: Any, block: int) -> None:
    page = config.page_size
    if page not in (None, block):
        raise LaunchConfigError(
            f"--page-size must be {block}, the checkpoint's block size, got {page}: a KV page "
            f"holds one block. Drop the flag."
        )
    chunk = config.chunked_prefill_size
    if chunk is not None and 0 < chunk < block:
        raise LaunchConfigError(
            f"--chunked-prefill-size must be at least {block}, the checkpoint's block size, or -1, "
            f"got {chunk}: a row is one whole block."
        )
    pool = config.max_total_tokens
    if pool is not None and pool < 2 * block:
        raise LaunchConfigError(
            f"--max-total-tokens must be at least {2 * block}, two blocks, got {pool}."
        )
    running = config.max_running_requests
    if running is not None and running < 1:
        raise LaunchConfigError(f"--max-running-requests must be at least 1, got {running}.")
