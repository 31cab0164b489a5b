"""Which graphs to capture: their sizes, and the memory they take, before anything is captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llada_sglang.errors import LaunchConfigError

FINE = 64
"""Rows up to which a step of mini on Hopper is bound by the weights it reads, so that padding costs
little: sizes there are powers of two and the halves between them. Above, padding costs its share of
the arithmetic, and sizes are quarters apart."""

HEAD_SIZES = (32, 64, 128, 256, 384, 512, 640, 768, 1024, 1536, 2048, 4096)
"""Positions of the head's graphs: closer where it is bound by arithmetic and half of a batch of
rows is masked."""

LOGITS_BYTES = 512 << 20
"""Most bytes of logits alive at once. More positions take several replays, each of which reads the
head's weights again, to which a thousand positions' arithmetic is long in comparison."""

DRIVER_BYTES = 8 << 20
"""What the driver keeps of one graph outside of torch's memory, as the host reckons."""

ROUNDING = 16 << 20
"""What rounded sizes and small tensors add to a workspace."""

MEMORY_SHARE = 0.5
"""Part of the memory left beside weights and KV that graphs may take; eager forwards, which carry
long prompts, need the rest."""


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """What the command line asks of graphs; `rows` is what the host's flags call a batch size.

    enabled: False after --disable-cuda-graph, --disable-decode-cuda-graph or
        --cuda-graph-backend-decode disabled.
    sizes: --cuda-graph-bs-decode, the exact row counts, which wins over `most`.
    most: --cuda-graph-max-bs-decode. padding: False after --disable-cuda-graph-padding.
    """

    enabled: bool = True
    sizes: tuple[int, ...] = ()
    most: int | None = None
    padding: bool = True

    @classmethod
    def read(cls, given: Any) -> GraphOptions:
        """Read the flags as the user gave them.

        given: the host's ServerArgs, which keep the user's values: what is declared during
        resolution (among it our own `disable_cuda_graph`, for the host's graphs) is held apart.
        Raises LaunchConfigError for a size below 1.
        """
        sizes = tuple(sorted(set(given.cuda_graph_bs_decode or ())))
        most = given.cuda_graph_max_bs_decode
        for name, least in (("bs", sizes[0] if sizes else None), ("max-bs", most)):
            if least is not None and least < 1:
                raise LaunchConfigError(
                    f"--cuda-graph-{name}-decode must be at least 1 row, got {least}. To run "
                    f"without graphs, give --cuda-graph-backend-decode disabled."
                )
        return cls(
            enabled=not (
                given.disable_cuda_graph
                or given.disable_decode_cuda_graph
                or given.cuda_graph_backend_decode == "disabled"
            ),
            sizes=sizes,
            most=most,
            padding=not given.disable_cuda_graph_padding,
        )


@dataclass(frozen=True, slots=True)
class ForwardShape:
    """What the memory of a forward depends on, of one rank.

    block: tokens per row. hidden, vocab_shard: columns. main, beside: bytes per token of the
    largest activations alive at once, on the forward's stream and on the one beside it, which has
    memory of its own. element, logit: bytes of an element of the body and of a logit.
    """

    block: int
    hidden: int
    vocab_shard: int
    main: int
    beside: int
    element: int
    logit: int

    @classmethod
    def of(
        cls, config: Any, *, block: int, vocab_shard: int, element: int, logit: int, tp_size: int
    ) -> ForwardShape:
        """Read a LLaDA2 model's configuration, the attributes of its config.json."""
        hidden = config.hidden_size
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        # The host's layers run routed experts beside shared ones, under block routing the reverse.
        shared_beside = getattr(config, "expert_capacity", None) is not None
        attention = 2 * (heads + 2 * max(kv_heads, tp_size)) * head_dim // tp_size
        # Gate and up, their product, and the output of every chosen expert before it is summed.
        experts = config.num_experts_per_tok * (
            3 * config.moe_intermediate_size // tp_size + hidden
        )
        width = getattr(config, "moe_shared_expert_intermediate_size", config.moe_intermediate_size)
        shared = 3 * width // tp_size + hidden
        dense = 3 * config.intermediate_size // tp_size
        one, other = (experts, shared) if shared_beside else (shared, experts)
        # Input, residual, normed input and its copy stay beside them.
        main = 4 * hidden + max(attention, dense, one)
        router = 3 * 4 * config.num_experts
        return cls(
            block=block,
            hidden=hidden,
            vocab_shard=vocab_shard,
            main=main * element + router,
            beside=other * element,
            element=element,
            logit=logit,
        )

    def buffers(self, rows: int) -> int:
        """Bytes that graphs of up to `rows` rows read from and write to."""
        return rows * self.block * (3 * 8 + self.hidden * self.element)

    def workspace(self, rows: int, positions: int, attention: int = 0) -> int:
        """Bytes of the stretch of memory that forwards and the head after them take in turns.

        rows, positions: of the largest graphs. attention: bytes it takes while it computes.
        """
        body = rows * self.block * self.main
        head = positions * (self.vocab_shard * self.logit + self.hidden * self.element)
        return max(body, head, attention) + ROUNDING

    def total(self, rows: int, positions: int, attention: int = 0) -> int:
        """Bytes of graphs of up to so many rows and positions, but for the driver's."""
        beside = rows * self.block * self.beside
        return self.buffers(rows) + self.workspace(rows, positions, attention) + beside


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """rows, positions: sizes of the graphs of body and head, ascending.

    workspace: bytes to take in one piece before the first of them. nbytes: planned, of everything.
    """

    rows: tuple[int, ...]
    positions: tuple[int, ...]
    workspace: int
    nbytes: int


def row_sizes(most: int) -> tuple[int, ...]:
    """Row counts to capture, ascending, `most` the last; see FINE."""
    sizes, power = [1], 2
    while power <= most:
        parts = 2 if power < FINE else 4
        sizes += [power + power * part // parts for part in range(parts)]
        power *= 2
    # Between 2 and 4 is 3, but the half between 1 and 2 is none.
    return (*(size for size in sizes if size < most), most)


def position_sizes(rows: int, shape: ForwardShape) -> tuple[int, ...]:
    """Position counts to capture, ascending, for steps of at most `rows` rows."""
    fitting = LOGITS_BYTES // (shape.vocab_shard * shape.logit)
    least_covering = next((n for n in HEAD_SIZES if n >= rows * shape.block), HEAD_SIZES[-1])
    return tuple(n for n in HEAD_SIZES if n <= min(fitting, least_covering)) or HEAD_SIZES[:1]


def plan_graphs(
    shape: ForwardShape,
    options: GraphOptions,
    *,
    row_budget: int,
    free_bytes: int,
    attention_bytes: Callable[[int], int] = lambda rows: 0,
) -> GraphPlan | None:
    """Choose the graphs that fit, the largest ones left out first; None where none do.

    row_budget: most rows of a forward. free_bytes: device memory beside weights and KV.
    attention_bytes: what attention takes, for up to so many rows, while it computes.
    """
    if not options.enabled:
        return None
    if options.sizes:
        rows = tuple(size for size in options.sizes if size <= row_budget)
    else:
        rows = row_sizes(min(row_budget, options.most or row_budget))
    while rows:
        positions = position_sizes(rows[-1], shape)
        largest = rows[-1], positions[-1], attention_bytes(rows[-1])
        nbytes = shape.total(*largest) + DRIVER_BYTES * (len(rows) + len(positions))
        if nbytes <= MEMORY_SHARE * free_bytes:
            return GraphPlan(rows, positions, shape.workspace(*largest), nbytes)
        rows = rows[:-1]
    return None


def padded_size(size: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `size`; None where none does."""
    return next((one for one in sizes if one >= size), None)


def turns(size: int, sizes: Sequence[int]) -> list[int]:
    """Split `size` into as few parts as the largest of `sizes` allows, all but the last full."""
    most = sizes[-1]
    return [most] * (size // most) + ([size % most] if size % most else [])
