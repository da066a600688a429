"""Compiled: which replicas hold which block content, for routers that ask.

A content that one replica holds names it; one that several hold has a set of them, a bit each.
"""

from __future__ import annotations

from kavier.native.kit import INT32, INT64, Integer, Record, at, trailing_zeros
from kavier.simulation.kernel.records import HOLDER
from kavier.simulation.kernel.typed import Settings, compiled, inlined


@inlined
def _holder(c: Settings, key: Integer) -> Record:
    return at(c.holders, c.num_contents, key, HOLDER)


@inlined
def _word(c: Settings, number: Integer, word: Integer) -> Record:
    return at(c.sets, c.num_sets * c.set_words, number * c.set_words + word, INT64)


@inlined
def _new_set(c: Settings) -> Integer:
    """An empty set; there is room, see `entry`."""
    if c.free_set:
        number = c.free_set - 1
        c.free_set = _word(c, number, 0).value
    else:
        number = c.num_sets_ever
        c.num_sets_ever += 1
    for i in range(c.set_words):
        _word(c, number, i).value = 0
    return number


@inlined
def _add(c: Settings, number: Integer, index: Integer) -> None:
    word = _word(c, number, index >> 6)
    word.value |= 1 << (index & 63)


@inlined
def _first_member(c: Settings, number: Integer) -> Integer:
    word = 0
    while _word(c, number, word).value == 0:
        word += 1
    return (word << 6) + trailing_zeros(_word(c, number, word).value)


@compiled
def hold(c: Settings, key: Integer, index: Integer) -> None:
    """Replica `index` has a block with this content now, and had none."""
    holder = _holder(c, key)
    if holder.count == 0:
        holder.where = index
    else:
        if holder.count == 1:
            number = _new_set(c)
            _add(c, number, holder.where)
            holder.where = number
        _add(c, holder.where, index)
    holder.count += 1


@compiled
def let_go(c: Settings, key: Integer, index: Integer) -> None:
    """Replica `index` has no block with this content any more."""
    holder = _holder(c, key)
    holder.count -= 1
    if holder.count == 0:
        return
    number = holder.where
    word = _word(c, number, index >> 6)
    word.value &= ~(1 << (index & 63))
    if holder.count == 1:
        holder.where = _first_member(c, number)
        _word(c, number, 0).value = c.free_set
        c.free_set = number + 1


@inlined
def depth(c: Settings, first: Integer, limit: Integer) -> Integer:
    """How many of the `limit` contents whose keys begin at `first` some replica holds, from the start on.

    Who holds one holds those before it: they are freed later, so evicted later.
    """
    found = 0
    while found < limit:
        key = at(c.told, c.num_told, first + found, INT32).value
        if _holder(c, key).count == 0:
            break
        found += 1
    return found


@inlined
def next_holder(c: Settings, key: Integer, index: Integer) -> Integer:
    """The first replica from `index` on that holds a content that some do; -1 for none."""
    holder = _holder(c, key)
    if holder.count == 1:
        return holder.where if holder.where >= index else -1
    word = index >> 6
    if word >= c.set_words:
        return -1
    bits = _word(c, holder.where, word).value >> (index & 63) << (index & 63)
    while bits == 0:
        word += 1
        if word == c.set_words:
            return -1
        bits = _word(c, holder.where, word).value
    return (word << 6) + trailing_zeros(bits)
