"""From cells to a timeline: rows of intervals of every replica, their totals, and the course of the fleet.

Intervals that are alike are one row: one in which a step begins or ends starts a row, and so does the first
of an idle time; the others belong to the row before. At an interval longer than the steps that is a row an
interval while the replica is busy; at a finer one at most three rows a step, whatever the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.metrics.course import Course
from kavier.simulation.kernel.records import CELL
from kavier.simulation.sampling import count_intervals

Array = NDArray[np.float64]
Cells = NDArray[Any]
"""Of `kernel.records.CELL`, in order of time."""

Keep = Callable[[pl.DataFrame], None]
"""Is given the rows of a timeline, piece by piece."""

COUNTED = (
    "steps",
    "prefill_tokens",
    "decodes",
    "queried_tokens",
    "hit_tokens",
    "evicted_blocks",
    "preempted",
)
"""Whole numbers: they belong to the interval in which their step begins."""

SPREAD = ("flops", "bytes", "energy_j")
"""Amounts: a step's is spread evenly over its duration."""

NAMES = {"decodes": "decode_tokens", "preempted": "preemptions"}
"""What columns are called that the engine calls otherwise."""

AVERAGED = ("running", "waiting", "used_blocks")
"""Levels: averaged over the row; zero between steps, when nothing runs."""

SCHEMA: dict[str, pl.DataType] = {
    "replica": pl.Int32(),
    "start_s": pl.Float64(),
    "interval_s": pl.Float64(),
    "busy_s": pl.Float64(),
    "steps": pl.Int64(),
    "prefill_tokens": pl.Int64(),
    "decode_tokens": pl.Int64(),
    "queried_tokens": pl.Int64(),
    "hit_tokens": pl.Int64(),
    "evicted_blocks": pl.Int64(),
    "preemptions": pl.Int64(),
    "running": pl.Float32(),
    "waiting": pl.Float32(),
    "used_blocks": pl.Float32(),
    "flops": pl.Float32(),
    "bytes": pl.Float32(),
    "energy_j": pl.Float64(),
}
"""Columns of a timeline. interval_s: length of the row. running, waiting, used_blocks: means over it. flops,
bytes: per GPU. energy_j: of the replica, idle time included.

Seven digits are more than the models of the columns of 32 bits know, and halve the file.
"""

SUMMED = (
    "queried_tokens", "hit_tokens", "evicted_blocks", "busy_s", "running", "used_blocks", *SPREAD, "idle_j",
    "carbon",
)  # fmt: skip

COURSE = (*AVERAGED, "energy_j")


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rows of a timeline.

    Attributes:
        queried_tokens: Prompt tokens that were looked up in prefix caches.
        hit_tokens: Those found there.
        evicted_blocks: Cached blocks that were given to others.
        busy_s: Time in steps, of all replicas.
        running_s: Running requests, times time.
        block_s: KV blocks in use, times time.
        flops: Of one GPU of each replica.
        bytes: Likewise, moved.
        energy_j: Of all GPUs, idle time included.
        idle_j: That of idle time.
        gco2_per_kwh: Mean carbon intensity, weighted by energy; None without either.
    """

    queried_tokens: int
    hit_tokens: int
    evicted_blocks: int
    busy_s: float
    running_s: float
    block_s: float
    flops: float
    bytes: float
    energy_j: float
    idle_j: float
    gco2_per_kwh: float | None


class _Piece(NamedTuple):
    """Cells of a replica and where the last of them ends, in seconds from the start of the run."""

    replica: int
    cells: Cells
    end_s: float


class _Rows(NamedTuple):
    """Rows of some pieces.

    Attributes:
        frame: As they are given on.
        times_s: Starts and ends, from the start of the run.
        course: Of each of `COURSE`, its integral over each row.
        replicas: Whose each piece is.
        sums: Of each piece, its sums of `SUMMED`.
    """

    frame: pl.DataFrame
    times_s: tuple[Array, Array]
    course: dict[str, Array]
    replicas: list[int]
    sums: Array


class Timeline:
    """Takes cells, and gives on rows of `SCHEMA`.

    It is a `simulation.output.Sink` for what is final while the engine plays; `close` takes the rest.

    Args:
        replicas: How many.
        start_s: Start of the first interval.
        interval_s: Length of an interval.
        idle_w: Power of all GPUs of a replica between steps.
        keep: Is given the rows. Those of a replica come in order of time.
        intensity: Carbon intensity (gCO2e/kWh) of intervals, from their starts and lengths.
        origin_s: Where the clock of the rows stands at zero.
    """

    def __init__(
        self,
        *,
        replicas: int,
        start_s: float,
        interval_s: float,
        idle_w: float,
        keep: Keep,
        intensity: Callable[[Array, Array], Array] | None = None,
        origin_s: float = 0.0,
    ) -> None:
        self._start_s, self._interval_s, self._origin_s = start_s, interval_s, origin_s
        self._idle_w, self._keep, self._intensity = idle_w, keep, intensity
        self._sums = np.zeros((replicas, len(SUMMED)))
        self.course = Course(COURSE, interval_s)

    def __call__(self, replica: int, cells: Cells, end: int) -> Callable[[], None]:
        """Read a piece; what is returned gives its rows on.

        Raises:
            InputError: What `intensity` raises.
        """
        return partial(self._take, self._rows([_Piece(replica, cells, self._interval_s * end)]))

    def close(self, cells: Sequence[Sequence[Cells]], end_s: float) -> None:
        """Take what is left of every replica, up to the end of the run.

        Raises:
            InputError: Intervals too fine to number, and what `intensity` raises.
        """
        length_s = end_s - self._start_s
        for pieces in _batches(self._last_pieces(cells, length_s)):
            self._take(self._rows(pieces))

    def totals(self) -> Totals:
        """Sums over all rows."""
        sums = dict(zip(SUMMED, self._sums.sum(axis=0).tolist(), strict=True))
        energy_j = sums["energy_j"]
        known = self._intensity is not None and energy_j > 0
        return Totals(
            queried_tokens=int(sums["queried_tokens"]),
            hit_tokens=int(sums["hit_tokens"]),
            evicted_blocks=int(sums["evicted_blocks"]),
            busy_s=sums["busy_s"],
            running_s=sums["running"],
            block_s=sums["used_blocks"],
            flops=sums["flops"],
            bytes=sums["bytes"],
            energy_j=energy_j,
            idle_j=sums["idle_j"],
            gco2_per_kwh=sums["carbon"] / energy_j if known else None,
        )

    def _last_pieces(self, cells: Sequence[Sequence[Cells]], length_s: float) -> Iterator[_Piece]:
        intervals = count_intervals(length_s, self._interval_s)
        for replica, pieces in enumerate(cells):
            whole = _within(pieces, intervals)
            ends_s = [self._interval_s * int(piece["interval"][0]) for piece in whole[1:]] + [length_s]
            yield from (_Piece(replica, piece, end) for piece, end in zip(whole, ends_s, strict=True))

    def _rows(self, pieces: Sequence[_Piece]) -> _Rows:
        counts = np.array([len(piece.cells) for piece in pieces])
        behind = np.cumsum(counts)
        sums = _by_name([piece.cells for piece in pieces])
        starts_s = self._interval_s * sums["interval"]
        ends_s = np.append(starts_s[1:], 0.0)
        ends_s[behind - 1] = [piece.end_s for piece in pieces]
        length = ends_s - starts_s
        clock_s = self._start_s + starts_s + self._origin_s
        sums["busy_s"] = np.minimum(sums["busy_s"], length)
        sums["idle_j"] = (length - sums["busy_s"]) * self._idle_w
        sums["energy_j"] = sums["energy_j"] + sums["idle_j"]
        sums["carbon"] = self._carbon(sums["energy_j"], clock_s, length)
        replicas = [piece.replica for piece in pieces]
        by_piece = [np.add.reduceat(sums[name], behind - counts) for name in SUMMED]
        owners = np.repeat(np.array(replicas, np.int32), counts)
        return _Rows(
            frame=_frame({"replica": owners, "start_s": clock_s, "interval_s": length}, sums),
            times_s=(starts_s, ends_s),
            course={name: sums[name] for name in COURSE},
            replicas=replicas,
            sums=np.array(by_piece, np.float64).T,
        )

    def _carbon(self, energy_j: Array, clock_s: Array, length: Array) -> Array:
        """Energy times intensity."""
        if self._intensity is None:
            return np.zeros_like(energy_j)
        return energy_j * self._intensity(clock_s, length)

    def _take(self, rows: _Rows) -> None:
        np.add.at(self._sums, rows.replicas, rows.sums)
        self.course.add(*rows.times_s, rows.course)
        self._keep(rows.frame)


def _by_name(pieces: Sequence[Cells]) -> dict[str, NDArray[Any]]:
    """Each field as an array of its own: all in one turn, which is four times as fast as one by one."""
    flat = [piece.view(np.int64).reshape(len(piece), -1) for piece in pieces]
    turned = np.array((flat[0] if len(flat) == 1 else np.concatenate(flat)).T, order="C")
    return {name: row.view(CELL[name]) for name, row in zip(CELL.names or (), turned, strict=True)}


def _frame(columns: dict[str, NDArray[Any]], sums: dict[str, NDArray[Any]]) -> pl.DataFrame:
    """Levels out of their integrals, in the order and the width of the table."""
    lasting = np.maximum(columns["interval_s"], np.finfo(np.float64).tiny)  # without length no integral
    columns |= {name: sums[name] for name in ("busy_s", *COUNTED)}
    columns |= {name: (sums[name] / lasting).astype(np.float32) for name in AVERAGED}
    columns |= {name: sums[name].astype(np.float32) for name in ("flops", "bytes")}
    return pl.DataFrame({**columns, "energy_j": sums["energy_j"]}).rename(NAMES)


def joined(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The timeline of all that were given on: replica by replica, in order of time."""
    rows = pl.concat([pl.DataFrame(schema=SCHEMA), *frames], rechunk=False)
    return rows if rows["replica"].is_sorted() else rows.sort("replica", maintain_order=True)


PIECES_AT_ONCE, ROWS_AT_ONCE = 1000, 1 << 15
"""A frame costs half a millisecond, too much for each of many replicas."""


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    rows = 0
    for piece in pieces:
        if len(batch) == PIECES_AT_ONCE or (batch and rows + len(piece.cells) > ROWS_AT_ONCE):
            yield batch
            batch, rows = [], 0
        batch.append(piece)
        rows += len(piece.cells)
    yield batch


def _within(pieces: Sequence[Cells], intervals: int) -> list[Cells]:
    """Pieces with at least one cell each.

    Cells that begin behind the window (rounding, or the very end) are added to its last one.
    """
    kept = [piece for piece in pieces if len(piece)] or [np.zeros(1, CELL)]
    beyond = []
    while len(kept) > 1 and kept[-1]["interval"][0] >= intervals:
        beyond.append(kept.pop())
    inside = max(int(np.searchsorted(kept[-1]["interval"], intervals)), 1)
    beyond.append(kept[-1][inside:])
    kept[-1] = kept[-1][:inside]
    if any(piece["steps"].any() for piece in beyond):
        kept[-1] = kept[-1].copy()
        for name in CELL.names or ():
            if name != "interval":
                kept[-1][name][-1] += sum(piece[name].sum() for piece in reversed(beyond))
    return kept
