"""LLaDA2 as this package serves it: the host's layers, hidden states and logits apart.

The module is found by the host's model registry through `EntryClass`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, cast

import torch
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.topk import StandardTopKOutput, capture_routed_experts_if_allowed
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
)
from sglang.srt.models import llada2 as host
from sglang.srt.runtime_context import get_device
from torch import Tensor

from llada_sglang import env
from llada_sglang.models.cpu_moe import route, route_blocks, run_experts
from llada_sglang.models.cuda_layers import use_fused_kernels
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
        device = get_device().device
        if device == "cpu":
            _use_torch_on_cpu(self.model)
        elif device == "cuda" and env.load().fused_kernels:
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


class CpuBody(host.LLaDA2MoeModel):  # type: ignore[misc]
    """The layers of the model, run without torch.compile.

    The host compiles small functions on its way (the vocabulary mask of a sharded embedding),
    which on a CPU costs seconds at the first request and gains nothing.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return cast(Tensor, super().forward(*args, **kwargs))


class CpuSparseMoe(host.LLaDA2MoeSparseMoeBlock):  # type: ignore[misc]
    """Mixture of experts with eager routing that applies routed_scaling_factor, once.

    Rows are whole blocks that begin at a multiple of the block size, so block routing
    (LLaDA2.2) may cut the flat batch every `block_size` tokens.
    """

    def _forward_router_experts(self, hidden_states: Tensor) -> Tensor:
        router_logits = self.gate(hidden_states)
        if self.use_block_routing:
            weights, ids = route_blocks(
                router_logits,
                self.correction_bias,
                block_size=self.block_size,
                expert_capacity=self.expert_capacity,
                top_k=self.top_k,
            )
        else:
            weights, ids = route(
                router_logits,
                self.correction_bias,
                top_k=self.top_k,
                num_groups=self.num_expert_group,
                topk_group=self.topk_group,
                normalize=self.norm_topk_prob,
                score_function=self.score_function,
            )
        # As the host's own block routing does when it bypasses TopK.
        capture_routed_experts_if_allowed(self.topk.topk_config, self.layer_id, ids)
        get_global_expert_distribution_recorder().on_select_experts(topk_ids=ids)
        output = StandardTopKOutput(
            topk_weights=weights * self.routed_scaling_factor,
            topk_ids=ids,
            router_logits=router_logits,
        )
        return cast(Tensor, self.experts(hidden_states, output))


class TorchExperts(UnquantizedFusedMoEMethod):  # type: ignore[misc]
    """Unquantised experts by sorted per-expert products, on the host's weight layout."""

    def apply(self, layer: Any, dispatch_output: Any) -> StandardCombineInput:
        weights, ids, _ = dispatch_output.topk_output
        out = run_experts(
            dispatch_output.hidden_states, weights, ids, layer.w13_weight, layer.w2_weight
        )
        return StandardCombineInput(hidden_states=out)


def _use_torch_on_cpu(model: host.LLaDA2MoeModel) -> None:
    # The host builds its parts by global name and takes no factory, so the parts are turned
    # into their subclasses in place; these add behaviour only, never state.
    model.__class__ = CpuBody
    for layer in model.layers:
        block = getattr(layer, "mlp", None)
        if not isinstance(block, host.LLaDA2MoeSparseMoeBlock):
            continue
        if type(block.experts.quant_method) is UnquantizedFusedMoEMethod:
            block.__class__ = CpuSparseMoe
            block.experts.quant_method.__class__ = TorchExperts
