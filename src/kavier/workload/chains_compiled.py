"""Compiled: numbers for chains of block hashes. Traces have tens of millions of blocks.

A chain is a row's hashes up to one of them. The engine blocks whose last token lies in its last hashed block
are named by successive keys, chain by chain in the order in which they first occur.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from kavier.native.kit import INT32, INT64, Integer, at, decorators, smaller
from kavier.workload.chains import CHAINS, CHOOSE_SOURCES, NUMBER_CHAINS

Chains: TypeAlias = Any

compiled, inlined = decorators({"Chains": CHAINS})

ODD = 0x9E3779B97F4A7C15 - (1 << 64)
ODD_TOO = 0xBF58476D1CE4E5B9 - (1 << 64)
"""Multipliers of splitmix64, as signed numbers."""


@inlined
def _start(c: Chains, row: Integer) -> Integer:
    return at(c.starts, c.num_rows + 1, row, INT64).value


@inlined
def _depth_start(c: Chains, depth: Integer) -> Integer:
    """The first engine block that a chain of `depth` + 1 hashes names and a shorter one does not."""
    return at(c.depth_starts, c.num_depths, depth, INT64).value


@inlined
def _is(c: Chains, chain: Integer, parent: Integer, hashed: Integer) -> bool:
    """Whether a chain extends `parent` (-1 = nothing) by this hash."""
    origin = at(c.origins, c.num_hashes, chain, INT32).value
    same = at(c.hashes, c.num_hashes, origin, INT64).value == hashed
    return same and at(c.parents, c.num_hashes, chain, INT32).value == parent


@inlined
def _place(c: Chains, parent: Integer, hashed: Integer) -> Integer:
    """Where the table holds a chain, or would."""
    mixed = parent * ODD ^ hashed
    mixed = (mixed ^ (mixed >> 29)) * ODD_TOO
    place = (mixed ^ (mixed >> 32)) & (c.table_size - 1)
    while True:
        found = at(c.table, c.table_size, place, INT32).value - 1
        if found < 0 or _is(c, found, parent, hashed):
            return place
        place = (place + 1) & (c.table_size - 1)


@inlined
def _number(c: Chains, count: Integer, parent: Integer, hashed: Integer) -> Integer:
    """Number of the chain that extends `parent` by this hash; if it is new `count`, that of the next new one.

    The first chain to extend one has most often the number after it: a new chain is extended at once by what
    follows in its row. Only chains of which that is not so are in the table, whose places are far apart in
    memory. A row adds at most one to them: all that follow it in the row are new, too.
    """
    following = parent + 1
    if following == count or _is(c, following, parent, hashed):
        return following
    slot = at(c.table, c.table_size, _place(c, parent, hashed), INT32)
    if slot.value == 0:
        slot.value = count + 1
    return slot.value - 1


@compiled
def _number_chains(c: Chains) -> Integer:
    count = keys = 0
    for row in range(c.num_rows):
        first, parent = _start(c, row), -1
        for i in range(first, _start(c, row + 1)):
            hashed = at(c.hashes, c.num_hashes, i, INT64).value
            chain = _number(c, count, parent, hashed)
            if chain == count:
                at(c.parents, c.num_hashes, chain, INT32).value = parent
                at(c.origins, c.num_hashes, chain, INT32).value = i
                at(c.numbers, c.num_hashes, i, INT32).value = keys
                keys += _depth_start(c, i - first + 1) - _depth_start(c, i - first)
                count += 1
            else:
                origin = at(c.origins, c.num_hashes, chain, INT32).value
                at(c.numbers, c.num_hashes, i, INT32).value = at(c.numbers, c.num_hashes, origin, INT32).value
            parent = chain
    return keys


@inlined
def _key(c: Chains, row: Integer, index: Integer) -> Integer:
    """Key of engine block `index` of a row."""
    depth = ((index + 1) * c.size - 1) // c.trace_size
    first = at(c.numbers, c.num_hashes, _start(c, row) + depth, INT32).value
    return first + index - _depth_start(c, depth)


@inlined
def _length(c: Chains, row: Integer) -> Integer:
    return _start(c, row + 1) - _start(c, row)


@inlined
def _heir_tells(c: Chains, row: Integer, heir: Integer, told: Integer, known: Integer) -> bool:
    """Whether the heir's `told` blocks begin with what is known of the row."""
    # The trace block in which the prompt ends is hashed anew once it is full, in the heir: only the
    # blocks that are whole in both can be compared.
    prompt = at(c.prompts, c.num_rows, row, INT64).value
    same = (prompt - prompt % c.trace_size) // c.size
    known = smaller(same, known)
    if smaller(told, same) != known:
        return False
    equal = 0
    while equal < known and _key(c, row, equal) == _key(c, heir, equal):
        equal += 1
    return equal == known


@compiled
def _choose_sources(c: Chains) -> Integer:
    for row in range(c.num_rows):
        prompt = at(c.prompts, c.num_rows, row, INT64).value
        source, count = row, 0
        if _length(c, row) > 0:
            count = prompt // c.size
        heir = at(c.heirs, c.num_rows, row, INT64).value
        if heir != row:
            told = 0
            if _length(c, heir) > 0:
                said = prompt + at(c.outputs, c.num_rows, row, INT64).value
                told = smaller(said, at(c.prompts, c.num_rows, heir, INT64).value) // c.size
            if _heir_tells(c, row, heir, told, count):
                source, count = heir, told
        at(c.sources, c.num_rows, row, INT64).value = source
        at(c.counts, c.num_rows, row, INT64).value = count
    return 0


@compiled
def _write_keys(c: Chains) -> Integer:
    keys, num_keys = c.keys, c.num_keys  # read once: stores to keys might be to the record, as LLVM sees it
    for row in range(c.num_rows):
        hashed = _start(c, at(c.sources, c.num_rows, row, INT64).value)
        first = at(c.firsts, c.num_rows + 1, row, INT64).value
        count = at(c.firsts, c.num_rows + 1, row + 1, INT64).value - first
        index = depth = 0
        while index < count:
            offset = at(c.numbers, c.num_hashes, hashed + depth, INT32).value - index
            depth += 1
            end = smaller(_depth_start(c, depth), count)
            for i in range(index, end):
                at(keys, num_keys, first + i, INT32).value = offset + i
            index = end
    return 0


def dispatch(operation: int, chains: int) -> int:
    """The one function that is exported; see `chains`."""
    c = at(chains, 1, 0, CHAINS)
    if operation == NUMBER_CHAINS:
        return _number_chains(c)
    if operation == CHOOSE_SOURCES:
        return _choose_sources(c)
    return _write_keys(c)
