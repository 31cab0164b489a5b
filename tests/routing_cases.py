"""Router logits of LLaDA2.2's blocks, many of them equal.

Used through Triton's interpreter by the unit tests and on the device by the GPU tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sglang.models.torch_moe import route_blocks

INF, NAN = float("inf"), float("nan")
Result = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One call. logits: [tokens, experts], possibly a view of wider rows; bias: [experts]."""

    logits: Tensor
    bias: Tensor
    capacity: int
    top_k: int
    block: int = 32


def fused(case: Case, device: str) -> Result:
    """Weights and ids of the kernel."""
    from llada_sglang.kernels.block_routing import fused_route_blocks

    # The strides as they are: a copy of a view would be contiguous.
    tokens, experts = case.logits.shape
    wide = torch.full((max(tokens, 1), case.logits.stride(0)), INF, dtype=case.logits.dtype)
    logits = wide.to(device)[:tokens, :experts]
    logits.copy_(case.logits)
    weights, ids = fused_route_blocks(
        logits,
        case.bias.to(device),
        block_size=case.block,
        expert_capacity=case.capacity,
        top_k=case.top_k,
    )
    return weights.cpu(), ids.cpu()


def twin(case: Case) -> Result:
    """Weights and ids of the torch twin."""
    return route_blocks(
        case.logits,
        case.bias,
        block_size=case.block,
        expert_capacity=case.capacity,
        top_k=case.top_k,
    )


def _coarse(seed: int, tokens: int, experts: int) -> tuple[Tensor, Tensor]:
    """Few values, so that most experts tie with others: as scores, or only as sums."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randint(-6, 7, (tokens, experts), generator=draw) / 2
    bias = torch.randint(-2, 3, (experts,), generator=draw) / 8
    return logits, bias


def _fine(seed: int, tokens: int, experts: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=draw) * 2
    return logits, 0.3 * torch.randn(experts, generator=draw)


def _cases() -> dict[str, Case]:
    cases = {
        "real-size-1-row": Case(*_fine(0, 32, 256), 48, 8),
        "real-size-3-rows": Case(*_fine(1, 96, 256), 48, 8),
        "real-size-ties": Case(*_coarse(2, 32, 256), 48, 8),
        "blocks-of-8": Case(*_coarse(3, 40, 16), 6, 4, 8),
        "last-block-of-one-token": Case(*_coarse(4, 33, 64), 16, 4),
        "last-block-of-31-tokens": Case(*_coarse(5, 63, 64), 16, 4),
        "one-token": Case(*_coarse(6, 1, 64), 16, 4),
        "no-token": Case(torch.zeros(0, 64), torch.zeros(64), 16, 4),
        "experts-no-power-of-two": Case(*_coarse(7, 64, 24), 9, 3),
        "capacity-is-top-k": Case(*_coarse(8, 64, 32), 4, 4),
        "capacity-is-everything": Case(*_coarse(9, 64, 32), 32, 5),
        "one-expert-per-token": Case(*_coarse(10, 64, 32), 8, 1),
        "all-equal": Case(torch.zeros(32, 64), torch.zeros(64), 16, 4),
        "blocks-of-one": Case(*_coarse(11, 5, 32), 8, 4, 1),
    }
    logits, bias = _coarse(12, 64, 64)
    cases["bfloat16"] = Case(logits.bfloat16(), bias.bfloat16(), 16, 4)
    cases["rows-of-a-wider-matrix"] = Case(
        torch.cat([logits, torch.full((64, 64), INF)], dim=1)[:, :64], bias, 16, 4
    )
    certain = logits.clone()
    certain[:, 5], certain[:, 9], certain[7, 20] = INF, -INF, INF
    cases["infinite-logits"] = Case(certain, bias, 16, 4)
    return cases


CASES = _cases()

_broken = _coarse(13, 96, 64)
_broken[0][:32] = NAN  # a block of nothing else
_broken[0][40] = NAN
_broken[0][64:, 3] = NAN
BROKEN = Case(*_broken, 16, 4)
"""The twin sorts NaN first; the kernel counts it as -inf. Either way ids are experts."""
CASES["broken"] = BROKEN
