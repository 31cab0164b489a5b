"""What a response says about its decoding, beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from llada_sglang.scheduler.state import MASKED, RequestRecord
from llada_sglang.serving.meta_info import COUNTERS, PROVISIONAL

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class DiffusionOutputStreamer(SchedulerOutputStreamer):
    """Adds the forward counts of a request to `meta_info`, and its unresolved block if asked for.

    denoise_forwards: forwards that carried a denoise row of the request; prefill_forwards:
    forwards that carried prefill rows of it (one may be both); tokens_per_forward: output
    tokens per denoise forward.
    """

    __slots__ = ()
    has_additional_customized_info: ClassVar[bool] = True

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list[Any]]:
        """One list per emitted request and counter, empty for a request that never ran."""
        info: dict[str, list[Any]] = {key: [] for key in COUNTERS}
        if any(_provisional(req) for req in reqs):
            info[PROVISIONAL] = [_provisional(req) for req in reqs]
        for req in reqs:
            record = req.dllm_algo_state
            if isinstance(record, RequestRecord):
                denoise = record.denoise_forwards
                per_forward = len(req.output_ids_through_stop) / denoise if denoise else 0.0
                values = (denoise, record.prefill_forwards, round(per_forward, 3))
                for key, value in zip(COUNTERS, values, strict=True):
                    info[key].append([value])
            else:
                for key in COUNTERS:
                    info[key].append([])
        return info


def _provisional(req: Req) -> list[dict[str, Any]]:
    """The unresolved block of a request as one JSON value, or nothing.

    position: of the block's first token, counted from the prompt's. step: steps taken. token_ids:
    None where masked. text: the block with the mask token where masked.
    """
    record = req.dllm_algo_state
    shown = record.provisional if isinstance(record, RequestRecord) else None
    if shown is None:
        return []
    ids = shown.canvas.tolist()
    value: dict[str, Any] = {
        "position": shown.start,
        "step": shown.step,
        "token_ids": [None if i == MASKED else i for i in ids],
    }
    if req.tokenizer is not None:
        mask = req.dllm_config.mask_id
        value["text"] = req.tokenizer.decode([mask if i == MASKED else i for i in ids])
    return [value]
