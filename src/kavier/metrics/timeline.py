"""From steps to a timeline: one row per replica and sample interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.metrics.energy import with_energy
from kavier.metrics.power import SaturatingPower
from kavier.simulation.compiled import CompiledResult
from kavier.simulation.kernel import CELL, CURSOR, GRID, STEP, accumulate_steps
from kavier.simulation.reference import SimulationResult
from kavier.simulation.sampling import Sampling, count_intervals

Array = NDArray[np.float64]
Cells = NDArray[Any]
"""`kernel.CELL` sums, [replica, interval]."""

COUNTED = ("prefill_tokens", "decodes", "queried_tokens", "hit_tokens", "evicted_blocks", "preempted")
"""Whole numbers: they belong to the interval in which their step starts."""

SPREAD = ("flops", "bytes", "energy_j")
"""Amounts: a step's is spread evenly over its duration."""

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
    """Sum steps into intervals, as the compiled engine does while it plays.

    Args:
        steps: The steps table with `energy_j`, the energy of all GPUs of the replica in the step.
        replicas: How many; replicas that never ran have rows too.
        window_s: Start of the first interval, and end of the last (which may be shorter).
        interval_s: Length of an interval.
        idle_w: Power of all GPUs of a replica between steps.

    Returns:
        See `timeline_of`.

    Raises:
        InputError: Too many rows.
    """
    cells = sum_steps(steps, replicas, window_s[0], interval_s)
    return timeline_of(cells, replicas=replicas, window_s=window_s, interval_s=interval_s, idle_w=idle_w)


def with_sums(
    played: SimulationResult, power: SaturatingPower, gpus: int, sampling: Sampling
) -> CompiledResult:
    """What the compiled engine would have added up, from the reference engine's steps."""
    steps = with_energy(played.steps, power, gpus)
    replicas = int(steps["replica"].max() or 0) + 1  # type: ignore[arg-type]
    ends = (steps["start_s"] + steps["duration_s"]).max()
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
    """The sums of every replica and interval, as far as there are steps."""
    ends = (steps["start_s"] + steps["duration_s"]).max()
    length_s = ends - start_s if isinstance(ends, float) else 0.0
    cells = np.zeros((replicas, count_intervals(length_s, interval_s, replicas) + 2), CELL)
    records, grid = np.zeros(len(steps), STEP), np.zeros(1, GRID)
    grid["start_s"], grid["interval_s"] = start_s, interval_s
    for name in ("start_s", "duration_s", *COUNTED, *AVERAGED, *SPREAD):
        records[name] = steps[name].to_numpy()
    replica = steps["replica"].to_numpy().astype(np.int64)
    accumulate_steps(cells, np.zeros(replicas, CURSOR), grid, replica, records)
    return cells


def timeline_of(
    cells: Cells,
    *,
    replicas: int,
    window_s: tuple[float, float],
    interval_s: float,
    idle_w: float,
) -> pl.DataFrame:
    """Lay sums out as rows; the last interval takes what lies beyond the window.

    Returns:
        Columns replica, start_s, interval_s, busy_s, steps, prefill_tokens, decode_tokens, mean running,
        waiting and used_blocks, queried_tokens, hit_tokens, evicted_blocks, preemptions, flops and bytes
        (per GPU), energy_j (of the replica, idle included).

    Raises:
        InputError: Too many rows.
    """
    start_s, end_s = window_s
    intervals = count_intervals(end_s - start_s, interval_s, replicas)
    lengths = np.full(intervals, interval_s)
    lengths[-1] = end_s - start_s - interval_s * (intervals - 1)
    length = np.tile(lengths, replicas)
    sums = {name: _fit(cells[name], replicas, intervals).reshape(-1) for name in CELL.names or ()}
    busy = np.minimum(sums["busy_s"], length)
    columns = {
        "replica": np.repeat(np.arange(replicas), intervals),
        "start_s": np.tile(start_s + interval_s * np.arange(intervals), replicas),
        "interval_s": length,
        "busy_s": busy,
        "steps": sums["steps"],
    }
    columns |= {name: sums[name] for name in COUNTED}
    columns |= {name: _ratio(sums[name], length) for name in AVERAGED}
    columns |= {name: sums[name] for name in SPREAD}
    columns["energy_j"] = columns["energy_j"] + (length - busy) * idle_w
    return pl.DataFrame(columns).rename({"decodes": "decode_tokens", "preempted": "preemptions"})


def _fit(sums: NDArray[Any], replicas: int, intervals: int) -> NDArray[Any]:
    """Cut or lengthen to this many intervals; what lies behind goes to the last, in order of time."""
    fitted = np.zeros((replicas, intervals), sums.dtype)
    kept = min(intervals, sums.shape[1])
    fitted[: len(sums), :kept] = sums[:, :kept]
    for i in range(kept, sums.shape[1]):
        fitted[: len(sums), -1] += sums[:, i]
    return fitted


def _ratio(total: Array, length: Array) -> Array:
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0)
