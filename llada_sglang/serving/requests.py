"""Which requests are served: parameters parsed, impossible or unserved features refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.sampling.sampling_params import TOP_K_ALL

from llada_sglang.config import DecodeParams
from llada_sglang.errors import DecodeParamError

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_PENALTIES = (("frequency_penalty", 0.0), ("presence_penalty", 0.0), ("repetition_penalty", 1.0))
_SAMPLING = (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0), ("sampling_seed", None))


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What this server accepts. vocab_size: token ids in [0, vocab_size) are legal."""

    vocab_size: int
    defaults: DecodeParams

    def admit(self, req: Req) -> DecodeParams:
        """Return the decoding parameters of a request.

        Raises DecodeParamError with the reason where a parameter is invalid, or where the
        request asks for something that would otherwise be ignored.
        """
        params = DecodeParams.parse(req.sampling_params.custom_params, self.defaults)
        if reason := self._unserved(req) or self._illegal_token(req):
            raise DecodeParamError(reason)
        return params

    def _unserved(self, req: Req) -> str | None:
        sampling = req.sampling_params
        for name in _GRAMMARS:
            if getattr(sampling, name, None):
                return _refusal(name, "constrained decoding")
        for name, neutral in _PENALTIES:
            if getattr(sampling, name) != neutral:
                return _refusal(name, "a penalty", neutral)
        # The host turns temperature 0 into top_k 1, and its own default is temperature 1: a
        # request that says nothing is decoded greedily, as LLaDA2 is published. One that asks
        # for something else must not be answered as if it had not.
        if sampling.top_k != 1:
            for name, default in _SAMPLING:
                if getattr(sampling, name) != default:
                    return _refusal(name, "sampling", "temperature 0")
            if sampling.top_k != TOP_K_ALL:
                return _refusal("top_k", "sampling", 1)
        if sampling.logit_bias:
            return _refusal("logit_bias", "a bias")
        if sampling.min_new_tokens:
            return _refusal("min_new_tokens", "a minimum length", 0)
        if req.return_logprob:
            return _refusal("return_logprob / logprobs", "log-probabilities", False)
        if req.return_hidden_states:
            return _refusal("return_hidden_states", "hidden states", False)
        if req.custom_logit_processor:
            return _refusal("custom_logit_processor", "a logit processor")
        if req.input_embeds is not None:
            return _refusal("input_embeds", "embeddings as input")
        if req.lora_id is not None:
            return _refusal("lora_path", "LoRA")
        return None

    def _illegal_token(self, req: Req) -> str | None:
        for name, ids in (
            ("input_ids", req.origin_input_ids),
            ("stop_token_ids", req.sampling_params.stop_token_ids or ()),
        ):
            if len(ids) and not (min(ids) >= 0 and max(ids) < self.vocab_size):
                bad = next(i for i in ids if not 0 <= i < self.vocab_size)
                return (
                    f"{name} holds token id {bad}, outside the vocabulary "
                    f"[0, {self.vocab_size}) of this model."
                )
        return None


def _refusal(name: str, what: str, neutral: Any = None) -> str:
    if isinstance(neutral, str):
        return f"{name}: {what} is not served for diffusion decoding yet. Use {neutral}."
    way_out = "Leave it out." if neutral is None else f"Leave it out or set it to {neutral!r}."
    return f"{name}: {what} is not served for diffusion decoding yet. {way_out}"
