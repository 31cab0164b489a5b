"""What every request passes on its way in, whichever interface it came through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

from llada_sglang.errors import RequestError
from llada_sglang.serving.bodies import sampling_params
from llada_sglang.serving.http import sampling_keys, serves_ours
from llada_sglang.serving.refusals import GENERATE, SAMPLING, refuse
from llada_sglang.serving.stream_usage import keep_counters


def admit(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """AROUND `TokenizerManager.generate_request`: checked, and with counters kept for its stream.

    Raises RequestError, which the host answers with a 400.
    """
    if serves_ours(manager.model_config):
        if isinstance(obj, EmbeddingReqInput):
            raise RequestError(
                "embeddings are not served: a diffusion language model has no pooled vector. "
                "Use /generate or an OpenAI route for text."
            )
        if isinstance(obj, GenerateReqInput):
            refuse(GENERATE, obj)
            obj.sampling_params = _sampling(obj)
    return keep_counters(original, manager, obj, request)


def refuse_scores(original: Callable[..., Any], manager: Any, *given: Any, **named: Any) -> Any:
    """AROUND `TokenizerManagerScoreMixin.score_request`, behind /v1/score and its relatives."""
    if serves_ours(manager.model_config):
        raise RequestError(
            "scores are not served: a token's probability under block diffusion depends on its "
            "whole block, not on the text before it. Log-probabilities of generated tokens are "
            "(return_logprob)."
        )
    return original(manager, *given, **named)


def refuse_sessions(original: Callable[..., Any], manager: Any, *given: Any, **named: Any) -> Any:
    """AROUND `TokenizerControlMixin.open_session`."""
    if serves_ours(manager.model_config):
        raise RequestError(
            "sessions are not served: a block may span two turns of a session. Send the whole "
            "prompt; its cached blocks are found again."
        )
    return original(manager, *given, **named)


def _sampling(obj: GenerateReqInput) -> Any:
    """The sampling parameters of one prompt or of each of a batch; null is left to the host."""
    given = obj.sampling_params
    if isinstance(given, list):
        prompts = obj.text if obj.text is not None else obj.input_ids
        if not isinstance(prompts, list) or not prompts or isinstance(prompts[0], int):
            raise RequestError("sampling_params must be one mapping for one prompt, got a list.")
        if len(given) != len(prompts):
            raise RequestError(
                f"sampling_params must be one mapping, or {len(prompts)}, one per prompt; got "
                f"{len(given)}."
            )
        return [_checked(one) for one in given]
    return given if given is None else _checked(given)


def _checked(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RequestError(f"sampling_params must be a mapping of names to values, got {given!r}.")
    params = sampling_params(given, sampling_keys())
    refuse(SAMPLING, params)
    return params
