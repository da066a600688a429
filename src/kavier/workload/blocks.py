"""Identity of KV blocks: which blocks of which requests hold the same tokens."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.workload.chains import Chains, Numbers

Ints = NDArray[np.int64]

INDEX_BITS = 24
"""Requests have fewer blocks than these count."""

MOST_KEYS = 2**31 - 1


def unknown_key(row: int, index: int) -> int:
    """Key of a block whose content the trace does not tell: equal to no other, and negative."""
    return -((row << INDEX_BITS) | index) - 1


class BlockKeys:
    """Keys of engine blocks, such that equal key = equal tokens from the start of the prompt on.

    A trace hashes blocks of its own size (`block_tokens`). Engine block j is identified by the chain of
    trace hashes up to the one that covers the block's last token, and by j. The answer of a request is
    known only where a later request (its `parent` column points back) extends prompt and answer.

    Args:
        requests: Table with the columns of `kavier.workload.table.SCHEMA`.
        block_size: Tokens of an engine block.
    """

    def __init__(self, requests: pl.DataFrame, block_size: int) -> None:
        self.block_size = block_size
        self._requests = requests

    def keys(self, row: int) -> list[int]:
        """Keys of the leading full blocks of request `row` that the trace identifies: prompt, then answer."""
        keys, firsts = self.flat
        found: list[int] = keys[firsts[row] : firsts[row + 1]].tolist()
        return found

    @cached_property
    def flat(self) -> tuple[Numbers, Ints]:
        """Keys of all rows, one row after the other, and where each row's begin (one more than rows).

        Keys are numbered from 0 on; those of new blocks of a row follow each other.

        Raises:
            InputError: More of them than 31 bits number.
        """
        table, rows = self._requests, len(self._requests)
        if "block_hashes" not in table.columns:
            return np.zeros(0, np.int32), np.zeros(rows + 1, np.int64)
        hashes = table["block_hashes"]
        starts = _starts(hashes.list.len().fill_null(0).to_numpy())
        flat = hashes.explode(empty_as_null=False, keep_nulls=False).to_numpy()
        trace_size = int(table["block_tokens"].max() or 1)  # type: ignore[arg-type]
        if (most := len(flat) * (trace_size // self.block_size + 1)) > MOST_KEYS:
            raise InputError(
                "more block hashes than can be numbered", value=most, expected=f"{MOST_KEYS:,} blocks"
            )
        chains = Chains(flat, starts, trace_size, self.block_size)
        prompts, outputs = (np.array(table[name], np.int64) for name in ("prompt_tokens", "output_tokens"))
        firsts = _starts(chains.choose_sources(prompts, outputs, _last_heirs(table)))
        return chains.write_keys(firsts), firsts


def _starts(counts: Ints) -> Ints:
    """Where each of the rows begins, and the end of the last."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _last_heirs(requests: pl.DataFrame) -> Ints:
    """Row of the end of each conversation: its hashes cover most of what was said before as whole blocks.

    Of several requests that continue one, the first is its heir.
    """
    heirs = np.arange(len(requests))
    if "parent" not in requests.columns:
        return heirs
    parents = requests["parent"].fill_null(-1).to_numpy()
    children = np.flatnonzero(parents >= 0)[::-1]
    heirs[parents[children]] = children
    for _ in range(len(heirs).bit_length()):  # doubles the generations passed each time
        heirs = heirs[heirs]
    return heirs
