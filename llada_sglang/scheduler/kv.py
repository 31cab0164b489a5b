"""KV slots and radix locks of running requests: taken, extended, published, given back once.

Built on the host's own pool, allocator and tree. Page = block, so a request owns whole pages,
and only blocks whose KV came from final tokens are ever shown to the tree.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.common import (
    evict_from_tree_cache,
    match_kv_cache,
    release_kv_cache,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.allocator import BaseTokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    from llada_sglang.scheduler.state import BlockState


class BlockKV:
    """The host's KV pool, seen in blocks."""

    def __init__(
        self,
        *,
        block: int,
        req_to_token_pool: ReqToTokenPool,
        allocator: BaseTokenToKVPoolAllocator,
        tree_cache: BasePrefixCache,
    ) -> None:
        self.block = block
        self.rows = req_to_token_pool
        self.allocator = allocator
        self.tree = tree_cache

    def obtainable(self) -> int:
        """Tokens that are free or can be evicted."""
        return self.allocator.available_size() + self.tree.evictable_size()

    def lock_prefix(self, req: Req, context: array[int]) -> int:
        """Match whole blocks of `context` and lock them; returns the matched length."""
        limit = len(context) // self.block * self.block
        req.kv.cache_protected_len = 0
        if limit:
            match = match_kv_cache(req, self.tree, context, max_prefix_len=limit)
            if match.cache_protected_len is None:
                req.kv.cache_protected_len = req.prefix_len
            req.lock = self.tree.lock(req.last_node)
        else:
            req.prefix_len = 0
        return req.prefix_len

    def unlock_prefix(self, req: Req) -> None:
        """Undo `lock_prefix` for a request that could not be admitted after all."""
        self.tree.unlock(req.lock)
        req.lock = None
        req.prefix_len = 0
        req.kv.cache_protected_len = 0

    def open_row(self, req: Req, prefix_len: int) -> None:
        """Bind a page-table row to the request and write its cached prefix into it."""
        if self.rows.alloc([req]) is None:
            raise RuntimeError("no free request row: max_running_requests exceeds the pool")
        if prefix_len:
            indices = self.tree.prefix_device_indices(req)
            self.rows.write((req.kv.req_pool_idx, slice(0, prefix_len)), indices.int())
        req.kv.kv_allocated_len = prefix_len
        req.kv.kv_committed_len = prefix_len

    def extend(self, req: Req, end: int) -> bool:
        """Hold slots for positions below `end`, evicting from the tree if need be."""
        held = req.kv.kv_allocated_len
        if end <= held:
            return True
        need = end - held
        if self.allocator.available_size() < need:
            evict_from_tree_cache(self.tree, need)
        slots = self.allocator.alloc(need)
        if slots is None:
            return False
        self.rows.write((req.kv.req_pool_idx, slice(held, end)), slots.int())
        req.kv.kv_allocated_len = end
        return True

    def publish(self, state: BlockState) -> None:
        """Show the committed blocks to the tree, so that other requests can share them."""
        req = state.req
        if state.committed > req.kv.cache_protected_len and not req.skip_radix_cache_insert:
            req.refresh_fill_ids()
            self.tree.checkpoint(req, up_to=state.committed)

    def drop_uncommitted(self, req: Req, committed: int) -> None:
        """Free the slots of blocks whose KV is not final; others must never read them."""
        held = req.kv.kv_allocated_len
        if committed < held:
            self.tree.free_kv_row(req.kv, [(committed, held)])
        req.kv.kv_allocated_len = committed
        req.kv.kv_committed_len = committed

    def drop_ahead(self, req: Req, end: int) -> int:
        """Free the slots at and behind `end`, which no block in flight needs; how many."""
        held = req.kv.kv_allocated_len
        if end >= held:
            return 0
        self.tree.free_kv_row(req.kv, [(end, held)])
        req.kv.kv_allocated_len = end
        return held - end

    def close_row(self, state: BlockState, *, publish: bool = True) -> None:
        """Give everything back; with `publish`, committed blocks stay in the tree, evictable."""
        req = state.req
        self.drop_uncommitted(req, state.committed)
        if state.committed:
            release_kv_cache(req, self.tree, checkpoint=publish)
        else:
            self.abandon_row(req)

    def abandon_row(self, req: Req) -> None:
        """Give back a row that holds no slots of its own (the host's release asserts some)."""
        self.tree.unlock(req.lock)
        req.lock = None
        self.rows.free(req)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = 0
        req.kv.cache_protected_len = req.prefix_len = 0
