"""Numbers for chains of block hashes, compiled: traces have tens of millions of blocks."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit

Array: TypeAlias = Any

SUB_BLOCK_BITS = 24
"""An engine block is named by the chain that covers it, and its index in this many bits."""


@njit(cache=True, error_model="numpy", nogil=True)
def _home(parent: int, hashed: int, mask: int) -> Any:
    mixed = np.uint64(parent) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(hashed)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@njit(cache=True, error_model="numpy", nogil=True)
def _grown(table: Array, parents: Array, hashes: Array, count: int) -> Array:
    """A table twice as large with the same numbers."""
    larger = np.zeros(2 * len(table), np.int64)
    mask = len(larger) - 1
    for number in range(count):
        at = _home(parents[number], hashes[number], mask)
        while larger[at]:
            at = (at + 1) & mask
        larger[at] = number + 1
    return larger


@njit(cache=True, error_model="numpy", nogil=True)
def number_chains(hashes: Array, starts: Array) -> Array:
    """Number every distinct chain of hashes.

    Args:
        hashes: uint64, rows one after the other.
        starts: Where each row begins; one more than rows.

    Returns:
        int64, one a hash: equal numbers = the row is equal up to there.
    """
    numbers = np.empty(len(hashes), np.int64)
    parents, known = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.uint64)
    table, count = np.zeros(1 << 12, np.int64), 0
    for row in range(len(starts) - 1):
        parent = -1
        for i in range(starts[row], starts[row + 1]):
            mask = len(table) - 1
            at = _home(parent, hashes[i], mask)
            while table[at] and (parents[table[at] - 1] != parent or known[table[at] - 1] != hashes[i]):
                at = (at + 1) & mask
            if table[at] == 0:
                parents[count], known[count] = parent, hashes[i]
                count += 1
                table[at] = count
            parent = numbers[i] = table[at] - 1
            if 2 * count > len(table):
                table = _grown(table, parents, known, count)
    return numbers


@njit(cache=True, error_model="numpy", nogil=True)
def _key(chains: Array, start: int, index: int, size: int, trace_size: int) -> Any:
    """Key of engine block `index` of the row whose chains begin at `start`."""
    covering = ((index + 1) * size - 1) // trace_size
    return chains[start + covering] << SUB_BLOCK_BITS | index


@njit(cache=True, error_model="numpy", nogil=True)
def choose_sources(
    prompts: Array, outputs: Array, heirs: Array, sizes: Array, chains: Array, starts: Array, size: int
) -> tuple[Array, Array]:
    """Which row tells the keys of each row, itself or its heir, and how many it tells."""
    rows = len(prompts)
    sources, counts = np.arange(rows), np.zeros(rows, np.int64)
    for row in range(rows):
        if starts[row + 1] > starts[row]:
            counts[row] = prompts[row] // size
        heir = heirs[row]
        if heir == row:
            continue
        told = 0
        if starts[heir + 1] > starts[heir]:
            told = min(prompts[row] + outputs[row], prompts[heir]) // size
        # The trace block in which the prompt ends is hashed anew once it is full, in the heir: only the
        # blocks that are whole in both can be compared.
        same = (prompts[row] - prompts[row] % sizes[row]) // size
        known = min(same, counts[row])
        equal = min(told, same) == known
        for i in range(known if equal else 0):
            mine = _key(chains, starts[row], i, size, sizes[row])
            equal = equal and mine == _key(chains, starts[heir], i, size, sizes[heir])
        if equal:
            sources[row], counts[row] = heir, told
    return sources, counts


@njit(cache=True, error_model="numpy", nogil=True)
def write_keys(
    sources: Array, firsts: Array, sizes: Array, chains: Array, starts: Array, size: int, keys: Array
) -> None:
    """Keys of all rows; those of a row are keys[firsts[row]:firsts[row + 1]]."""
    for row in range(len(sources)):
        source = sources[row]
        for i in range(firsts[row + 1] - firsts[row]):
            keys[firsts[row] + i] = _key(chains, starts[source], i, size, sizes[source])
