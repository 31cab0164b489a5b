"""Decoding parameters of one request, validated once, before the request is queued."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from llada_sglang.errors import DecodeParamError

POLICIES = ("threshold",)
STREAM_MODES = ("block", "denoise")


@dataclass(frozen=True, slots=True)
class DecodeParams:
    """How the blocks of one request are unmasked.

    policy: name of the decoding policy; `threshold` is LLaDA2.0's (report section 5.4).
    threshold: confidence above which a masked position is unmasked, in (0, 1].
    steps: most denoise steps a block may take, in [1, block]; a block of B masks unmasks at
        least B / steps positions per step, the remainder in the first steps.
    minimal_topk: caps `steps` at gen_length // minimal_topk, as the published code does.
    eos_early_stop: end as soon as an EOS stands behind no mask, instead of at the block's end;
        the text is the same, the steps behind the EOS are saved.
    stream_mode: what a stream of /generate brings: `block`, a chunk per block with new text, or
        `denoise`, also one per step with the unresolved canvas in `meta_info`, as provisional.
    trace: report, for every output token, the step of its block that unmasked it and its
        confidence then, as `unmask_step` and `unmask_confidence` in `meta_info`.
    """

    policy: str = "threshold"
    threshold: float = 0.95
    steps: int = 32
    minimal_topk: int = 1
    eos_early_stop: bool = True
    stream_mode: str = "block"
    trace: bool = False

    def __post_init__(self) -> None:
        _check(self.policy in POLICIES, "policy", self.policy, f"one of {', '.join(POLICIES)}")
        _number(self, "threshold")
        _check(0.0 < self.threshold <= 1.0, "threshold", self.threshold, "in (0, 1]")
        for name in ("steps", "minimal_topk"):
            _integer(self, name)
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eos_early_stop", "trace"):
            value = getattr(self, name)
            _check(isinstance(value, bool), name, value, "true or false")
        modes = ", ".join(STREAM_MODES)
        _check(self.stream_mode in STREAM_MODES, "stream_mode", self.stream_mode, f"one of {modes}")

    @classmethod
    def parse(
        cls, given: Mapping[str, Any] | None, defaults: DecodeParams | None = None
    ) -> DecodeParams:
        """Build the parameters of a request from its `custom_params`.

        given: the request's mapping, or None. defaults: the server's own; else the class's.
        Raises DecodeParamError naming key, value, range and default.
        """
        base = defaults if defaults is not None else cls()
        if not given:
            return base
        if not isinstance(given, Mapping):
            raise DecodeParamError(
                f"custom_params must be a mapping of parameter names to values, got {given!r}."
            )
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise DecodeParamError(
                f"unknown decoding parameter {unknown[0]!r} in custom_params; "
                f"known: {', '.join(sorted(known))}."
            )
        return replace(base, **dict(given))

    @classmethod
    def server_defaults(cls, given: Mapping[str, Any]) -> DecodeParams:
        """The server's own defaults, from the mapping in `--dllm-algorithm-config`.

        `block_size` is the host's key in that file and no parameter of ours.
        """
        return cls.parse({key: value for key, value in given.items() if key != "block_size"})

    def schedule(self, block_size: int, max_new_tokens: int) -> tuple[int, ...]:
        """Return n_s, the least number of positions to unmask at each step of a block.

        Source: LLaDA2.0 `generate`: steps = min(steps, gen_length // minimal_topk), where
        gen_length is rounded up to whole blocks, so that a shorter max_new_tokens only cuts
        the text and never changes it. The result sums to block_size.
        """
        gen_length = max(1, math.ceil(max_new_tokens / block_size)) * block_size
        steps = max(1, min(self.steps, block_size, gen_length // self.minimal_topk))
        base, remainder = divmod(block_size, steps)
        return tuple(base + (step < remainder) for step in range(steps))

    def as_dict(self) -> dict[str, Any]:
        """The parameters as plain JSON values."""
        return asdict(self)


_DEFAULTS = {f.name: f.default for f in fields(DecodeParams)}


def _check(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise DecodeParamError(
            f"{key} must be {allowed}, got {value!r}; the default is {_DEFAULTS[key]!r}."
        )


def _number(params: DecodeParams, key: str) -> None:
    value = getattr(params, key)
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    _check(ok, key, value, "a finite number")


def _integer(params: DecodeParams, key: str) -> None:
    value = getattr(params, key)
    _check(isinstance(value, int) and not isinstance(value, bool), key, value, "an integer")
