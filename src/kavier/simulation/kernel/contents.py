"""Compiled: which cached block holds which content. See `block_pool._CachedBlocks`."""

from __future__ import annotations

from kavier.native.kit import INT32, Integer, Record, at, prefetch
from kavier.simulation.kernel.index import let_go
from kavier.simulation.kernel.records import ENTRY_BYTES, NODE
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined

GROUP_BITS = 4
"""Keys are numbered along prompts. Runs of 16 stay together in the hash map, so that a prompt's are found at once."""


DISPLACED = 1 << 30
NODE_MASK = DISPLACED - 1


@inlined
def node_at(r: Replica, c: Settings, node: Integer) -> Record:
    """A cached block."""
    return at(r.nodes, c.num_usable, node, NODE)


@inlined
def map_entry(r: Replica, i: Integer) -> Record:
    """Entry of the hash map: a node + 1, so that zeroed memory is an empty map; and a bit if it is displaced."""
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
    """Index of the key's entry, or of the empty entry where it belongs.

    Past the home of a key, only displaced entries can be its own: the nodes of others need not be looked at.
    """
    mask = (1 << r.map_bits) - 1
    i = home = _home(r, key)
    while True:
        value = map_entry(r, i).value
        if value == 0:
            return i
        if (i == home or value & DISPLACED) and node_at(r, c, (value & NODE_MASK) - 1).key == key:
            return i
        i = (i + 1) & mask


@inlined
def enter(r: Replica, key: Integer, i: Integer, node: Integer) -> None:
    """Fill the entry that `probe` has told for a key."""
    map_entry(r, i).value = node + 1 if i == _home(r, key) else (node + 1) | DISPLACED


@inlined
def entered(r: Replica, i: Integer) -> Integer:
    """The node of an entry, or -1."""
    return (map_entry(r, i).value & NODE_MASK) - 1


@inlined
def prefetch_key(r: Replica, key: Integer) -> None:
    """The entry of a key will be looked up soon."""
    prefetch(r.map + _home(r, key) * ENTRY_BYTES)


@inlined
def find(r: Replica, c: Settings, key: Integer) -> Integer:
    """The node that was cached first under this key, or -1."""
    return entered(r, probe(r, c, key))


@compiled
def _delete_entry(r: Replica, c: Settings, hole: Integer) -> None:
    """Backward-shift deletion: displaced entries behind the hole move up if it is on their way."""
    mask = (1 << r.map_bits) - 1
    i = (hole + 1) & mask
    while map_entry(r, i).value:
        if map_entry(r, i).value & DISPLACED:
            node = entered(r, i)
            key = node_at(r, c, node).key + 0
            if ((i - _home(r, key)) & mask) >= ((i - hole) & mask):
                enter(r, key, hole, node)
                hole = i
        i = (i + 1) & mask
    map_entry(r, hole).value = 0


@compiled
def forget(r: Replica, c: Settings, node: Integer) -> None:
    """An evicted node is found no more; the next block with the same key, if any, takes its place."""
    n = node_at(r, c, node)
    place = probe(r, c, n.key)
    first = entered(r, place)
    if first != node:
        while node_at(r, c, first).link != node:
            first = node_at(r, c, first).link
        node_at(r, c, first).link = n.link
    elif n.link >= 0:
        enter(r, n.key, place, n.link)
    else:
        _delete_entry(r, c, place)
        if c.holders and n.key < c.num_contents:
            let_go(c, n.key, r.index)
    n.link = r.free_node
    r.free_node = node + 1
