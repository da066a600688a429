"""From steps to a timeline: one row per replica and sample interval."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.errors import InputError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNTED = ("prefill_tokens", "decodes", "queried_tokens", "hit_tokens", "evicted_blocks", "preempted")
"""Whole numbers: they belong to the interval in which their step starts."""

SPREAD = ("flops", "bytes", "energy_j")
"""Amounts: a step's is spread evenly over its duration."""

ROUNDING = 1e-9
"""Of an interval: a window longer by less is rounding, not one more interval."""

MAX_ROWS = 20_000_000
"""A longer timeline is taken for a slip: a stray time in the trace, or a tiny interval."""

AVERAGED = ("running", "waiting", "used_blocks")
"""Levels: averaged over the interval; zero between steps, when nothing runs."""


def timeline(
    steps: pl.DataFrame,
    *,
    replicas: int,
    window_s: tuple[float, float],
    interval_s: float,
    idle_w: float,
) -> pl.DataFrame:
    """Sum steps into intervals.

    Args:
        steps: The steps table with `energy_j`, the energy of all GPUs of the replica in the step.
        replicas: How many; replicas that never ran have rows too.
        window_s: Start of the first interval, and end of the last (which may be shorter).
        interval_s: Length of an interval.
        idle_w: Power of all GPUs of a replica between steps.

    Returns:
        Columns replica, start_s, interval_s, busy_s, steps, prefill_tokens, decode_tokens, mean running,
        waiting and used_blocks, queried_tokens, hit_tokens, evicted_blocks, preemptions, flops and bytes
        (per GPU), energy_j (of the replica, idle included).

    Raises:
        InputError: More than MAX_ROWS rows.
    """
    start_s, end_s = window_s
    bins = _count_bins(end_s - start_s, interval_s, replicas)
    slot = steps["replica"].to_numpy().astype(np.int64) * bins
    grid = _Grid(steps, slot, bins, replicas, start_s, interval_s)
    lengths = np.full(bins, interval_s)
    lengths[-1] = end_s - start_s - interval_s * (bins - 1)
    length = np.tile(lengths, replicas)
    busy = np.minimum(grid.over_time(np.ones(len(steps))), length)
    columns: dict[str, Array | Ints] = {
        "replica": np.repeat(np.arange(replicas), bins),
        "start_s": np.tile(start_s + interval_s * np.arange(bins), replicas),
        "interval_s": length,
        "busy_s": busy,
        "steps": grid.at_start(np.ones(len(steps))),
    }
    columns |= {name: grid.at_start(steps[name].to_numpy()) for name in COUNTED}
    with np.errstate(invalid="ignore"):
        columns |= {name: _ratio(grid.over_time(steps[name].to_numpy()), length) for name in AVERAGED}
    columns |= {name: grid.spread(steps[name].to_numpy()) for name in SPREAD}
    columns["energy_j"] = columns["energy_j"] + (length - busy) * idle_w
    return pl.DataFrame(columns).rename({"decodes": "decode_tokens", "preempted": "preemptions"})


def _count_bins(length_s: float, interval_s: float, replicas: int) -> int:
    bins = max(1.0, np.ceil(length_s / interval_s - ROUNDING))
    if bins * replicas > MAX_ROWS:
        raise InputError(
            f"a timeline of {bins * replicas:.3g} rows: the run lasts {length_s:,.0f} s",
            where="output.sample_interval_s",
            value=interval_s,
            expected=f"at least {length_s * replicas / MAX_ROWS:.3g}, or a trace without stray times",
        )
    return int(bins)


class _Grid:
    """Where each step lies in the flat array of (replica, interval) cells."""

    def __init__(
        self, steps: pl.DataFrame, slot: Ints, bins: int, replicas: int, start_s: float, interval_s: float
    ) -> None:
        self._cells = bins * replicas
        begin = (steps["start_s"].to_numpy() - start_s) / interval_s
        end = begin + steps["duration_s"].to_numpy() / interval_s
        first = np.clip(np.floor(begin).astype(np.int64), 0, bins - 1)
        last = np.clip(np.ceil(end).astype(np.int64) - 1, first, bins - 1)
        self._first = slot + first
        self._duration_s = steps["duration_s"].to_numpy()
        # One piece per (step, interval it touches).
        pieces = last - first + 1
        self._step = np.repeat(np.arange(len(steps)), pieces)
        offset = np.arange(len(self._step)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        piece_bin = first[self._step] + offset
        self._cell = slot[self._step] + piece_bin
        # The last interval also takes what lies beyond the window.
        upper = np.where(piece_bin == bins - 1, np.inf, piece_bin + 1)
        inside = np.minimum(end[self._step], upper) - np.maximum(begin[self._step], piece_bin)
        whole = np.bincount(self._step, weights=inside, minlength=len(steps))
        self._share = inside / whole[self._step]

    def at_start(self, values: Array) -> Ints:
        """Whole numbers, in the interval in which the step starts."""
        sums = np.bincount(self._first, weights=values, minlength=self._cells)
        return np.rint(sums).astype(np.int64)

    def spread(self, amounts: Array) -> Array:
        """Amounts, spread over the step's duration."""
        pieces = amounts[self._step] * self._share
        return np.bincount(self._cell, weights=pieces, minlength=self._cells).astype(np.float64)

    def over_time(self, levels: Array) -> Array:
        """Levels times the seconds they lasted."""
        return self.spread(levels * self._duration_s)


def _ratio(total: Array, length: Array) -> Array:
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0)
