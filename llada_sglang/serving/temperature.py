"""A temperature that is not given: 0, as LLaDA2 is published, and not the host's 1.

The scheduler cannot tell the two apart, so the default is set where requests come in: declared as
a preferred sampling parameter (`serving.defaults`), and here where the host would fill in its own.
A temperature in the checkpoint's generation_config.json wins, as it does in the host, and
`--sampling-defaults openai` asks for the host's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llada_sglang.serving.http import serves_ours

DEFAULT = 0.0


def preferred(given: str | Mapping[str, Any] | None, sampling_defaults: str) -> Any:
    """The value of --preferred-sampling-params: the user's own, completed by our temperature.

    given: text of a JSON object, or the object. What is neither is left for the host to refuse.
    """
    if sampling_defaults == "openai":
        return given
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return given
    if given is None:
        given = {}
    return {"temperature": DEFAULT, **given} if isinstance(given, Mapping) else given


def chat_defaults(original: Callable[[Any], dict[str, Any]], model_config: Any) -> dict[str, Any]:
    """AROUND `ModelConfig.get_default_sampling_params`, which chat and responses start from."""
    params = original(model_config)
    if model_config.sampling_defaults == "openai" or not serves_ours(model_config):
        return params
    return {"temperature": DEFAULT, **params}


def completion_params(
    original: Callable[..., dict[str, Any]], serving: Any, request: Any
) -> dict[str, Any]:
    """AROUND `OpenAIServingCompletion._build_sampling_params`, whose request defaults to 1."""
    params = original(serving, request)
    if "temperature" not in request.model_fields_set and serves_ours(
        serving.tokenizer_manager.model_config
    ):
        del params["temperature"]
    return params
