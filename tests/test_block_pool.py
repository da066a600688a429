"""The block manager under random admissions, extensions and releases, against a plain model of its rules."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from kavier.simulation.block_pool import BlockPool
from kavier.simulation.kv_cache_manager import KVCacheManager
from kavier.simulation.request import Request

SIZE = 2


def free_queue(pool: BlockPool) -> list[int]:
    """The blocks in the order in which they would be handed out."""
    return copy.deepcopy(pool).allocate(pool.num_free)


class BlockManagerMachine(RuleBasedStateMachine):
    """Requests come with prefixes of two documents, grow and go; `queue` and `held` are the model.

    `queue` is the free queue as the specification has it: one list, with the hashed blocks in the order in
    which they were freed; so are those without a hash before vLLM 0.25. `keys` maps a block to what it holds.
    """

    admitted: Bundle[Request] = Bundle("admitted")

    @initialize(num_blocks=st.integers(3, 14), caching=st.booleans(), unhashed_first=st.booleans())
    def start(self, num_blocks, caching, unhashed_first):
        self.kv = KVCacheManager(
            num_blocks, block_size=SIZE, enable_caching=caching, unhashed_first=unhashed_first
        )
        self.unhashed_first = unhashed_first
        self.queue = list(range(1, num_blocks))
        self.held: dict[int, int] = {}
        self.keys: dict[int, int] = {}
        self.rows = 0
        self.present: list[Request] = []

    @rule(target=admitted, document=st.integers(0, 1), shared=st.integers(0, 4), tail=st.integers(1, 5))
    def admit(self, document, shared, tail):
        request = Request(self.rows, 0.0, shared * SIZE + tail, 1)
        self.rows += 1
        request.block_keys = [100 * document + index for index in range(shared)]
        queue = free_queue(self.kv.pool)
        hits = self.kv.find_cached(request)
        assert free_queue(self.kv.pool) == queue, "a lookup moved something"
        assert [self.keys[block] for block in hits] == request.block_keys[: len(hits)]
        assert len(hits) == self.longest_prefix(request)
        new = request.num_tokens - len(hits) * SIZE
        idle = [block for block in hits if block not in self.held]
        wanted = self.kv.blocks_for(request.num_tokens) - len(hits)
        fits = self.kv.admit(request, new, hits, whole_must_fit=True, others_run=False)
        assert fits == (wanted + len(idle) <= len(self.queue))
        if not fits:
            assert request.blocks == []
            return multiple()
        self.queue = [block for block in self.queue if block not in idle]
        assert request.blocks == hits + self.take(wanted)
        for block in request.blocks:
            self.held[block] = self.held.get(block, 0) + 1
        request.num_computed_tokens = request.num_tokens
        self.remember(request)
        self.present.append(request)
        return request

    @rule(request=admitted, tokens=st.integers(1, 3))
    def extend(self, request, tokens):
        missing = self.kv.blocks_for(request.num_computed_tokens + tokens) - len(request.blocks)
        before = list(request.blocks)
        request.num_tokens = max(request.num_tokens, request.num_computed_tokens + tokens)
        fits = self.kv.extend(request, tokens)
        assert fits == (max(missing, 0) <= len(self.queue))
        if not fits:
            assert request.blocks == before
            return
        new = self.take(max(missing, 0))
        assert request.blocks == before + new
        self.held.update(dict.fromkeys(new, 1))
        request.num_computed_tokens += tokens
        self.remember(request)

    @rule(request=consumes(admitted))
    def free(self, request):
        self.present.remove(request)
        released = []
        for block in reversed(request.blocks):  # tail before head
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]
                released.append(block)
        self.kv.free(request)
        assert request.blocks == []
        first = [block for block in released if self.unhashed_first and block not in self.keys]
        self.queue = first + self.queue + [block for block in released if block not in first]

    def take(self, count: int) -> list[int]:
        """Blocks off the front: those that hold nothing to reuse, then the least recently freed."""
        taken, self.queue = self.queue[:count], self.queue[count:]
        for block in taken:
            self.keys.pop(block, None)
        return taken

    def remember(self, request: Request) -> None:
        """Full blocks of known tokens are cached."""
        if self.kv.enable_caching:
            for index in range(request.num_computed_tokens // SIZE):
                self.keys[request.blocks[index]] = request.block_key(index)

    def longest_prefix(self, request: Request) -> int:
        """How many leading blocks some cached block holds, with a token left to compute."""
        known = set(self.keys.values())
        count = 0
        while (count + 1) * SIZE < request.num_tokens and request.block_key(count) in known:
            count += 1
        return count

    @invariant()
    def blocks_are_conserved_and_in_order(self):
        pool = self.kv.pool
        pool.check_integrity()
        assert pool.num_free + len(self.held) == pool.num_usable
        assert free_queue(pool) == self.queue
        hashed = [block in self.keys for block in self.queue]
        if self.unhashed_first:
            assert hashed == sorted(hashed), "a cached block would be evicted before an empty one is used"

    def teardown(self):
        """When everybody has left, nothing is referred to."""
        for request in self.present:
            self.kv.free(request)
        assert self.kv.pool.num_free == self.kv.pool.num_usable
        self.kv.pool.check_integrity()


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(stateful_step_count=40)


def test_every_reference_count_ends_at_zero():
    kv = KVCacheManager(10, block_size=SIZE)
    requests = []
    for row in range(3):
        request = Request(row, 0.0, 5, 1)
        request.block_keys = [1, 2]
        hits = kv.find_cached(request)
        assert kv.admit(request, 5 - 2 * len(hits), hits, whole_must_fit=True, others_run=True)
        requests.append(request)
    shared = requests[0].blocks[:2]
    assert all(request.blocks[:2] == shared for request in requests)
    assert kv.pool.num_idle(shared) == 0
    for request in requests:
        assert kv.pool.num_idle(shared) == 0
        kv.free(request)
    assert kv.pool.num_idle(shared) == 2
    assert kv.pool.num_free == kv.pool.num_usable


def test_equal_blocks_computed_twice_are_both_kept_and_the_first_is_found():
    pool = BlockPool(4)
    first, second, _ = blocks = pool.allocate(3)
    pool.cache(first, 7)
    pool.cache(second, 7)
    assert pool.find(7) == first
    pool.free(blocks)
    pool.touch([second])
    pool.allocate(2)  # the third block, then the first, which is evicted
    assert pool.find(7) == second
    pool.check_integrity()


def test_evictions_count_cached_blocks_only():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.cache(blocks[0], 1)
    pool.free(blocks)
    pool.allocate(1)
    assert pool.num_evictions == 0
    pool.allocate(1)
    assert pool.num_evictions == 1
    assert pool.find(1) is None
