"""Compiled: which cached block holds which content. See `block_pool._CachedBlocks`."""

from __future__ import annotations

from kavier.native.kit import INT32, Integer, Record, at, prefetch
from kavier.simulation.kernel.index import let_go
from kavier.simulation.kernel.records import ENTRY_BYTES, NODE
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined

GROUP_BITS = 4
"""Keys are numbered along prompts: runs of 16 lie together in the hash map, and are found at once."""


@inlined
def node_at(r: Replica, c: Settings, node: Integer) -> Record:
    """A cached block."""
    return at(r.nodes, c.num_usable, node, NODE)


@inlined
def map_entry(r: Replica, i: Integer) -> Record:
    """Entry of the hash map: a node + 1, so that zeroed memory is an empty map."""
    return at(r.map, 1 << r.map_bits, i, INT32)


@inlined
def _home(r: Replica, key: Integer) -> Integer:
    """Where a key's probe sequence begins: Fibonacci hashing of its group."""
    groups = r.map_bits - GROUP_BITS
    mixed = (key >> GROUP_BITS) * 0x1E3779B97F4A7C15
    group = (mixed >> (63 - groups)) & ((1 << groups) - 1)
    return (group << GROUP_BITS) | (key & ((1 << GROUP_BITS) - 1))


@inlined
def probe(r: Replica, c: Settings, key: Integer) -> Integer:
    """Index of the key's entry, or of the empty entry where it belongs."""
    mask = (1 << r.map_bits) - 1
    i = _home(r, key)
    while True:
        node = map_entry(r, i).value - 1
        if node < 0 or node_at(r, c, node).key == key:
            return i
        i = (i + 1) & mask


@inlined
def prefetch_key(r: Replica, key: Integer) -> None:
    """The entry of a key will be looked up soon."""
    prefetch(r.map + _home(r, key) * ENTRY_BYTES)


@inlined
def find(r: Replica, c: Settings, key: Integer) -> Integer:
    """The node that was cached first under this key, or -1."""
    return map_entry(r, probe(r, c, key)).value - 1


@compiled
def _delete_entry(r: Replica, c: Settings, hole: Integer) -> None:
    """Backward-shift deletion: entries behind the hole move up if it is on their way."""
    mask = (1 << r.map_bits) - 1
    i = (hole + 1) & mask
    while map_entry(r, i).value:
        node = map_entry(r, i).value - 1
        if ((i - _home(r, node_at(r, c, node).key)) & mask) >= ((i - hole) & mask):
            map_entry(r, hole).value = node + 1
            hole = i
        i = (i + 1) & mask
    map_entry(r, hole).value = 0


@compiled
def forget(r: Replica, c: Settings, node: Integer) -> None:
    """An evicted node is found no more; the next block with the same key, if any, takes its place."""
    n = node_at(r, c, node)
    place = probe(r, c, n.key)
    first = map_entry(r, place).value - 1
    if first != node:
        while node_at(r, c, first).link != node:
            first = node_at(r, c, first).link
        node_at(r, c, first).link = n.link
    elif n.link >= 0:
        map_entry(r, place).value = n.link + 1
    else:
        _delete_entry(r, c, place)
        if c.holders and n.key < c.num_contents:
            let_go(c, n.key, r.index)
    n.link = r.free_node
    r.free_node = node + 1
