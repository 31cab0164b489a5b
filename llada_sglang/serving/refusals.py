"""Fields of the host's requests that mean nothing here: each is refused, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llada_sglang.errors import RequestError


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that has to be left at its default. reason: a clause. default: besides None."""

    name: str
    reason: str
    default: Any = None

    def check(self, value: Any) -> None:
        """Raise RequestError where a value asks for something, also one of a batch."""
        if not _empty(value, self.default):
            raise RequestError(f"{self.name} is not served: {self.reason}. Leave it out.")


def refuse(refusals: Iterable[Refusal], given: Any) -> None:
    """Check the fields of a request, a mapping or an object. Raises RequestError for the first."""
    for refusal in refusals:
        if isinstance(given, Mapping):
            refusal.check(given.get(refusal.name))
        else:
            refusal.check(getattr(given, refusal.name, None))


def _empty(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_empty(one, default) for one in value)
    return value is None or value == {} or value == default


_TEXT_ONLY = "the model takes text only"
_ONE_SERVER = "prefill and denoise rows share one server"
_NO_SESSION = "a block may span two turns of a session"
_NO_SCORE = "prompt tokens have no log-probability under block diffusion, each sees its whole block"
_NO_ADAPTER = "the model's layers carry no adapters"
_NO_MARK = "a watermark marks tokens drawn one after the other"

_MEDIA = (
    Refusal("use_audio_in_video", _TEXT_ONLY, default=False),
    Refusal("video_config", _TEXT_ONLY),
    Refusal("images_config", _TEXT_ONLY),
    Refusal("mm_processor_kwargs", _TEXT_ONLY),
    Refusal("max_dynamic_patch", _TEXT_ONLY),
    Refusal("min_dynamic_patch", _TEXT_ONLY),
)

_ROUTING = (
    Refusal("bootstrap_host", _ONE_SERVER),
    Refusal("bootstrap_port", _ONE_SERVER),
    Refusal("bootstrap_room", _ONE_SERVER),
    Refusal("disagg_prefill_dp_rank", _ONE_SERVER),
)

GENERATE: tuple[Refusal, ...] = (
    Refusal("image_data", _TEXT_ONLY),
    Refusal("video_data", _TEXT_ONLY),
    Refusal("audio_data", _TEXT_ONLY),
    Refusal("mm_hashes", _TEXT_ONLY),
    Refusal("mm_content_hashes", _TEXT_ONLY),
    Refusal("modalities", _TEXT_ONLY),
    Refusal("image_max_dynamic_patch", _TEXT_ONLY),
    Refusal("video_max_dynamic_patch", _TEXT_ONLY),
    Refusal("need_wait_for_mm_inputs", _TEXT_ONLY),
    Refusal("num_items_assigned", _TEXT_ONLY),
    Refusal("encoder_urls", _TEXT_ONLY),
    *_MEDIA,
    *_ROUTING,
    Refusal("bootstrap_pair_key", _ONE_SERVER),
    Refusal("decode_tp_size", _ONE_SERVER),
    Refusal("session_params", _NO_SESSION),
    Refusal("positional_embed_overrides", "a block row starts from token ids"),
    Refusal("return_flat_raw_top_logprobs", _NO_SCORE, default=False),
    Refusal("multi_item_delimiter_indices", _NO_SCORE),
    Refusal("token_indices_to_pool", _NO_SCORE),
    Refusal("kv_hints", "they address a tiered KV cache, and there is one tier"),
    Refusal("input_embeds", "a block row starts from token ids"),
    Refusal("lora_path", _NO_ADAPTER),
    Refusal("lora_id", _NO_ADAPTER),
    Refusal("custom_logit_processor", "it sees one position per step, and a block has many"),
    Refusal("watermark", _NO_MARK, default={"enabled": False}),
    Refusal("return_hidden_states", "they change with every step of a block", default=False),
    Refusal("return_sampling_mask", "a block draws many tokens per step", default=False),
    Refusal("sampling_logprobs_mode", "a block draws many tokens per step"),
    Refusal(
        "return_routed_experts",
        "a token passes its experts once per step of its block",
        default=False,
    ),
    Refusal("return_indexer_topk", "the model has no indexer", default=False),
    Refusal("max_thinking_tokens", "a block is not cut where a budget ends"),
    Refusal("return_bytes", "the model draws no images", default=False),
    Refusal("return_entropy", "the host computes none", default=False),
)
"""Fields of GenerateReqInput, which every way in comes down to."""

SAMPLING: tuple[Refusal, ...] = (
    Refusal("beam_width", "a block has no single order to search in, n gives samples", default=1),
    Refusal("watermark", _NO_MARK, default={"enabled": False}),
)
"""Fields of SamplingParams."""

COMPLETION: tuple[Refusal, ...] = (
    Refusal("suffix", "the model is not asked to fill a gap between two texts", default=""),
    Refusal("session_params", _NO_SESSION),
    Refusal("return_spec_tokens_details", "there is no draft model", default=False),
)
"""Fields of CompletionRequest that the host drops on the way to GenerateReqInput."""

CHAT: tuple[Refusal, ...] = (
    Refusal("session_params", _NO_SESSION),
    Refusal("return_spec_tokens_details", "there is no draft model", default=False),
    Refusal("thinking", "the chat template has no such setting"),
    Refusal("task", "the chat template has no such setting"),
    Refusal("min_dynamic_patch", _TEXT_ONLY),
)
"""Fields of ChatCompletionRequest that the host drops on the way to GenerateReqInput."""

RESPONSES: tuple[Refusal, ...] = (
    Refusal("max_tool_calls", "the host does not count the calls of a built-in tool"),
)
"""Fields of ResponsesRequest that the host drops on the way to GenerateReqInput."""
