"""The feed-forward part of the reference: router, experts and the shared expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llada_sglang.reference.config import ModelShape


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Sigmoid router, in float32. The bias chooses experts; it never weighs them.

    Experts compete within groups (LLaDA2.0, 2.1) or, where `expert_capacity` is set, within those
    that the token's block admits (LLaDA2.2, section 2.2).
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.empty(shape.num_experts, shape.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(shape.num_experts))
        self.expert_bias: Tensor

    def forward(self, x: Tensor, block: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [tokens, hidden] -> (expert ids int64, weights float32), both [tokens, top_k].

        block: int64 [tokens], the block of each token, counted from 0; needed, and used, with
        expert_capacity only. Weights are the unbiased sigmoid scores of the chosen experts,
        normalised to sum 1.
        """
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            choice = scores + self.expert_bias.float()
            if self.shape.expert_capacity is None:
                experts = self._choose_within_groups(choice)
            elif block is not None:
                experts = self._choose_within_block(choice, block)
            else:
                raise ValueError("expert_capacity routes whole blocks: say which token is in which")
        weights = scores.gather(1, experts)
        return experts, weights / (weights.sum(-1, keepdim=True) + 1e-20)

    def _choose_within_groups(self, choice: Tensor) -> Tensor:
        """Source: sglang/srt/layers/moe/topk.py, biased_grouped_topk_impl."""
        grouped = choice.view(len(choice), self.shape.n_group, -1)
        group_score = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = group_score.topk(self.shape.topk_group, dim=-1).indices
        open_group = torch.zeros_like(group_score, dtype=torch.bool).scatter(1, kept, True)
        choice = grouped.masked_fill(~open_group[..., None], float("-inf")).flatten(1)
        return choice.topk(self.shape.num_experts_per_tok, dim=-1).indices

    def _choose_within_block(self, choice: Tensor, block: Tensor) -> Tensor:
        """Of equals the lower id. Source: sglang/srt/models/llada2.py, block_topk_triton."""
        blocks = int(block.max()) + 1
        best = choice.new_full((blocks, choice.shape[1]), float("-inf"))
        best = best.scatter_reduce(0, block[:, None].expand_as(choice), choice, "amax")
        admitted = _best(best, self.shape.expert_capacity or 0)
        closed = torch.ones_like(best, dtype=torch.bool).scatter(1, admitted, False)
        choice = choice.masked_fill(closed[block], float("-inf"))
        return _best(choice, self.shape.num_experts_per_tok)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of each row, largest first, of equals the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


class Experts(nn.Module):
    """All routed experts of a layer, stacked.

    gate_up [experts, 2, width, hidden]: gate_proj, then up_proj. down [experts, hidden, width].
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        count, width, hidden = shape.num_experts, shape.moe_intermediate_size, shape.hidden_size
        self.gate_up = nn.Parameter(torch.empty(count, 2, width, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, width))

    def one(self, expert: int, x: Tensor) -> Tensor:
        """The output of a single expert for x [tokens, hidden]."""
        gate_proj, up_proj = self.gate_up[expert]
        return F.linear(F.silu(F.linear(x, gate_proj)) * F.linear(x, up_proj), self.down[expert])

    def obvious(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Sum over each token's experts, one expert at a time."""
        out = torch.zeros_like(x)
        for expert in range(len(self.gate_up)):
            token, slot = (experts == expert).nonzero(as_tuple=True)
            if len(token):
                share = weights[token, slot, None].to(x.dtype)
                out = out.index_add(0, token, share * self.one(expert, x[token]))
        return out

    def sorted_segments(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The same sum with the rows of each expert gathered side by side first."""
        top_k = experts.shape[1]
        order = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=len(self.gate_up)).tolist()
        rows = x.index_select(0, order // top_k)
        segments = rows.split(counts)
        gate_up = self.gate_up.to(rows.dtype).flatten(1, 2).unbind(0)
        hidden = torch.cat([F.linear(s, w) for s, w in zip(segments, gate_up, strict=True)])
        gate, up = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        down = self.down.to(rows.dtype).unbind(0)
        pieces = hidden.split(counts)
        out = torch.cat([F.linear(s, w) for s, w in zip(pieces, down, strict=True)])
        out = out * weights.flatten()[order, None].to(out.dtype)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out.index_select(0, back).view(len(x), top_k, -1).sum(1)


class MoE(nn.Module):
    """Routed experts times routed_scaling_factor, plus the shared expert."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.scale = shape.routed_scaling_factor
        self.gate = Router(shape)
        self.experts = Experts(shape)
        shared = shape.moe_shared_expert_intermediate_size * shape.num_shared_experts
        self.shared_experts = GatedMLP(shape.hidden_size, shared) if shared else None
        self.load: Tensor | None = None

    def forward(self, x: Tensor, block: Tensor | None, *, fast: bool) -> Tensor:
        """x [rows, length, hidden]; block int64 [rows * length] or None, as the router's."""
        flat = x.reshape(-1, x.shape[-1])
        experts, weights = self.gate(flat, block)
        if self.training:
            self.load = experts.flatten().bincount(minlength=len(self.gate.expert_bias))
        run = self.experts.sorted_segments if fast else self.experts.obvious
        out = run(flat, experts, weights) * self.scale
        if self.shared_experts is not None:
            out = out + self.shared_experts(flat)
        return out.view_as(x)
