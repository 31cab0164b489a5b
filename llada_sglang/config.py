"""Decoding parameters of one request, validated once, before the request is queued."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llada_sglang.decoding.parameters import Flag, Name, Parameter, check
from llada_sglang.errors import DecodeParamError

if TYPE_CHECKING:
    from llada_sglang.decoding.policy import Policy, PolicySet

REPORTING: Mapping[str, Parameter] = {
    "stream_mode": Name("block", ("block", "denoise")),
    "trace": Flag(False),
}
"""Parameters beside those of the policy.

stream_mode: what a stream of /generate brings: `block`, a chunk per block with new text, or
`denoise`, also one per step with the unresolved canvas in `meta_info`, as provisional.
trace: report, for every output token, the step of its block that wrote it and its confidence
then, as `unmask_step` and `unmask_confidence` in `meta_info`.
"""

PLAIN_POLICY = "threshold"


@dataclass(frozen=True, slots=True)
class DecodeParams:
    """How the blocks of one request are decoded.

    values: every parameter of the policy, by name; docs/decoding.md lists them.
    """

    policy: Policy
    values: Mapping[str, Any]
    stream_mode: str = "block"
    trace: bool = False

    def schedule(self, block_size: int, max_new_tokens: int) -> tuple[int, ...]:
        """Return n_s, the least number of positions to unmask at each forced step of a block.

        Source: LLaDA2.0 `generate`: steps = min(steps, gen_length // minimal_topk), where
        gen_length is rounded up to whole blocks, so that a shorter max_new_tokens only cuts
        the text and never changes it. The result sums to block_size.
        """
        gen_length = max(1, math.ceil(max_new_tokens / block_size)) * block_size
        asked = self.values.get("steps", block_size)
        capped = gen_length // self.values.get("minimal_topk", 1)
        steps = max(1, min(asked, block_size, capped))
        base, remainder = divmod(block_size, steps)
        return tuple(base + (step < remainder) for step in range(steps))


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a server decodes with: the policies it knows, and its defaults.

    default: name of the policy of requests that name none. given: the server's own parameters.
    """

    policies: PolicySet
    default: str
    given: Mapping[str, Any]

    @classmethod
    def of_server(
        cls, policies: PolicySet, default: str, given: Mapping[str, Any] | None = None
    ) -> Decoding:
        """Check the mapping in `--dllm-algorithm-config`; raises DecodeParamError.

        default: the checkpoint's policy. `block_size` is the host's key and no parameter of ours.
        """
        given = {key: value for key, value in (given or {}).items() if key != "block_size"}
        policy = given.pop("policy", default)
        decoding = cls(policies, policy, given)
        cls(policies, policy, {}).parse(given)
        return decoding

    def parse(self, given: Mapping[str, Any] | None, *, constrained: bool = False) -> DecodeParams:
        """Build the parameters of a request from its `custom_params`.

        constrained: whether a grammar decides, which an editing policy cannot serve.
        Raises DecodeParamError naming key, value, range and default.
        """
        if given is not None and not isinstance(given, Mapping):
            raise DecodeParamError(
                f"custom_params must be a mapping of parameter names to values, got {given!r}."
            )
        own = dict(given or {})
        policy = self.policies[own.pop("policy", self.default)]
        if constrained and policy.edits:
            if "policy" in (given or {}):
                raise DecodeParamError(
                    f"policy {policy.name} cannot be used with a grammar, tools that must be "
                    f"called or a response format: it may take back what the grammar accepted. "
                    f"Leave policy out, or use {PLAIN_POLICY}."
                )
            policy = self.policies[PLAIN_POLICY]
        known = policy.parameters.keys() | REPORTING.keys()
        for key in own:
            if key not in known:
                raise DecodeParamError(
                    f"unknown decoding parameter {key!r} in custom_params; policy {policy.name} "
                    f"knows {', '.join(sorted(known))}, and policy may be one of "
                    f"{', '.join(self.policies.names)}."
                )
        reporting = {name: self.given.get(name, REPORTING[name].default) for name in REPORTING}
        for name in REPORTING.keys() & own.keys():
            check(name, REPORTING[name], own[name])
            reporting[name] = own.pop(name)
        values = policy.values(own, self._defaults_for(policy))
        return DecodeParams(policy, values, **reporting)

    def _defaults_for(self, policy: Policy) -> Mapping[str, Any]:
        """The server's parameters, where they mean the same to this policy as to its own."""
        return self.given if policy.edits == self.policies[self.default].edits else {}


def parameter_names() -> frozenset[str]:
    """Every decoding parameter that any known policy has, and `policy` itself."""
    from llada_sglang.decoding.policies import policy_classes

    own = [policy.parameters.keys() for policy in policy_classes().values()]
    return frozenset({"policy"}.union(REPORTING, *own))
