"""LLaDA2 MoE in plain torch: the definition the engine is held to, and what nano is trained with.

Slow and obvious by default. `fast=True` computes the same function with fused attention and the
experts run over sorted segments; the trainer uses it and a test keeps the two equal.
Source of names and maths: sglang/srt/models/llada2.py (0.5.23); LLaDA2.0 report, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llada_sglang.reference.config import ModelShape


def block_causal_mask(length: int, block_size: int) -> Tensor:
    """bool [length, length]: position i sees position j iff i // B >= j // B (LLaDA2.0, eq. 3)."""
    block = torch.arange(length) // block_size
    return block[:, None] >= block[None, :]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [..., rotary_dim / 2], for int positions [...]."""
    exponent = torch.arange(0, rotary_dim, 2, device=positions.device).float() / rotary_dim
    angle = positions.float()[..., None] * (1.0 / theta**exponent)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half on the first dimensions of x [rows, heads, length, head_dim]; the rest pass."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [rest], dim=-1)


class Attention(nn.Module):
    """Fused Q|K|V, per-head RMSNorm on Q and K before the partial rotary, grouped KV heads."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.head_dim
        total = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * width
        self.query_key_value = nn.Linear(shape.hidden_size, total, bias=False)
        self.query_layernorm = RMSNorm(width, shape.rms_norm_eps)
        self.key_layernorm = RMSNorm(width, shape.rms_norm_eps)
        self.dense = nn.Linear(shape.num_attention_heads * width, shape.hidden_size, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, *, fast: bool
    ) -> Tensor:
        """x [rows, length, hidden]; mask bool [rows, length, length], True where q sees k."""
        rows, length, _ = x.shape
        heads, kv_heads = self.shape.num_attention_heads, self.shape.num_key_value_heads
        mixed = self.query_key_value(x).view(rows, length, heads + 2 * kv_heads, -1)
        query, key, value = mixed.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        query = rotate(self.query_layernorm(query), *angles)
        key = rotate(self.key_layernorm(key), *angles)
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
        scale = self.shape.head_dim**-0.5
        if fast:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask[:, None], scale=scale
            )
        else:
            scores = (query @ key.transpose(-1, -2)).float() * scale
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
            out = scores.softmax(-1).to(value.dtype) @ value
        return self.dense(out.transpose(1, 2).reshape(rows, length, -1))


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


class Layer(nn.Module):
    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.attention = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        dense = index < shape.first_k_dense_replace
        self.mlp: GatedMLP | MoE = (
            GatedMLP(shape.hidden_size, shape.intermediate_size) if dense else MoE(shape)
        )

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        block: Tensor | None,
        *,
        fast: bool,
    ) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), angles, mask, fast=fast)
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, block, fast=fast) if isinstance(self.mlp, MoE) else self.mlp(y))


class Backbone(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class LLaDA2(nn.Module):
    """The whole model. Parameter names are those of the HF checkpoint, but for stacked experts."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        *,
        group: Tensor | None = None,
        select: Tensor | None = None,
        fast: bool = False,
    ) -> Tensor:
        """Logits in float32.

        input_ids, positions: int64 [rows, length]. mask: bool [rows, length, length], True where
        the query (second axis) may see the key (third); every query must see at least one key.
        group: int64 [rows, length], not negative: tokens of a row with the same number are one
        block to the router. Needed where the shape has an expert_capacity, else it does nothing.
        select: bool [rows, length]; with it the result is [selected, vocab], else
        [rows, length, vocab]. There is no cache: every call computes every position.
        """
        x = self.model.word_embeddings(input_ids)
        angles = rotary_angles(positions, self.shape.rotary_dim, self.shape.rope_theta)
        block = None
        if group is not None and self.shape.expert_capacity is not None:
            row = torch.arange(len(group), device=group.device)[:, None]
            numbers = row * (group.max() + 1) + group
            block = numbers.flatten().unique(return_inverse=True)[1]
        for layer in self.model.layers:
            x = layer(x, angles, mask, block, fast=fast)
        if select is not None:
            x = x[select]
        return self.lm_head(self.model.norm(x)).float()

    @torch.no_grad()
    def block_causal_logits(self, input_ids: Tensor, block_size: int) -> Tensor:
        """float32 [length, vocab] for one sequence int64 [length], the slow and obvious way."""
        length = len(input_ids)
        mask = block_causal_mask(length, block_size).to(input_ids.device)
        positions = torch.arange(length, device=input_ids.device)
        group = positions // block_size
        return self(input_ids[None], positions[None], mask[None], group=group[None])[0]
