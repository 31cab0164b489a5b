"""What the scheduler checks of a request: decoding parameters, token ids, scored prompts.

Fields that mean nothing here never get this far: `serving.admission` refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.sampling.sampling_params import (
    REQUEST_REASONING_END_TOKEN_IDS_KEY,
    REQUEST_REASONING_IN_GRAMMAR_KEY,
)

from llada_sglang.config import DecodeParams, Decoding
from llada_sglang.errors import DecodeParamError

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req

HOST_KEYS = frozenset(
    (
        REQUEST_REASONING_END_TOKEN_IDS_KEY,
        REQUEST_REASONING_IN_GRAMMAR_KEY,
        "thinking_budget",
    )
)
"""Keys of custom_params that belong to the host, which reads them for its grammars."""


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What this server accepts.

    vocab_size: token ids in [0, vocab_size) are legal. block_size: of the model.
    """

    vocab_size: int
    block_size: int
    decoding: Decoding

    def admit(self, req: Req, given: TokenizedGenerateReqInput | None = None) -> DecodeParams:
        """Return the decoding parameters of a request.

        given: the request as it came, for what `req` does not carry yet. `gen_length` in
        custom_params becomes the request's max_new_tokens.
        Raises DecodeParamError with the reason where a parameter is invalid, or where the
        request asks for something that would otherwise be ignored.
        """
        custom = req.sampling_params.custom_params
        if isinstance(custom, dict):
            custom = {key: value for key, value in custom.items() if key not in HOST_KEYS}
            self._check_block_length(custom.pop("block_length", None))
            self._apply_gen_length(req, custom.pop("gen_length", None))
        sampling = req.sampling_params
        constrained = any(
            (sampling.json_schema, sampling.regex, sampling.ebnf, sampling.structural_tag)
        )
        params = self.decoding.parse(custom, constrained=constrained)
        if reason := (
            self._scored_prompt(req, given)
            or self._illegal_token(req)
            or self._counted_edits(req, params)
        ):
            raise DecodeParamError(reason)
        return params

    @staticmethod
    def _counted_edits(req: Req, params: DecodeParams) -> str | None:
        if not params.policy.edits:
            return None
        sampling = req.sampling_params
        for name, neutral in (
            ("frequency_penalty", 0.0),
            ("presence_penalty", 0.0),
            ("repetition_penalty", 1.0),
        ):
            if (value := getattr(sampling, name)) != neutral:
                return (
                    f"{name} must be {neutral:g} under policy {params.policy.name}, got {value}: "
                    f"it counts tokens that editing may take back. Leave it out, or use policy "
                    f"threshold."
                )
        if params.policy.moves and (least := sampling.min_new_tokens) > 0:
            return (
                f"min_new_tokens must be 0 under policy {params.policy.name}, got {least}: it "
                f"deletes tokens, so an end may move in front of that position. Leave it out, or "
                f"use policy threshold."
            )
        return None

    def _check_block_length(self, value: Any) -> None:
        if value is not None and (value != self.block_size or isinstance(value, bool)):
            raise DecodeParamError(
                f"block_length must be {self.block_size}, the block size this model was trained "
                f"with, got {value!r}. Leave it out."
            )

    def _apply_gen_length(self, req: Req, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DecodeParamError(
                f"gen_length must be an integer of at least 0, got {value!r}; it is another name "
                f"for max_new_tokens."
            )
        if value < req.sampling_params.min_new_tokens:
            raise DecodeParamError(
                f"gen_length must be at least min_new_tokens, "
                f"{req.sampling_params.min_new_tokens}, got {value}."
            )
        req.sampling_params.max_new_tokens = value

    @staticmethod
    def _scored_prompt(req: Req, given: TokenizedGenerateReqInput | None) -> str | None:
        if not req.return_logprob or given is None:
            return None
        start, length = given.logprob_start_len, len(req.origin_input_ids)
        if start is None or not 0 <= start < length:
            return None
        return (
            f"logprob_start_len must be -1 or at least the prompt's length, {length}, got {start}: "
            f"prompt tokens have no log-probability under block diffusion, each sees its whole "
            f"block. In OpenAI requests, leave out echo."
        )

    def _illegal_token(self, req: Req) -> str | None:
        for name, ids in (
            ("input_ids", req.origin_input_ids),
            ("stop_token_ids", req.sampling_params.stop_token_ids or ()),
            ("logit_bias", [int(i) for i in req.sampling_params.logit_bias or ()]),
            ("token_ids_logprob", req.logprob.token_ids_logprob or ()),
        ):
            if len(ids) and not (min(ids) >= 0 and max(ids) < self.vocab_size):
                bad = next(i for i in ids if not 0 <= i < self.vocab_size)
                return (
                    f"{name} holds token id {bad}, outside the vocabulary "
                    f"[0, {self.vocab_size}) of this model."
                )
        return None
