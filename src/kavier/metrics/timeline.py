"""From steps, or the sums of the compiled engine, to a timeline: rows of intervals, replica by replica.

Intervals that are alike are one row: one in which a step begins or ends starts a row, and so does the first
of an idle time; the others belong to the row before. At an interval longer than the steps that is a row an
interval while the replica is busy; at a finer one at most three rows a step, whatever the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.metrics.energy import with_energy
from kavier.metrics.power import SaturatingPower
from kavier.native.library import address
from kavier.simulation.arena import Output
from kavier.simulation.compiled import CompiledResult
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import CELL, REPLICA, STEP
from kavier.simulation.reference import SimulationResult
from kavier.simulation.sampling import Sampling, count_intervals

Array = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
Cells = list[list[NDArray[Any]]]
"""Of each replica, pieces of `kernel.records.CELL`, in order of time."""

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

AVERAGED = ("running", "waiting", "used_blocks")
"""Levels: averaged over the row; zero between steps, when nothing runs."""

NAMES = {"decodes": "decode_tokens", "preempted": "preemptions"}
"""What columns are called that the engine calls otherwise."""


def timeline(
    steps: pl.DataFrame,
    *,
    replicas: int,
    window_s: tuple[float, float],
    interval_s: float,
    idle_w: float,
) -> pl.DataFrame:
    """Sum steps into intervals, as the compiled engine does while it plays.

    Args:
        steps: The steps table with `energy_j`, the energy of all GPUs of the replica in the step.
        replicas: How many; replicas that never ran have a row too.
        window_s: Start of the first interval, and end of the last (which may be shorter).
        interval_s: Length of an interval.
        idle_w: Power of all GPUs of a replica between steps.

    Returns:
        See `timeline_of`.

    Raises:
        InputError: Intervals too fine to number.
    """
    cells = sum_steps(steps, replicas, window_s[0], interval_s)
    return timeline_of(cells, window_s=window_s, interval_s=interval_s, idle_w=idle_w)


def with_sums(
    played: SimulationResult, power: SaturatingPower, gpus: int, replicas: int, sampling: Sampling
) -> CompiledResult:
    """What the compiled engine would have added up, from the reference engine's steps."""
    steps = with_energy(played.steps, power, gpus)
    lasting = steps.filter(pl.col("duration_s") > 0.0)  # an empty step that only reports ends no run
    ends = (lasting["start_s"] + lasting["duration_s"]).max()
    return CompiledResult(
        requests=played.requests,
        steps=steps if sampling.steps else None,
        token_gaps=played.token_gaps,
        truncated=played.truncated,
        kv_blocks=played.kv_blocks,
        cells=sum_steps(steps, replicas, sampling.start_s, sampling.interval_s),
        end_s=ends if isinstance(ends, float) else None,
        peak_used_blocks=int(steps["used_blocks"].max() or 0),  # type: ignore[arg-type]
    )


def sum_steps(steps: pl.DataFrame, replicas: int, start_s: float, interval_s: float) -> Cells:
    """The cells of every replica."""
    parts = dict(steps.partition_by("replica", as_dict=True))
    return [_sum_replica(parts.get((index,)), start_s, interval_s) for index in range(replicas)]


def _sum_replica(steps: pl.DataFrame | None, start_s: float, interval_s: float) -> list[NDArray[Any]]:
    record = np.zeros(1, REPLICA)
    output = Output(record[0], start_s, interval_s, logging=False)
    records = np.zeros(0 if steps is None else len(steps), STEP)
    for name in STEP.names or ():
        if steps is not None:
            records[name] = steps[name].to_numpy()
    place = address(record) + REPLICA.fields["timeline"][1]  # type: ignore[index]
    done = 0
    while done < len(records):
        done += LIBRARY.call(
            operations.ACCUMULATE_STEPS, place, address(records) + done * STEP.itemsize, len(records) - done
        )
        output.make_room()
    return output.cells()


def timeline_of(
    cells: Cells, *, window_s: tuple[float, float], interval_s: float, idle_w: float
) -> pl.DataFrame:
    """Lay cells out as rows; the last of a replica reaches to the end of the window.

    Returns:
        Columns replica, start_s, interval_s (of the row), busy_s, steps, prefill_tokens, decode_tokens, mean
        running, waiting and used_blocks, queried_tokens, hit_tokens, evicted_blocks, preemptions, flops and
        bytes (per GPU), energy_j (of the replica, idle included).

    Raises:
        InputError: Intervals too fine to number.
    """
    start_s, end_s = window_s
    intervals = count_intervals(end_s - start_s, interval_s)
    columns: list[Columns] = []
    frames: list[pl.DataFrame] = []
    for index, pieces in enumerate(cells):
        whole = _within(pieces, intervals)
        ends = [piece["interval"][0] for piece in whole[1:]] + [intervals]
        for piece, end in zip(whole, ends, strict=True):
            columns.append(_rows(index, piece, int(end), intervals, window_s, interval_s, idle_w))
            if len(columns) == PIECES_A_FRAME or len(piece) > MANY_ROWS:
                frames.append(_frame(columns))
                columns = []
    frames += [_frame(columns)] if columns else []
    return pl.concat(frames, rechunk=False).rename(NAMES)


PIECES_A_FRAME, MANY_ROWS = 1000, 10_000
"""A frame costs half a millisecond, too much for each of many replicas; a large one is not copied."""


def _frame(columns: list[Columns]) -> pl.DataFrame:
    """Pieces of columns, one after the other."""
    if len(columns) == 1:
        return pl.DataFrame(columns[0])
    return pl.DataFrame({name: np.concatenate([piece[name] for piece in columns]) for name in columns[0]})


def _within(pieces: Sequence[NDArray[Any]], intervals: int) -> list[NDArray[Any]]:
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


def _rows(
    replica: int,
    piece: NDArray[Any],
    end: int,
    intervals: int,
    window_s: tuple[float, float],
    interval_s: float,
    idle_w: float,
) -> Columns:
    """Columns of one piece, which reaches to interval `end`."""
    first = np.ascontiguousarray(piece["interval"])
    ends_s = interval_s * np.append(first[1:], end)
    if end == intervals:
        ends_s[-1] = window_s[1] - window_s[0]
    starts_s = interval_s * first
    length = ends_s - starts_s
    sums = {name: np.ascontiguousarray(piece[name]) for name in CELL.names or ()}
    busy = np.minimum(sums["busy_s"], length)
    sums["energy_j"] = sums["energy_j"] + (length - busy) * idle_w
    return {
        "replica": np.full(len(first), replica, np.int32),
        "start_s": window_s[0] + starts_s,
        "interval_s": length,
        "busy_s": busy,
        **{name: sums[name] for name in COUNTED},
        **{name: _ratio(sums[name], length) for name in AVERAGED},
        **{name: sums[name] for name in SPREAD},
    }


def _ratio(total: Array, length: Array) -> Array:
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0)


def means_over(timeline: pl.DataFrame, names: Sequence[str], pieces: int) -> dict[str, Array]:
    """Fleet totals, averaged over equal pieces of the window.

    Args:
        timeline: Rows of `timeline_of`.
        names: Levels, such as "running", or amounts, such as "energy_j", which become rates per second.
        pieces: How many.
    """
    first, last = timeline["start_s"].min(), (timeline["start_s"] + timeline["interval_s"]).max()
    assert isinstance(first, float)
    assert isinstance(last, float)
    edges = np.linspace(first, last, pieces + 1)
    lengths = np.diff(edges)
    totals = {name: np.zeros(pieces) for name in names}
    ends = np.flatnonzero(np.diff(timeline["replica"].to_numpy(), append=-1)) + 1
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        rows = timeline.slice(start, end - start)
        starts, length = rows["start_s"].to_numpy(), rows["interval_s"].to_numpy()
        at = np.append(starts, starts[-1] + length[-1])
        for name in names:
            amount = rows[name].to_numpy() * (1.0 if name in SPREAD else length)
            totals[name] += np.diff(np.interp(edges, at, np.append(0.0, np.cumsum(amount))))
    return {name: _ratio(total, lengths) for name, total in totals.items()}
