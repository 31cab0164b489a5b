"""Scales of quantised experts, in the dtype that their kernel takes."""

from __future__ import annotations

from typing import Any

from sglang.srt.models import llada2 as host

_SCALES = ("w13_scales", "w2_scales")


def use_model_dtype(model: host.LLaDA2MoeModel) -> None:
    """Hold the scales of Marlin's experts in the model's dtype, before weights are loaded.

    Of GPTQ checkpoints the host makes them float16, and its kernel refuses them where activations
    are bfloat16. Those of AWQ, and of GPTQ outside of experts, it converts as they are loaded.
    """
    dtype = model.word_embeddings.weight.dtype
    for layer in model.layers:
        experts: Any = getattr(getattr(layer, "mlp", None), "experts", None)
        for name in _SCALES:
            scales = getattr(experts, name, None)
            if scales is not None and scales.dtype != dtype:
                scales.data = scales.data.to(dtype)
