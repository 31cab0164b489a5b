"""The name under which the host knows our decoding: `--dllm-algorithm BlockDiffusion`."""

from __future__ import annotations

from typing import Any

from sglang.srt.dllm.algorithm.base import DllmAlgorithm

NAME = "BlockDiffusion"


class BlockDiffusion(DllmAlgorithm):
    """Marks a server whose requests our scheduler runs; the host's own loop never does."""

    supported_architectures = ("LLaDA2MoeModelLM",)
    # The host would force FlashInfer on every other backend where it sees graphs.
    supported_attention_backends = ("flashinfer", "fa3", "triton", "block_row_torch")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse the host's one-block-per-request loop."""
        raise RuntimeError(
            f"{NAME} batches are run by llada_sglang's scheduler; the host's loop got one. "
            "Is llada_sglang's Scheduler replaced by another plugin? See `llada-sglang doctor`."
        )
