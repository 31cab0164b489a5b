"""Layers of LLaDA2 in plain torch: on a CPU, and for float32 on a GPU."""

from __future__ import annotations

from typing import Any, cast

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.topk import StandardTopKOutput, capture_routed_experts_if_allowed
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.models import llada2 as host
from torch import Tensor

from llada_sglang.errors import LaunchConfigError
from llada_sglang.models.torch_moe import route, route_blocks, run_experts


class EagerBody(host.LLaDA2MoeModel):  # type: ignore[misc]
    """The layers of the model, run without torch.compile.

    The host compiles small functions on its way (the vocabulary mask of a sharded embedding),
    which on a CPU costs seconds at the first request and gains nothing.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return cast(Tensor, super().forward(*args, **kwargs))


class TorchSparseMoe(host.LLaDA2MoeSparseMoeBlock):  # type: ignore[misc]
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


OTHER_LAYOUTS = ("use_triton_kernels", "use_flashinfer_cutlass", "use_flashinfer_trtllm_moe")
"""What the host sets where it stores experts in another way than `run_experts` reads them."""


def use_torch_parts(model: host.LLaDA2MoeModel) -> None:
    """Turn the body, its routers and its unquantised experts into the subclasses above.

    Raises LaunchConfigError where the host stores these experts in a layout of a kernel's.
    """
    # The host builds its parts by global name and takes no factory, so the parts are turned
    # into their subclasses in place; these add behaviour only, never state.
    model.__class__ = EagerBody
    for layer in model.layers:
        block = getattr(layer, "mlp", None)
        if not isinstance(block, host.LLaDA2MoeSparseMoeBlock):
            continue
        method = block.experts.quant_method
        if type(method) is UnquantizedFusedMoEMethod:
            if any(getattr(method, name, False) for name in OTHER_LAYOUTS):
                raise LaunchConfigError(
                    "--moe-runner-backend must be auto, triton or deep_gemm for a LLaDA2 model in "
                    "float32: others store experts in a layout of their own. Drop the flag, or "
                    "give --dtype bfloat16."
                )
            block.__class__ = TorchSparseMoe
            method.__class__ = TorchExperts


def use_native_operators(model: host.LLaDA2MoeModel) -> None:
    """Let norms, activations and rotary embeddings take the host's path in torch."""
    for module in model.modules():
        if isinstance(module, BaseFusedOp):
            module._forward_method = module.forward_native
