"""The pool of KV blocks: reference counts, the prefix-cache map, and the free queue that is its LRU list.

Mirrors vllm/v1/core/block_pool.py. Deliberate difference: block ids carry no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks, of which block 0 is vLLM's null block and never handed out.

    A block is free when nobody refers to it. vLLM keeps free blocks in one queue and hands them out from
    its front. That queue always consists of three parts, kept apart here: blocks without a hash (put at the
    front when freed), blocks never used so far, and blocks least recently freed first. With
    `unhashed_first` off (before vLLM 0.25), blocks without a hash are among the last kind.
    """

    def __init__(self, num_blocks: int, *, unhashed_first: bool = True) -> None:
        self.num_usable = num_blocks - 1
        self.unhashed_first = unhashed_first
        self.num_evictions = 0
        self._unhashed: list[int] = []  # the last is handed out first
        self._num_used_ever = 0
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._ref_count = [0]
        self._key: list[int | None] = [None]
        self._cached = _CachedBlocks()

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to, cached ones included."""
        return len(self._unhashed) + self.num_usable - self._num_used_ever + len(self._lru)

    def find(self, key: int) -> int | None:
        """A block that holds `key`, the one cached first, or None. Moves nothing in the LRU order."""
        return self._cached.first(key)

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these (cached) blocks are in the free queue at the moment."""
        ref_count = self._ref_count
        return sum(ref_count[block] == 0 for block in blocks)

    def touch(self, blocks: Iterable[int]) -> None:
        """Take a reference on cached blocks; idle ones leave the free queue."""
        for block in blocks:
            if self._ref_count[block] == 0:
                del self._lru[block]
            self._ref_count[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks from the front of the free queue; cached ones are evicted."""
        assert count <= self.num_free, "allocating more blocks than are free"
        return [self._pop_front() for _ in range(count)]

    def cache(self, block: int, key: int) -> None:
        """The block is (or, later in this step, will be) full and holds `key`: make it hittable."""
        self._key[block] = key
        self._cached.add(key, block)

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference on each block of a request, given in sequence order.

        Blocks are released tail first, so that a prompt's tail is evicted before its head. Blocks without
        a hash hold nothing to reuse: they go to the front of the queue.
        """
        unhashed = []
        for block in reversed(blocks):
            self._ref_count[block] -= 1
            if self._ref_count[block] == 0:
                if self._key[block] is None and self.unhashed_first:
                    unhashed.append(block)
                else:
                    self._lru[block] = None
        self._unhashed.extend(reversed(unhashed))

    def check_integrity(self) -> None:
        """Assert conservation: free and referenced blocks partition the pool, and the map is exact."""
        counts = self._ref_count
        assert all(count >= 0 for count in counts), "negative reference count"
        idle = [block for block in range(1, len(counts)) if counts[block] == 0]
        assert idle == sorted([*self._unhashed, *self._lru]), "free queue and reference counts disagree"
        assert all(self._key[block] is None for block in self._unhashed), "a hashed block among the unhashed"
        hashed = {(key, block) for block, key in enumerate(self._key) if key is not None}
        assert hashed == set(self._cached.items()), "hash map and block keys disagree"

    def _pop_front(self) -> int:
        if self._unhashed:
            block = self._unhashed.pop()
        elif self._num_used_ever < self.num_usable:
            self._num_used_ever = block = self._num_used_ever + 1
            self._ref_count.append(0)
            self._key.append(None)
        else:
            block = self._least_recently_freed()
        self._ref_count[block] = 1
        return block

    def _least_recently_freed(self) -> int:
        """Its content, if any, is evicted."""
        block, _ = self._lru.popitem(last=False)
        key = self._key[block]
        if key is not None:
            self._cached.remove(key, block)
            self._key[block] = None
            self.num_evictions += 1
        return block


class _CachedBlocks:
    """Key -> blocks that hold it, in the order they were cached.

    Identical blocks are not merged: two requests that compute the same block at once both keep theirs.
    Duplicates are rare, so a key maps to a bare block until there is a second one (as vLLM does).
    """

    def __init__(self) -> None:
        self._blocks: dict[int, int | dict[int, None]] = {}

    def first(self, key: int) -> int | None:
        held = self._blocks.get(key)
        return next(iter(held)) if isinstance(held, dict) else held

    def add(self, key: int, block: int) -> None:
        held = self._blocks.get(key)
        if held is None:
            self._blocks[key] = block
        elif isinstance(held, dict):
            held[block] = None
        else:
            self._blocks[key] = {held: None, block: None}

    def remove(self, key: int, block: int) -> None:
        held = self._blocks[key]
        if isinstance(held, dict):
            del held[block]
        if not isinstance(held, dict) or not held:
            del self._blocks[key]

    def items(self) -> Iterable[tuple[int, int]]:
        for key, held in self._blocks.items():
            for block in held if isinstance(held, dict) else (held,):
                yield key, block
