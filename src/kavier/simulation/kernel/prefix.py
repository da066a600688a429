"""Compiled: the prefix cache. See `kv_cache_manager.KVCacheManager`.

Every block of every request has a key. Keys that the trace tells are shared; the others, behind them, are of
one request each.
"""

from __future__ import annotations

from kavier.native.kit import INT32, INT64, Integer, Record, at, larger, prefetch, smaller
from kavier.simulation.kernel.blocks import blocks_for, drop, release_anonymous, settle, take
from kavier.simulation.kernel.contents import find, map_entry, node_at, prefetch_key, probe
from kavier.simulation.kernel.index import hold
from kavier.simulation.kernel.queues import request_at, slot_at
from kavier.simulation.kernel.records import NODE_BYTES
from kavier.simulation.kernel.typed import Replica, Settings, Slot, compiled, inlined


@inlined
def first_told(c: Settings, q: Integer) -> Integer:
    """Where the told keys of request q begin."""
    return at(c.first_told, c.num_requests + 1, q, INT64).value


@inlined
def num_told(c: Settings, q: Integer) -> Integer:
    """Leading blocks of a request whose content the trace tells."""
    return first_told(c, q + 1) - first_told(c, q)


@inlined
def _told_key(c: Settings, i: Integer) -> Integer:
    return at(c.told, c.num_told, i, INT32).value


@inlined
def _held(c: Settings, i: Integer) -> Record:
    return at(c.held, c.num_told + c.num_untold, i, INT32)


@inlined
def tell(c: Settings, slot: Slot) -> None:
    """Note what the trace tells of a request that was seated."""
    slot.first_told, slot.num_told = first_told(c, slot.request), num_told(c, slot.request)


@inlined
def _untold(c: Settings, q: Integer, told: Integer) -> Integer:
    """Added to the number of a block of request q behind the told ones: its place among all such."""
    return at(c.first_untold, c.num_requests + 1, q, INT64).value - told


@inlined
def _new_node(r: Replica, c: Settings, key: Integer) -> Integer:
    """A node that somebody holds."""
    if r.free_node == 0 and r.num_nodes_ever == c.num_usable:
        settle(r, c)
    if r.free_node:
        node = r.free_node - 1
        r.free_node = node_at(r, c, node).link
    else:
        node = r.num_nodes_ever
        r.num_nodes_ever += 1
    n = node_at(r, c, node)
    n.key, n.link, n.references = key, -1, 1
    return node


@inlined
def _insert(r: Replica, c: Settings, key: Integer) -> Integer:
    """A held block becomes hittable, behind blocks that have the same key already."""
    node = _new_node(r, c, key)
    entry = map_entry(r, probe(r, c, key))
    if entry.value == 0:
        entry.value = node + 1
        if c.holders and key < c.num_contents:
            hold(c, key, r.index)
    else:
        last = entry.value - 1
        while node_at(r, c, last).link >= 0:
            last = node_at(r, c, last).link
        node_at(r, c, last).link = node
    return node


@inlined
def _expect(r: Replica, c: Settings, first: Integer, end: Integer) -> None:
    """These told keys will be looked up: runs of them lie together."""
    for i in range(first, end, 8):
        prefetch_key(r, _told_key(c, i))


@compiled
def cache_full_blocks(r: Replica, c: Settings, s: Integer, tokens: Integer) -> None:
    """Full blocks of the first `tokens` tokens are hittable from now on, if the trace tells their keys."""
    slot = slot_at(r, c, s)
    full = smaller(tokens // c.block_size, slot.num_told)
    _expect(r, c, slot.first_told + slot.num_nodes, slot.first_told + full)
    for i in range(slot.first_told + slot.num_nodes, slot.first_told + full):
        _held(c, i).value = _insert(r, c, _told_key(c, i))
    slot.num_nodes = larger(slot.num_nodes, full)


@compiled
def keep_untold_blocks(r: Replica, c: Settings, s: Integer, hashed: Integer) -> None:
    """A preempted request can find its own blocks again: the rest of its cached blocks become nodes."""
    slot = slot_at(r, c, s)
    blocks, untold = hashed // c.block_size, _untold(c, slot.request, slot.num_told)
    for i in range(untold + slot.num_nodes, untold + blocks):
        _held(c, c.num_told + i).value = _insert(r, c, c.num_contents + i)
    slot.num_nodes = larger(slot.num_nodes, blocks)


@compiled
def find_cached(r: Replica, c: Settings, q: Integer) -> tuple[Integer, Integer]:
    """The longest cached prefix of a request: (blocks, how many of them are idle). Lists them in `held`.

    A pure read of the pool.
    """
    if r.debt:
        settle(r, c)
    request = request_at(c, q)
    longest = (request.prompt_tokens + request.output_tokens - 1) // c.block_size
    first, told = first_told(c, q), num_told(c, q)
    found = idle = 0
    _expect(r, c, first, first + smaller(longest, told))
    while found < smaller(longest, told):
        node = find(r, c, _told_key(c, first + found))
        if node < 0:
            return found, idle
        _held(c, first + found).value = node
        idle += node_at(r, c, node).references == 0
        found += 1
    if request.preemptions:
        untold = _untold(c, q, told)
        while found < longest:
            node = find(r, c, c.num_contents + untold + found)
            if node < 0:
                return found, idle
            _held(c, c.num_told + untold + found).value = node
            idle += node_at(r, c, node).references == 0
            found += 1
    return found, idle


@compiled
def touch(r: Replica, c: Settings, s: Integer, found: Integer) -> None:
    """Give a request its cached blocks."""
    slot = slot_at(r, c, s)
    first, told = slot.first_told, slot.num_told + 0
    for i in range(first, first + smaller(found, told)):
        take(r, c, _held(c, i).value)
    if found > told:
        untold = c.num_told + _untold(c, slot.request, told)
        for i in range(untold + told, untold + found):
            take(r, c, _held(c, i).value)
    slot.num_nodes = found


@compiled
def release(r: Replica, c: Settings, s: Integer, computed: Integer, hashed: Integer) -> None:
    """Free all blocks of a request, tail first, of whose tokens the first `hashed` are cached."""
    slot = slot_at(r, c, s)
    cached = hashed // c.block_size if c.caching else 0
    nodes = slot.num_nodes + 0
    release_anonymous(r, c, blocks_for(c, computed) - cached, cached - nodes)
    if nodes == 0:
        return
    first, told = slot.first_told, slot.num_told + 0
    for i in range(first, first + smaller(nodes, told)):
        prefetch(r.nodes + _held(c, i).value * NODE_BYTES)
    if nodes > told:
        untold = c.num_told + _untold(c, slot.request, told)
        for i in range(untold + nodes - 1, untold + told - 1, -1):
            drop(r, c, _held(c, i).value)
    for i in range(first + smaller(nodes, told) - 1, first - 1, -1):
        drop(r, c, _held(c, i).value)


@inlined
def match(r: Replica, c: Settings, q: Integer, limit: Integer) -> Integer:
    """How many of the first `limit` blocks of a request, which are told, are cached here."""
    if r.debt:
        settle(r, c)
    first, found = first_told(c, q), 0
    while found < limit and find(r, c, _told_key(c, first + found)) >= 0:
        found += 1
    return found
