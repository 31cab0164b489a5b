"""The inputs of a forward of block rows at fixed addresses, where captured kernels look."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from llada_sglang.models.llada2 import HIDDEN_ONLY

PADDING_REQUEST = 0
PADDING_PAGE = 0
"""Row 0 of the host's `req_to_token` and page 0 of its KV pool are never handed out: the host keeps
them for the padding of its own graphs (`ReqToTokenPool`, `PagedTokenToKVPoolAllocator.clear`). All
of row 0 is slot 0, so a padding row reads within page 0 whatever its attention does."""


class RowInputs:
    """Static buffers for up to `most` rows of `block` tokens, and a batch of views per size.

    A row that is not in use is a padding row: token 0 at positions [0, block) of the padding
    request, K/V written to the padding page, kv_len of that page alone. It touches nothing else,
    and nothing reads what it computes.
    """

    def __init__(self, *, most: int, block: int, device: torch.device | str) -> None:
        self.most = most
        self.block = block
        positions = torch.arange(block, device=device).repeat(most)
        # int64 all, as the host's own batches have them, so that one launch copies them.
        self._padding = {
            "input_ids": torch.zeros_like(positions),
            "positions": positions,
            "out_cache_loc": positions + PADDING_PAGE * block,
            "req_pool_indices": torch.full((most,), PADDING_REQUEST, device=device),
            "seq_lens": torch.full((most,), block, device=device),
        }
        self._static = {name: tensor.clone() for name, tensor in self._padding.items()}
        self._seq_lens_cpu = torch.full((most,), block, dtype=torch.int64)
        self._prefix_lens = torch.zeros(most, dtype=torch.int32, device=device)
        self._batches: dict[int, ForwardBatch] = {}

    def batch(self, size: int) -> ForwardBatch:
        """The batch of `size` rows that views the buffers; the same object at every call.

        Metadata planned for it outside of a graph and kernels captured with it agree on addresses.
        """
        if size not in self._batches:
            self._batches[size] = self._views(size)
        return self._batches[size]

    def load(self, source: Any, begin: int, end: int, size: int) -> ForwardBatch:
        """Put rows [begin, end) of a batch into the first rows of `batch(size)`; pad the others.

        source: a ForwardBatch of block rows. Copies on the device, no host sync.
        """
        rows, block = end - begin, self.block
        into, values = [], []
        for name, static in self._static.items():
            scale = block if name in ("input_ids", "positions", "out_cache_loc") else 1
            used, whole = rows * scale, size * scale
            into.append(static[:used])
            values.append(getattr(source, name)[begin * scale : end * scale])
            if rows < size:
                into.append(static[used:whole])
                values.append(self._padding[name][used:whole])
        torch._foreach_copy_(into, values)
        self._prefix_lens[:rows].copy_(source.extend_prefix_lens[begin:end])
        self._prefix_lens[rows:size].zero_()
        self._seq_lens_cpu[:rows].copy_(source.seq_lens_cpu[begin:end])
        self._seq_lens_cpu[rows:size].fill_(block)

        batch = self.batch(size)
        batch.seq_lens_sum = int(self._seq_lens_cpu[:size].sum())
        starts = list(source.extend_prefix_lens_cpu[begin:end])
        batch.extend_prefix_lens_cpu = starts + [0] * (size - rows)
        return batch

    def _views(self, size: int) -> ForwardBatch:
        block, device = self.block, self._prefix_lens.device
        tokens = size * block
        static = self._static
        return ForwardBatch(
            forward_mode=ForwardMode.DLLM_EXTEND,
            batch_size=size,
            input_ids=static["input_ids"][:tokens],
            req_pool_indices=static["req_pool_indices"][:size],
            seq_lens=static["seq_lens"][:size],
            seq_lens_cpu=self._seq_lens_cpu[:size],
            seq_lens_sum=tokens,
            out_cache_loc=static["out_cache_loc"][:tokens],
            positions=static["positions"][:tokens],
            extend_num_tokens=tokens,
            extend_seq_lens=torch.full((size,), block, dtype=torch.int32, device=device),
            extend_prefix_lens=self._prefix_lens[:size],
            extend_start_loc=torch.arange(0, tokens, block, dtype=torch.int32, device=device),
            extend_prefix_lens_cpu=[0] * size,
            extend_seq_lens_cpu=[block] * size,
            extend_logprob_start_lens_cpu=[block] * size,
            global_num_token_non_padded_cpu=tokens,
            model_specific_states={HIDDEN_ONLY: True},
        )


def padding_batch(
    rows: int,
    block: int,
    vocabulary: int,
    device: torch.device | str,
    *,
    kv_len: int | None = None,
) -> ForwardBatch:
    """A batch of padding rows with various tokens, to capture and to time forwards with.

    Various, because tokens that are all alike would choose the same few experts. kv_len: what each
    row reads, a multiple of the block and at most the context; one block by default.
    """
    generator = torch.Generator().manual_seed(0)
    batch = RowInputs(most=rows, block=block, device=device).batch(rows)
    ids = torch.randint(0, vocabulary, (rows * block,), generator=generator)
    batch.input_ids.copy_(ids)
    if kv_len is not None:
        # The padding request has slot 0 at every position.
        batch.seq_lens.fill_(kv_len)
        batch.seq_lens_cpu.fill_(kv_len)
        batch.seq_lens_sum = rows * kv_len
        batch.extend_prefix_lens.fill_(kv_len - block)
        batch.extend_prefix_lens_cpu = [kv_len - block] * rows
    return batch
