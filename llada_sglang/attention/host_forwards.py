"""Lets a backend of the host run block rows its own way, and leaves all else to the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from llada_sglang.attention.paged_plan import RowBatch, Tiling

ROW_REQUESTS = "row_requests"
"""Key of `ForwardBatch.model_specific_states`: req_pool_indices as a list, for tiled prefill."""


class Rows(Protocol):
    """Plans block rows, eagerly or for the graph of their row count, and attends them."""

    block: int

    @property
    def tiling(self) -> Tiling | None: ...

    def plan(self, batch: RowBatch) -> None: ...

    def init_graphs(self, max_rows: int) -> None: ...

    def plan_graph(self, batch: RowBatch, *, capture: bool) -> None: ...


class BlockRowForwards(ABC):
    """Mixin in front of a host backend: DLLM_EXTEND forwards are batches of block rows.

    K and V of all rows are written to the pool before any is read, so rows of one request see
    each other within a forward. A subclass sets `_rows` once the host's part is built and
    implements `_attend`. Graphs follow the host's interface (`AttentionBackend` in
    base_attn_backend.py) and are told apart by row count; `seq_lens_cpu` has to hold the padding
    rows too.
    """

    captures_block_rows = True
    """Graphs of block rows (`graphs.setup`) are offered to backends that say so."""

    reads_pool = True
    """Keys and values of the forward itself are read from the pool as well."""

    _rows: Rows
    token_to_kv_pool: Any

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan an eager forward."""
        if forward_batch.forward_mode.is_dllm_extend():
            self._rows.plan(row_batch(forward_batch, self._rows.block))
        else:
            super().init_forward_metadata(forward_batch)  # type: ignore[misc]

    def graph_attention_bytes(self, rows: int) -> int:
        """What attention takes, beside its output, in the graphs of up to so many rows."""
        return 0

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, *_: Any, **__: Any) -> None:
        """Allocate what graphs of up to max_bs rows read.

        Raises ValueError where max_num_tokens is not that many whole rows.
        """
        if max_num_tokens != max_bs * self._rows.block:
            raise ValueError(
                f"max_num_tokens must be {max_bs} rows of {self._rows.block} tokens, got "
                f"{max_num_tokens}. Graphs of block rows are captured by row count."
            )
        self._rows.init_graphs(max_bs)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Plan a forward about to be captured or replayed; `batch_size` is the graph's rows.

        Raises ValueError for forwards of another kind: they run eagerly.
        """
        if not forward_batch.forward_mode.is_dllm_extend():
            raise ValueError(
                f"a graph of block rows needs a DLLM_EXTEND forward, got "
                f"{forward_batch.forward_mode.name}. Run it eagerly."
            )
        batch = row_batch(forward_batch, self._rows.block)
        self._rows.plan_graph(batch, capture=in_capture)

    def prefers_eager(self, forward_batch: Any) -> bool:
        """Whether rows of one prompt share a prefix worth a tile, which no graph's plan has."""
        rows = self._rows
        if rows.tiling is None:
            return False
        return rows.tiling.of(row_batch(forward_batch, rows.block)) is not None

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:  # noqa: B027 - complete
        """Nothing: what a graph reads is written before it is replayed."""

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """The kv_len of a padding row: its own block, on the scratch page of table row 0."""
        return self._rows.block

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Persist K and V, then attend every row. Returns [tokens, heads * value dim]."""
        if not forward_batch.forward_mode.is_dllm_extend():
            return super().forward_extend(  # type: ignore[misc]
                q, k, v, layer, forward_batch, save_kv_cache, **kwargs
            )
        _require_bidirectional(layer)
        if save_kv_cache and k is not None:
            location = KVWriteLoc.for_layer(forward_batch, layer)
            self.token_to_kv_pool.set_kv_buffer(layer, location, k, v, layer.k_scale, layer.v_scale)
        query = q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)
        return self._attend(query, layer).reshape(query.shape[0], -1)

    @abstractmethod
    def _attend(self, query: Tensor, layer: Any) -> Tensor:
        """query: [tokens, heads, dim]. Returns [tokens, heads, value dim]."""


def row_batch(forward_batch: Any, block: int) -> RowBatch:
    """The block rows of a host batch.

    Raises ValueError where its tokens are not whole rows. Waits for the device only where the
    batch has no lengths on the host.
    """
    rows = forward_batch.batch_size
    tokens = len(forward_batch.positions)
    if tokens != rows * block:
        raise ValueError(
            f"a forward of {rows} block rows has {rows * block} tokens, got {tokens}. Rows are "
            f"whole blocks of {block}."
        )
    lens = forward_batch.seq_lens_cpu
    if lens is None:
        lens = forward_batch.seq_lens
    states = forward_batch.model_specific_states or {}
    return RowBatch(
        requests=forward_batch.req_pool_indices[:rows],
        kv_lens=forward_batch.seq_lens[:rows],
        kv_lens_host=lens[:rows].tolist(),
        request_ids=states.get(ROW_REQUESTS),
    )


def _require_bidirectional(layer: Any) -> None:
    window = layer.sliding_window_size
    plain = (
        layer.attn_type == AttentionType.ENCODER_ONLY
        and not layer.is_cross_attention
        and not layer.logit_cap
        and (window is None or window < 0)
    )
    if not plain:
        raise ValueError(
            f"block rows need bidirectional attention without a window or a cap on logits, layer "
            f"{layer.layer_id} has {layer.attn_type}, window {window}, cap {layer.logit_cap}. Use "
            f"--attention-backend block_row_torch."
        )
