"""Device kernels, each with its torch twin; the twin defines the semantics."""

from __future__ import annotations

from torch import Tensor

from llada_sglang.decoding.statistics import ShardStatistics, shard_statistics


def vocab_statistics(logits: Tensor, *, vocab_start: int, mask_id: int) -> ShardStatistics:
    """Reduce the logits of one vocabulary shard; the mask id is never a legal prediction.

    logits: bfloat16, float16 or float32 [positions, shard], rows contiguous, any row stride; may
    be overwritten. vocab_start: global id of column 0. Semantics are those of
    `decoding.statistics.shard_statistics`.
    On a GPU one Triton kernel reads the logits once, in their own dtype, without a copy and
    without a host sync; elsewhere the torch twin runs in float32.
    Raises ValueError where the logits are no such matrix.
    """
    if not logits.is_cuda:
        return shard_statistics(logits.float(), vocab_start=vocab_start, mask_id=mask_id)
    # Here and not above: a machine without a GPU need not have Triton.
    from llada_sglang.kernels.vocab_statistics import fused_vocab_statistics

    return fused_vocab_statistics(logits, vocab_start=vocab_start, mask_id=mask_id)
