"""Blocks of requests: prefix lookup, allocation, release.

Mirrors vllm/v1/core/kv_cache_manager.py for one full-attention KV group.
"""

from __future__ import annotations

from kavier.simulation.block_pool import BlockPool
from kavier.simulation.request import Request


class KVCacheManager:
    """Decides whether a request gets its blocks, and which.

    Args:
        num_gpu_blocks: Blocks of the pool, null block included.
        block_size: Tokens a block.
        enable_caching: Prefix caching on.
        watermark: Share of the blocks that admissions leave free while others run.
        max_model_len: Longest sequence; no slots are given beyond it.
        unhashed_first: See `BlockPool`.
    """

    def __init__(
        self,
        num_gpu_blocks: int,
        *,
        block_size: int,
        enable_caching: bool = True,
        watermark: float = 0.0,
        max_model_len: int = 2**31,
        unhashed_first: bool = True,
    ) -> None:
        self.pool = BlockPool(num_gpu_blocks, unhashed_first=unhashed_first)
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.watermark_blocks = int(watermark * num_gpu_blocks)
        self.max_model_len = max_model_len

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take."""
        return -(-tokens // self.block_size)

    def can_ever_hold(self, request: Request) -> bool:
        """Whether the tokens it has now fit in an empty pool."""
        return self.blocks_for(request.num_tokens) <= self.pool.num_usable

    def find_cached(self, request: Request) -> list[int]:
        """The longest cached prefix of a request, as blocks; a pure read.

        At least one token is left to compute, so the last block of a fully cached prompt is not used.
        """
        hits: list[int] = []
        if not self.enable_caching:
            return hits
        for index in range((request.num_tokens - 1) // self.block_size):
            block = self.pool.find(request.block_key(index))
            if block is None:
                break
            hits.append(block)
        return hits

    def admit(
        self, request: Request, num_new: int, hits: list[int], *, whole_must_fit: bool, others_run: bool
    ) -> bool:
        """Give a waiting request its cached blocks and `num_new` more slots; False changes nothing.

        whole_must_fit: all its tokens must fit now, though only `num_new` of them are given slots
        (scheduler_reserve_full_isl). It reserves nothing.
        """
        cached = len(hits) * self.block_size
        slots = min(cached + num_new, self.max_model_len)
        to_fit = max(slots, min(request.num_tokens, self.max_model_len)) if whole_must_fit else slots
        reserve = self.watermark_blocks if others_run else 0
        wanted = self.blocks_for(to_fit) - len(hits) + self.pool.num_idle(hits) + reserve
        if wanted > self.pool.num_free:
            return False
        self.pool.touch(hits)
        request.blocks = hits + self.pool.allocate(self.blocks_for(slots) - len(hits))
        request.num_hashed_blocks = len(hits)
        self.cache_blocks(request, slots)
        return True

    def extend(self, request: Request, num_new: int) -> bool:
        """Give a running request slots for `num_new` more tokens; False changes nothing."""
        slots = min(request.num_computed_tokens + num_new, self.max_model_len)
        missing = self.blocks_for(slots) - len(request.blocks)
        if missing > 0:
            if missing > self.pool.num_free:
                return False
            request.blocks += self.pool.allocate(missing)
        self.cache_blocks(request, slots)
        return True

    def free(self, request: Request) -> None:
        """Take all blocks from a finished or preempted request."""
        self.pool.free(request.blocks)
        request.blocks = []
        request.num_hashed_blocks = 0

    def cache_blocks(self, request: Request, slots: int) -> None:
        """Full blocks of the first `slots` tokens, as far as these are known, are hittable from now on.

        That is when a step is scheduled, so that blocks which it fills are hit in the same step too.
        """
        if not self.enable_caching:
            return
        full = min(slots, request.num_tokens) // self.block_size
        for index in range(request.num_hashed_blocks, full):
            self.pool.cache(request.blocks[index], request.block_key(index))
        request.num_hashed_blocks = max(request.num_hashed_blocks, full)
