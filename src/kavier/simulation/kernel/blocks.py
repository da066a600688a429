"""Compiled: KV blocks, counted rather than numbered. See block_pool.py and kv_cache_manager.py.

Only cached blocks that can be found again are nodes: those whose content the trace tells, and those of a
preempted request. Other cached blocks lie in the LRU queue as runs of anonymous ones.
"""

from __future__ import annotations

from kavier.native.kit import INT32, Integer, Record, at, larger, prefetch, smaller
from kavier.simulation.kernel.contents import forget, node_at, prefetch_key
from kavier.simulation.kernel.records import NODE_BYTES
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined


@inlined
def blocks_for(c: Settings, tokens: Integer) -> Integer:
    """Blocks that tokens take."""
    return (tokens + c.block_size - 1) // c.block_size


# --- The free queue: plain blocks first, then a ring of entries -------------------------------------------
# An entry is a node, or minus twice the number of anonymous blocks: of cached ones, or less one more, of
# plain ones (which lie here only without `unhashed_first`). A node that was taken out of the queue leaves its
# entry behind: it counts only where the node is idle and its position says so.


@inlined
def _entry(r: Replica, position: Integer) -> Record:
    return at(r.queue, r.queue_mask + 1, position & r.queue_mask, INT32)


@inlined
def _is_there(r: Replica, c: Settings, node: Integer, position: Integer) -> bool:
    """Whether an entry of the queue counts."""
    n = node_at(r, c, node)
    return n.references == 0 and n.queue_position == position & 0xFFFFFFFF


@inlined
def _look_ahead(r: Replica, c: Settings) -> None:
    """Have what the next entries of the queue name in the processor's cache when they come up."""
    far = _entry(r, r.queue_head + 16).value
    if far >= 0:
        prefetch(r.nodes + far * NODE_BYTES)
    near = _entry(r, r.queue_head + 8).value
    if near >= 0:
        prefetch_key(r, node_at(r, c, near).key)


@compiled
def settle(r: Replica, c: Settings) -> None:
    """Take the blocks that were handed out from the head of the LRU queue; count which were cached."""
    owed = r.debt
    while owed > 0:
        _look_ahead(r, c)
        entry = _entry(r, r.queue_head)
        value = entry.value
        if value < 0:
            count, plain = (-value) >> 1, (-value) & 1
            taken = smaller(count, owed)
            owed -= taken
            if plain:
                r.step.evicted_blocks -= taken
            if taken < count:
                entry.value = value + 2 * taken
                break
        elif _is_there(r, c, value, r.queue_head):
            forget(r, c, value)
            owed -= 1
        r.queue_head += 1
    r.debt = 0


@inlined
def allocate(r: Replica, c: Settings, count: Integer) -> None:
    """Hand out blocks, plain ones first.

    The queue is settled later: first in, first out, so that is the same.

    Without `unhashed_first` the queue has to tell at once how many of them were cached.
    """
    taken = larger(count - r.num_plain, 0)
    r.num_plain -= count - taken
    r.num_free -= count
    if taken:
        r.debt += taken
        r.step.evicted_blocks += taken
        if not c.unhashed_first:
            settle(r, c)


@compiled
def _compact(r: Replica, c: Settings) -> None:
    """Drop entries of nodes that were taken out of the queue; the others move towards the tail."""
    to = position = r.queue_tail - 1
    while position >= r.queue_head:
        value = _entry(r, position).value
        if value < 0 or _is_there(r, c, value, position):
            _entry(r, to).value = value
            if value >= 0:
                node_at(r, c, value).queue_position = to
            to -= 1
        position -= 1
    r.queue_head = to + 1


@inlined
def _enqueue(r: Replica, c: Settings, value: Integer) -> Integer:
    """Append an entry; returns its position."""
    if r.queue_tail - r.queue_head > r.queue_mask:
        _compact(r, c)
    position = r.queue_tail
    _entry(r, position).value = value
    r.queue_tail += 1
    return position


@inlined
def _enqueue_run(r: Replica, c: Settings, count: Integer, plain: Integer) -> None:
    """Append anonymous blocks, to a run of their kind if one is last."""
    if r.queue_tail > r.queue_head:
        last = _entry(r, r.queue_tail - 1)
        if last.value < 0 and ((-last.value) & 1) == plain:
            last.value -= 2 * count
            return
    _enqueue(r, c, -2 * count - plain)


@inlined
def drop(r: Replica, c: Settings, node: Integer) -> None:
    """Give back one reference to a node."""
    n = node_at(r, c, node)
    if n.references > 1:
        n.references -= 1
        return
    n.queue_position = _enqueue(r, c, node)  # (while it is held: compaction takes no old entry for it)
    n.references = 0
    r.num_free += 1


@inlined
def take(r: Replica, c: Settings, node: Integer) -> None:
    """Take a reference to a cached node; an idle one leaves the queue."""
    n = node_at(r, c, node)
    r.num_free -= n.references == 0
    n.references += 1


@compiled
def release_anonymous(r: Replica, c: Settings, plain: Integer, cached: Integer) -> None:
    """Free blocks that are no nodes: plain ones, then cached ones that nobody can find."""
    if not c.caching or c.unhashed_first:
        r.num_plain += plain
    elif plain:
        _enqueue_run(r, c, plain, 1)
    if cached > 0:
        _enqueue_run(r, c, cached, 0)
    r.num_free += plain + cached
