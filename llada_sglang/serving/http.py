"""The bodies of HTTP requests as they arrive, before the host drops what it does not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from typing import Any

from fastapi import HTTPException

from llada_sglang.checkpoint import is_llada2
from llada_sglang.errors import RequestError
from llada_sglang.serving import bodies
from llada_sglang.serving.refusals import CHAT, COMPLETION, RESPONSES, refuse

Rewrite = Callable[[dict[str, Any]], dict[str, Any]]

# What OpenAI's services read and an answer does not show.
_HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    }
)

_INSTANCE = frozenset({"text", "input_ids", "input_embeds", "image_data"})
_STATE = frozenset(
    {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized"}
)
_RESPONSE_LOGPROBS = "message.output_text.logprobs"


async def read_json(original: Callable[..., Awaitable[Any]], request: Any) -> Any:
    """AROUND `ORJSONRequest.json`: the body in the host's own form.

    The host reads it twice, to build its request and to check it against its schema. A body that
    cannot mean what it says is a 400.
    """
    if hasattr(request, "_json"):
        return await original(request)
    body = await original(request)
    rewrite = rewrites().get(getattr(request.scope.get("route"), "name", ""))
    if rewrite is None or not isinstance(body, dict) or not _serves_ours(request):
        return body
    try:
        request._json = rewrite(body)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error
    return request._json


def serves_ours(model_config: Any) -> bool:
    """Whether a server's model is a LLaDA2, by the host's model configuration."""
    hf_config = model_config.hf_config
    return is_llada2({"architectures": getattr(hf_config, "architectures", None)})


def _serves_ours(request: Any) -> bool:
    return serves_ours(request.app.state.openai_serving_completion.tokenizer_manager.model_config)


@cache
def rewrites() -> dict[str, Rewrite]:
    """The host's name of a route -> what its body is turned into."""
    from sglang.srt.entrypoints.openai.protocol import (
        ChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
    )
    from sglang.srt.managers.io_struct import GenerateReqInput

    keys = frozenset(f.name for f in fields(GenerateReqInput))
    sampling = sampling_keys()
    chat = partial(_chat, known=_keys(ChatCompletionRequest) | {"reasoning"})
    return {
        "generate_request": partial(bodies.generate_body, known=keys, sampling=sampling),
        "vertex_generate": partial(_vertex, known=keys, sampling=sampling),
        "openai_v1_completions": partial(_completion, known=_keys(CompletionRequest)),
        "openai_v1_chat_completions": chat,
        "sagemaker_chat_completions": chat,
        "v1_responses_request": partial(
            _responses, known=_keys(ResponsesRequest) | {"client_metadata", "stream_options"}
        ),
    }


@cache
def sampling_keys() -> frozenset[str]:
    """The sampling parameters a client may give; the host's struct holds its own state too."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    return frozenset(SamplingParams.__struct_fields__) - _STATE


def _keys(model: Any) -> frozenset[str]:
    return frozenset(
        key for name, field in model.model_fields.items() for key in (name, field.alias) if key
    )


def _vertex(
    body: dict[str, Any], known: frozenset[str], sampling: frozenset[str]
) -> dict[str, Any]:
    instances = body.get("instances")
    for instance in instances if isinstance(instances, list) else ():
        for key in instance if isinstance(instance, Mapping) else (repr(instance),):
            if key not in _INSTANCE:
                raise RequestError(
                    f"unknown key {key!r} in an instance; it may hold one of "
                    f"{', '.join(sorted(_INSTANCE))}."
                )
    parameters = body.get("parameters")
    if isinstance(parameters, Mapping):
        parameters = bodies.generate_body(parameters, known, sampling)
        for key in _INSTANCE & set(parameters):
            raise RequestError(f"{key} in parameters: prompts belong into instances.")
        body = body | {"parameters": parameters}
    return body


def _completion(body: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    body = bodies.openai_body(body, known, _HARMLESS, nullable=("temperature",))
    refuse(COMPLETION, body)
    if body.get("best_of") not in (None, body.get("n", 1)):
        raise RequestError(
            f"best_of must equal n, got {body['best_of']!r}: every sample drawn is returned. "
            f"Leave it out."
        )
    return body


def _chat(body: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    harmless = _HARMLESS | ({"modalities"} if body.get("modalities") == ["text"] else set())
    body = bodies.openai_body(body, known, harmless)
    refuse(CHAT, body)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise RequestError("top_logprobs needs logprobs to be true. Set it, or leave both out.")
    return body


def _responses(body: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    body = bodies.openai_body(body, known, _HARMLESS)
    refuse(RESPONSES, body)
    if body.get("top_logprobs") and _RESPONSE_LOGPROBS not in (body.get("include") or ()):
        raise RequestError(
            f"top_logprobs needs {_RESPONSE_LOGPROBS!r} in include. Add it, or leave both out."
        )
    return body
