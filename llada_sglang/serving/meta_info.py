"""The decoding counters of a response as plain numbers in `meta_info`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COUNTERS = ("denoise_forwards", "prefill_forwards", "tokens_per_forward")

PROVISIONAL = "provisional"
"""Key of the unresolved block in a chunk of a stream that asked for it; in that chunk only."""


def plain_counters(
    original: Callable[..., None],
    manager: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, list[Any]],
    index: int,
    finish_reason: dict[str, Any] | None,
) -> None:
    """AROUND `TokenizerManager.update_request_meta_info`: the last value of each counter.

    The host appends what every chunk brings to a list, which is right for per-token values and
    wrong for counters of the request.
    """
    plain = (*COUNTERS, PROVISIONAL)
    counters = {key: customized_info[key][index] for key in plain if key in customized_info}
    rest = {key: values for key, values in customized_info.items() if key not in plain}
    original(manager, meta_info, state, rest, index, finish_reason)
    for key, values in counters.items():
        if values:
            meta_info[key] = values[-1]
