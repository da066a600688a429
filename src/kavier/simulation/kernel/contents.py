"""Compiled: which cached block holds which content. See `block_pool._CachedBlocks`."""

from __future__ import annotations

from kavier.native.kit import Integer, Record, at
from kavier.simulation.kernel.index import let_go
from kavier.simulation.kernel.records import ENTRY, NODE
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined

GROUP_BITS = 4
"""Keys are numbered along prompts. Runs of 16 stay together in the hash map, so that a prompt's are found at once."""


@inlined
def node_at(r: Replica, c: Settings, node: Integer) -> Record:
    """A cached block."""
    return at(r.nodes, c.num_usable, node, NODE)


@inlined
def map_entry(r: Replica, i: Integer) -> Record:
    """Entry of the hash map."""
    return at(r.map, 1 << r.map_bits, i, ENTRY)


@inlined
def _home(r: Replica, key: Integer) -> Integer:
    """Where a key's probe sequence begins: Fibonacci hashing of its group."""
    groups = r.map_bits - GROUP_BITS
    mixed = (key >> GROUP_BITS) * 0x1E3779B97F4A7C15
    group = (mixed >> (63 - groups)) & ((1 << groups) - 1)
    return (group << GROUP_BITS) | (key & ((1 << GROUP_BITS) - 1))


@inlined
def probe(r: Replica, key: Integer) -> Integer:
    """Index of the key's entry, or of the empty entry where it belongs."""
    mask = (1 << r.map_bits) - 1
    i = _home(r, key)
    while True:
        entry = map_entry(r, i)
        if entry.node == 0 or entry.key == key:
            return i
        i = (i + 1) & mask


@inlined
def find(r: Replica, key: Integer) -> Integer:
    """The node that was cached first under this key, or -1."""
    return map_entry(r, probe(r, key)).node - 1


@compiled
def _delete_entry(r: Replica, hole: Integer) -> None:
    """Backward-shift deletion: entries behind the hole move up if it is on their way."""
    mask = (1 << r.map_bits) - 1
    i = (hole + 1) & mask
    while map_entry(r, i).node:
        entry = map_entry(r, i)
        if ((i - _home(r, entry.key)) & mask) >= ((i - hole) & mask):
            target = map_entry(r, hole)
            target.key, target.node = entry.key, entry.node
            hole = i
        i = (i + 1) & mask
    map_entry(r, hole).node = 0


@compiled
def forget(r: Replica, c: Settings, node: Integer) -> None:
    """An evicted node is found no more; the next block with the same key, if any, takes its place."""
    n = node_at(r, c, node)
    place = probe(r, n.key)
    entry = map_entry(r, place)
    first = entry.node - 1
    if first != node:
        while node_at(r, c, first).link != node:
            first = node_at(r, c, first).link
        node_at(r, c, first).link = n.link
    elif n.link >= 0:
        entry.node = n.link + 1
    else:
        _delete_entry(r, place)
        if c.holders and n.key < c.num_contents:
            let_go(c, n.key, r.index)
    n.queue_position = -1
    n.link = r.free_node
    r.free_node = node + 1
