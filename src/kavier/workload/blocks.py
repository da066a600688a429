"""Identity of KV blocks: which blocks of which requests hold the same tokens."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

_SUB_BLOCK_BITS = 24


def unknown_key(row: int, index: int) -> int:
    """Key of a block whose content the trace does not tell: equal to no other, and negative."""
    return -((row << _SUB_BLOCK_BITS) | index) - 1


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
        self._prompt_tokens: list[int] = requests["prompt_tokens"].to_list()
        self._output_tokens: list[int] = requests["output_tokens"].to_list()
        hashed = "block_hashes" in requests.columns
        self._block_tokens: list[int] = requests["block_tokens"].to_list() if hashed else []
        self._chains = _intern_chains(requests["block_hashes"]) if hashed else []
        self._heir = _first_children(requests) if hashed and "parent" in requests.columns else {}

    def keys(self, row: int) -> list[int]:
        """Keys of the leading full blocks of request `row` that the trace identifies: prompt, then answer."""
        if not self._chains:
            return []
        prompt = self._prompt_tokens[row]
        own = self._leading(row, prompt)
        heir = self._last_heir(row)
        if heir == row:
            return own
        total = prompt + self._output_tokens[row]
        inherited = self._leading(heir, min(total, self._prompt_tokens[heir]))
        # The trace block in which the prompt ends is hashed anew once it is full, in the heir: only the
        # blocks that are whole in both can be compared.
        whole = prompt - prompt % self._block_tokens[row]
        same = whole // self.block_size
        return inherited if inherited[:same] == own[:same] else own

    def _last_heir(self, row: int) -> int:
        """The end of the conversation: its hashes cover most of what was said before as whole blocks."""
        while (child := self._heir.get(row)) is not None:
            row = child
        return row

    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys of all rows, one row after the other, and where each row's begin (one more than rows)."""
        rows = [self.keys(row) for row in range(len(self._prompt_tokens))]
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        return np.fromiter((key for row in rows for key in row), np.int64, count=int(starts[-1])), starts

    def _leading(self, row: int, tokens: int) -> list[int]:
        chain = self._chains[row]
        if chain is None:
            return []
        size, trace_size = self.block_size, self._block_tokens[row]
        index = np.arange(tokens // size, dtype=np.int64)
        covering = ((index + 1) * size - 1) // trace_size
        keys: list[int] = ((chain[covering] << _SUB_BLOCK_BITS) | index).tolist()
        return keys


def _intern_chains(hashes: pl.Series) -> list[np.ndarray | None]:
    """Number every distinct chain of hashes: chain id of (parent chain, hash)."""
    numbers: dict[tuple[int, int], int] = {}
    chains: list[np.ndarray | None] = []
    for blocks in hashes.to_list():
        if blocks is None:
            chains.append(None)
            continue
        chain, parent = [], -1
        for block in blocks:
            parent = numbers.setdefault((parent, block), len(numbers))
            chain.append(parent)
        chains.append(np.asarray(chain, dtype=np.int64))
    return chains


def _first_children(requests: pl.DataFrame) -> dict[int, int]:
    """Row of the first request that continues each request."""
    heirs: dict[int, int] = {}
    for row, parent in enumerate(requests["parent"].to_list()):
        if parent is not None:
            heirs.setdefault(parent, row)
    return heirs
