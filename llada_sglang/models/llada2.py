"""LLaDA2 as this package serves it: the host's layers, hidden states and logits apart.

The module is found by the host's model registry through `EntryClass`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, cast

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod
from sglang.srt.models import llada2 as host
from sglang.srt.runtime_context import get_device
from torch import Tensor

from llada_sglang import env
from llada_sglang.models.cuda_layers import use_fused_kernels
from llada_sglang.models.expert_scales import use_model_dtype
from llada_sglang.models.torch_layers import use_native_operators, use_torch_parts
from llada_sglang.quantization import Names
from llada_sglang.weights import check_loaded_names, loadable_names

HIDDEN_ONLY = "hidden_only"
"""Key of `ForwardBatch.model_specific_states` that asks for hidden states and no logits."""


class LLaDA2MoeModelLM(host.LLaDA2MoeModelLM):  # type: ignore[misc]
    """The host's model with the head split off the body, strict loading, and right CPU experts.

    A forward whose batch carries `model_specific_states={HIDDEN_ONLY: True}` returns the hidden
    states [tokens, hidden] alone; `head_logits` then runs the head on the few rows that need it.
    Any other forward returns what the host's own diffusion algorithms expect.
    """

    # Under which names quantisation configs list the parts of a fused layer.
    packed_modules_mapping: ClassVar = {"gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, prefix=prefix)
        self._loadable: Names | None = None
        use_model_dtype(self.model)
        device = get_device().device
        # Of the host's kernels for GPUs some know no float32, and its experts round it to float16.
        exact = self.model.word_embeddings.weight.dtype == torch.float32
        if device == "cpu" or (device == "cuda" and exact):
            use_torch_parts(self.model)
        if device == "cuda" and exact:
            use_native_operators(self.model)
        if device == "cuda" and env.load().fused_kernels:
            use_fused_kernels(self.model)

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, positions: Tensor, forward_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As the host's, or LogitsProcessorOutput(None, hidden states) under HIDDEN_ONLY."""
        if not (forward_batch.model_specific_states or {}).get(HIDDEN_ONLY):
            return super().forward(input_ids, positions, forward_batch, *args, **kwargs)
        hidden = self.model(input_ids, positions, forward_batch, *args, **kwargs)
        return LogitsProcessorOutput(next_token_logits=None, hidden_states=hidden)

    @torch.no_grad()
    def head_logits(self, hidden: Tensor) -> Tensor:
        """Logits of some rows over this rank's part of the vocabulary, as the head computes them.

        hidden: [rows, hidden], outputs of `self.model`. Returns [rows, end - start] with
        (start, end) = `vocab_shard_range()`, in the dtype of the head (float32 under the host's
        --enable-fp32-lm-head); no communication. A view where the head has padding columns.
        """
        start, end = self.vocab_shard_range()
        logits = self.logits_processor._compute_lm_head(hidden, self.lm_head)
        return cast(Tensor, logits)[:, : end - start]

    def plain_head(self) -> Tensor | None:
        """The head's weight [end - start, hidden] where logits are hidden @ weight.T; else None."""
        head, processor = self.lm_head, self.logits_processor
        plain = (
            type(head.quant_method) is UnquantizedEmbeddingMethod
            and not hasattr(head, "set_lora")
            and not getattr(head, "use_intel_amx_backend", False)
            and processor.rl_on_policy_target is None
            and (not processor.use_fp32_lm_head or head.weight.dtype == torch.float32)
        )
        start, end = self.vocab_shard_range()
        return head.weight[: end - start] if plain else None

    def block_logits(self, hidden: Tensor) -> Tensor:
        """`head_logits` in float32."""
        return self.head_logits(hidden).float()

    def vocab_shard_range(self) -> tuple[int, int]:
        """Token ids [start, end) this tensor-parallel rank has logits for, padding excluded."""
        shard = self.lm_head.shard_indices
        return shard.org_vocab_start_index, shard.org_vocab_end_index

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load checkpoint tensors; unknown names are an error, and missing ones at first load.

        Later calls may bring a part of the weights only, as reinforcement learning does.
        Raises CheckpointError naming them.
        """
        seen: set[str] = set()
        first = self._loadable is None
        if self._loadable is None:
            # Kernels may rename parameters once they are loaded.
            self._loadable = loadable_names(dict(self.named_parameters()), self.config.num_experts)

        def recorded() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in host._prepare_llada2_language_weights(
                weights, num_experts=self.config.num_experts
            ):
                seen.add(name)
                yield name, tensor

        super().load_weights(recorded())
        check_loaded_names(
            seen, self._loadable, tied=self.config.tie_word_embeddings, complete=first
        )


EntryClass = LLaDA2MoeModelLM
