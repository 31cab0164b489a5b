"""Request bodies as LLaDA users write them, turned into the host's own. Pure functions on JSON.

LLaDA2.0 is published with `{"prompt": ..., "max_new_tokens": 500}` and with the arguments of its
`generate`; the host keeps prompts in `text` and `input_ids`, lengths in `sampling_params`, and
drops a key it does not know in silence. Here such a key is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from llada_sglang.config import parameter_names
from llada_sglang.errors import RequestError

Body = dict[str, Any]


LENGTH = "gen_length"
"""The published name of `max_new_tokens`."""


_PROMPTS = ("text", "input_ids", "input_embeds")
_IGNORED = frozenset({"model"})  # routers add it; there is one model


@cache
def decoding_keys() -> frozenset[str]:
    """Parameters of the decoding; they travel in `custom_params`."""
    return parameter_names() | {"block_length"}


@cache
def published_keys() -> frozenset[str]:
    """What a `/generate` body may hold beside `sampling_params`."""
    return decoding_keys() | {LENGTH, "max_new_tokens", "temperature", "top_p", "top_k"}


def generate_body(
    body: Mapping[str, Any], known: Collection[str], sampling: Collection[str]
) -> Body:
    """Return a `/generate` body in the host's form.

    known: the keys of the host's request. sampling: the keys of its sampling parameters.
    Raises RequestError for two values of one thing and for a key nobody reads.
    """
    given = _without_nulls(body, published_keys() | {"prompt"} | _IGNORED)
    rest = {key: value for key, value in given.items() if key not in published_keys() | _IGNORED}
    published = {key: value for key, value in given.items() if key in published_keys()}
    if "prompt" in rest:
        rest |= _prompt(rest.pop("prompt"), rest)
    for key in rest:
        if key not in known:
            raise _unknown(key, known, sampling)
    params = rest.get("sampling_params")
    if isinstance(params, list):
        rest["sampling_params"] = [_sampling(one, published, sampling) for one in params]
    elif params is not None or published:
        rest["sampling_params"] = _sampling(params, published, sampling)
    return rest


def sampling_params(given: Mapping[str, Any], known: Collection[str]) -> Body:
    """Return sampling parameters in the host's form.

    known: the host's keys. A null is a parameter not given, but for `max_new_tokens`, whose null
    asks for no limit. Decoding parameters move to `custom_params`, `gen_length` is
    `max_new_tokens`, `seed` is `sampling_seed`. Raises RequestError.
    """
    params = _without_nulls(given, set(given) - {"max_new_tokens"})
    for alias, name in ((LENGTH, "max_new_tokens"), ("seed", "sampling_seed")):
        if alias in params:
            _put(params, name, params.pop(alias), alias)
    moved = {key: params.pop(key) for key in sorted(decoding_keys() & set(params))}
    if moved:
        custom = params.get("custom_params", {})
        if not isinstance(custom, Mapping):
            raise RequestError(
                f"custom_params must be a mapping of parameter names to values, got {custom!r}."
            )
        params["custom_params"] = dict(custom)
        for key, value in moved.items():
            _put(params["custom_params"], key, value, key)
    for key in params:
        if key not in known:
            raise RequestError(
                f"unknown sampling parameter {key!r}{_hint(key, {*known, *published_keys()})}."
            )
    return params


def openai_body(
    body: Mapping[str, Any],
    known: Collection[str],
    harmless: Collection[str] = (),
    nullable: Collection[str] = (),
) -> Body:
    """Return an OpenAI body, refusing keys that the host would drop in silence.

    known: the keys of the host's request. harmless: keys that ask for nothing an answer could
    show. nullable: keys whose null means "not given" though the host insists on a value.
    """
    for key in body:
        if key in known or key in harmless:
            continue
        if key in decoding_keys() | {LENGTH}:
            raise RequestError(
                f"{key} is a decoding parameter: put it into custom_params "
                f'(extra_body={{"custom_params": {{"{key}": ...}}}} with the openai client).'
            )
        raise RequestError(f"unknown key {key!r} in the request body{_hint(key, known)}.")
    return _without_nulls(body, nullable)


def _without_nulls(given: Mapping[str, Any], keys: Collection[str]) -> Body:
    return {k: value for k, value in given.items() if not (value is None and k in keys)}


def _prompt(prompt: Any, rest: Mapping[str, Any]) -> Body:
    for name in _PROMPTS:
        if rest.get(name) is not None:
            raise RequestError(f"prompt and {name} are both given; a request has one prompt.")
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, list) and prompt:
        if all(isinstance(one, str) for one in prompt):
            return {"text": prompt}
        if _ids(prompt) or all(isinstance(one, list) and _ids(one) for one in prompt):
            return {"input_ids": prompt}
    raise RequestError(
        "prompt must be a text, a list of texts, a list of token ids, or a list of such lists, "
        f"and not empty; got {_short(prompt)}."
    )


def _ids(values: Iterable[Any]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in values)


def _sampling(given: Any, published: Mapping[str, Any], known: Collection[str]) -> Any:
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        return given  # the host says what it wants there
    params = dict(given)
    for key, value in published.items():
        _put(params, key, value, key)
    params = sampling_params(params, known)
    custom = params.get("custom_params")
    if isinstance(custom, Mapping) and custom.get(LENGTH) is not None:
        params["custom_params"] = {k: value for k, value in custom.items() if k != LENGTH}
        _put(params, "max_new_tokens", custom[LENGTH], LENGTH)
    return params


def _put(params: Body, name: str, value: Any, given_as: str) -> None:
    """Set a parameter that may be given once, or twice alike."""
    other = params.get(name)
    if other is not None and not _same(other, value):
        raise RequestError(
            f"{given_as} = {value!r} and {name} = {other!r} contradict each other; give one."
        )
    params[name] = value


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _unknown(key: str, known: Collection[str], sampling: Collection[str]) -> RequestError:
    if key in sampling:
        return RequestError(f"{key} is a sampling parameter: put it into sampling_params.")
    near = {*known, *published_keys(), "prompt"}
    return RequestError(f"unknown key {key!r} in the request body{_hint(key, near)}.")


def _hint(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; leave it out"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
