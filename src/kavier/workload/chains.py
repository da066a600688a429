"""Numbers for chains of block hashes: what the compiled code of `chains_compiled` reads and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kavier.native.library import Library, address

Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]

CHAINS = np.dtype(
    [
        ("num_rows", "i8"),
        ("num_hashes", "i8"),
        ("hashes", "i8"),  # u8, rows one after the other
        ("starts", "i8"),  # i8, where each row's begin; one more than rows
        ("numbers", "i8"),  # i4, out: first key of the chain that ends with each hash
        ("table", "i8"),  # i4, a hash map from chains to their number + 1; a row adds one chain or none
        ("table_size", "i8"),  # a power of two
        ("parents", "i8"),  # i4, of each chain, -1 at the beginning
        ("origins", "i8"),  # i4, of each chain: the hash that it first ended with
        ("num_depths", "i8"),
        ("depth_starts", "i8"),  # i8, engine blocks before the one that ends with each of a row's hashes
        ("trace_size", "i8"),  # tokens of a hashed block
        ("size", "i8"),  # tokens of an engine block
        ("prompts", "i8"),  # i8, tokens
        ("outputs", "i8"),
        ("heirs", "i8"),  # i8, rows
        ("sources", "i8"),  # i8, out: which row tells the keys of each row, itself or its heir
        ("counts", "i8"),  # i8, out: how many
        ("firsts", "i8"),  # i8, where each row's keys begin; one more than rows
        ("num_keys", "i8"),
        ("keys", "i8"),  # i4, out
    ],
    align=True,
)

NUMBER_CHAINS, CHOOSE_SOURCES, WRITE_KEYS = range(3)
"""Operations."""

LIBRARY = Library(
    "kavier.workload.chains_compiled",
    arguments=2,
    sources=(
        Path(__file__),
        Path(__file__).with_name("chains_compiled.py"),
        Path(__file__).parents[1] / "native",
    ),
    label="block keys (about 2 s)",
)


class Chains:
    """Chains of the hashes of all requests.

    Args:
        hashes: uint64, rows one after the other.
        starts: Where each row begins; one more than rows.
        trace_size: Tokens of a hashed block.
        size: Tokens of an engine block.
    """

    def __init__(self, hashes: NDArray[np.uint64], starts: Ints, trace_size: int, size: int) -> None:
        self._record = np.zeros(1, CHAINS)
        self._kept: list[NDArray[np.generic]] = []
        count, rows = len(hashes), len(starts) - 1
        slots = 1 << (2 * rows).bit_length()
        depth_starts = np.arange(np.diff(starts).max(initial=0) + 1) * trace_size // size
        self._set(num_rows=rows, num_hashes=count, trace_size=trace_size, size=size)
        self._set(table_size=slots, num_depths=len(depth_starts))
        self._point(hashes=hashes, starts=starts, numbers=np.empty(count, np.int32))
        self._point(table=np.zeros(slots, np.int32), parents=np.empty(count, np.int32))
        self._point(origins=np.empty(count, np.int32), depth_starts=depth_starts)
        LIBRARY.call(NUMBER_CHAINS, address(self._record))

    def choose_sources(self, prompts: Ints, outputs: Ints, heirs: Ints) -> Ints:
        """How many keys each row has: of its prompt, or of its answer too where its heir tells them."""
        rows = len(prompts)
        counts = np.zeros(rows, np.int64)
        self._point(
            prompts=prompts, outputs=outputs, heirs=heirs, sources=np.empty(rows, np.int64), counts=counts
        )
        LIBRARY.call(CHOOSE_SOURCES, address(self._record))
        return counts

    def write_keys(self, firsts: Ints) -> Numbers:
        """Keys of all rows: those of a row are keys[firsts[row]:firsts[row + 1]]."""
        keys = np.empty(firsts[-1], np.int32)
        self._set(num_keys=len(keys))
        self._point(firsts=firsts, keys=keys)
        LIBRARY.call(WRITE_KEYS, address(self._record))
        return keys

    def _set(self, **numbers: int) -> None:
        for name, number in numbers.items():
            self._record[name] = number

    def _point(self, **arrays: NDArray[np.generic]) -> None:
        for name, array in arrays.items():
            self._kept.append(array)
            self._record[name] = address(array)
