"""How a run went over time, as coarsely as a picture shows it, however long it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BINS = 2048
"""They double in length when the run outgrows them: then half of them are in use."""


class Course:
    """Sums over bins of time, of all replicas.

    Args:
        names: What is summed: integrals over time of levels, or amounts.
        bin_s: Length of a bin at first.
    """

    def __init__(self, names: tuple[str, ...], bin_s: float) -> None:
        self._sums = {name: np.zeros(BINS) for name in names}
        self._bin_s, self._end_s = bin_s, 0.0

    def add(self, starts_s: Array, ends_s: Array, amounts: Mapping[str, NDArray[Any]]) -> None:
        """Add amounts that are spread evenly over these times, counted from the start of the run."""
        self._end_s = max(self._end_s, float(ends_s.max()))
        while self._bin_s * BINS < self._end_s:
            self._bin_s *= 2
            for name, sums in self._sums.items():
                self._sums[name] = np.append(sums[0::2] + sums[1::2], np.zeros(BINS // 2))
        first, last = (np.minimum((t / self._bin_s).astype(np.int64), BINS - 1) for t in (starts_s, ends_s))
        long = np.flatnonzero(first != last)  # all others lie in one bin
        shares = _shares(starts_s[long], ends_s[long], first[long], last[long], self._bin_s)
        heads = np.append(0, np.flatnonzero(np.diff(first)) + 1)  # of rows in a bin that follow one another
        for name, sums in self._sums.items():
            amount = amounts[name]
            sums[:] += np.bincount(first[heads], np.add.reduceat(amount, heads), BINS)
            _spread(sums, first[long], last[long], amount[long], shares)

    def means(self, pieces: int) -> dict[str, Array]:
        """Means over equal pieces of the run: levels, or amounts per second."""
        edges = np.linspace(0.0, self._end_s, pieces + 1)
        bins = np.minimum(self._bin_s * np.arange(BINS + 1), self._end_s)
        length = max(self._end_s / pieces, np.finfo(float).tiny)
        return {
            name: np.diff(np.interp(edges, bins, np.append(0.0, np.cumsum(sums)))) / length
            for name, sums in self._sums.items()
        }


def _spread(
    sums: Array,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    amount: Array,
    shares: tuple[Array, Array, Array],
) -> None:
    """Move amounts that lie in their first bin to all bins where they belong."""
    begun, inner, ended = (share * amount for share in shares)
    sums += np.bincount(first, begun - amount, BINS) + np.bincount(last, ended, BINS)
    changes = np.bincount(first + 1, inner, BINS + 1) - np.bincount(last, inner, BINS + 1)
    sums += np.cumsum(changes)[:BINS]


def _shares(
    starts_s: Array, ends_s: Array, first: NDArray[np.int64], last: NDArray[np.int64], bin_s: float
) -> tuple[Array, Array, Array]:
    """Of spans over several bins: what part lies in the first bin, in each inner one, and in the last."""
    length = ends_s - starts_s
    return ((first + 1) * bin_s - starts_s) / length, bin_s / length, (ends_s - last * bin_s) / length
