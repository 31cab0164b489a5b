"""What a request asks of its tokens beyond the argmax, read once from its sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang.srt.sampling.sampling_params import TOP_K_ALL

from llada_sglang.decoding.penalties import Penalties
from llada_sglang.decoding.sampling import Sampling

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """How the tokens of one request are chosen and what is reported of them.

    min_new_tokens: the first so many output positions hold no stop id. logprobs: whether each
    token's log-probability is reported; top_logprobs: beside it, of how many likeliest;
    logprob_ids: beside it, of which ids. trace: whether step and confidence are reported.
    constrained: whether a grammar decides; json: whether it is a JSON schema's.
    walks: whether the text is looked at after every step, not only when a block has settled.
    general: whether argmax and its probability are not enough: this row's logits are needed.
    """

    sampling: Sampling = field(default_factory=Sampling)
    penalties: Penalties = field(default_factory=Penalties)
    min_new_tokens: int = 0
    logprobs: bool = False
    top_logprobs: int = 0
    logprob_ids: tuple[int, ...] = ()
    trace: bool = False
    constrained: bool = False
    json: bool = False
    walks: bool = False

    general: bool = field(init=False)

    def __post_init__(self) -> None:
        general = (
            self.sampling.temperature > 0.0
            or self.penalties.any
            or self.min_new_tokens > 0
            or self.logprobs
            or self.constrained
        )
        object.__setattr__(self, "general", general)

    @property
    def reports(self) -> bool:
        """Whether anything is reported of single tokens."""
        return self.logprobs or self.trace

    @classmethod
    def read(cls, req: Req, *, seed: int, trace: bool) -> TokenOptions:
        """Read a request as the host has normalised it. seed: where the request gives none."""
        sampling = req.sampling_params
        # The host turns temperature 0 into top_k 1; either asks for the argmax.
        greedy = sampling.top_k == 1
        constrained = any(
            (sampling.json_schema, sampling.regex, sampling.ebnf, sampling.structural_tag)
        )
        stops = bool(sampling.stop_strs or sampling.stop_regex_strs)
        return cls(
            sampling=Sampling()
            if greedy
            else Sampling(
                temperature=sampling.temperature,
                top_k=0 if sampling.top_k >= TOP_K_ALL else sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                seed=seed if sampling.sampling_seed is None else sampling.sampling_seed,
            ),
            penalties=Penalties(
                frequency=sampling.frequency_penalty,
                presence=sampling.presence_penalty,
                repetition=sampling.repetition_penalty,
                bias=tuple((int(i), float(v)) for i, v in (sampling.logit_bias or {}).items()),
            ),
            min_new_tokens=sampling.min_new_tokens,
            logprobs=bool(req.return_logprob),
            top_logprobs=req.logprob.top_logprobs_num or 0,
            logprob_ids=tuple(req.logprob.token_ids_logprob or ()),
            trace=trace,
            constrained=constrained,
            json=bool(sampling.json_schema),
            walks=constrained or stops,
        )


def stop_ids(req: Req) -> tuple[int, ...]:
    """Every token id that ends the request, as `Req._check_token_based_finish` reads them."""
    if req.sampling_params.ignore_eos:
        return ()
    ids: set[int] = set(req.sampling_params.stop_token_ids or ())
    ids.update(req.eos_token_ids or ())
    if req.tokenizer is not None:
        ids.add(req.tokenizer.eos_token_id)
        ids.update(getattr(req.tokenizer, "additional_stop_token_ids", None) or ())
    return tuple(sorted(i for i in ids if i is not None))
