"""What the engines write down: one row a step, and every gap between tokens."""

from __future__ import annotations

from array import array
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.simulation.kernel.records import GAP_BINS, GAP_LOW, GAP_SHIFT
from kavier.simulation.request import STATUSES, Request
from kavier.simulation.scheduler import Step, StepScheduler
from kavier.simulation.shares import Sharing
from kavier.timing.step import StepCost

STEP_SCHEMA: dict[str, pl.DataType] = {
    "replica": pl.Int32(),
    "scheduled_s": pl.Float64(),
    "start_s": pl.Float64(),
    "duration_s": pl.Float64(),
    "prefills": pl.Int64(),
    "prefill_tokens": pl.Int64(),
    "prefill_pairs": pl.Int64(),
    "prefill_context_tokens": pl.Int64(),
    "decodes": pl.Int64(),
    "decode_context_tokens": pl.Int64(),
    "sampled": pl.Int64(),
    "running": pl.Int64(),
    "waiting": pl.Int64(),
    "used_blocks": pl.Int64(),
    "evicted_blocks": pl.Int64(),
    "preempted": pl.Int64(),
    "queried_tokens": pl.Int64(),
    "hit_tokens": pl.Int64(),
    "flops": pl.Float64(),
    "bytes": pl.Float64(),
}
"""Columns of the steps table. running, waiting, used_blocks: after scheduling. flops, bytes: per GPU.

A step is decided at scheduled_s and runs from start_s on, which is later only with asynchronous scheduling.
"""


class Recorder(Protocol):
    """Is told of every step as it begins and ends."""

    def begin(
        self,
        replica: int,
        scheduled_s: float,
        start_s: float,
        cost: StepCost,
        step: Step,
        scheduler: StepScheduler,
    ) -> None:
        """A step was scheduled and will start."""
        ...

    def tokens(self, step: Step, end_s: float) -> None:
        """The step ends; its tokens are about to be appended."""
        ...


class TableRecorder:
    """Keeps everything as flat arrays of doubles (integers up to 2^53 are exact in them).

    Args:
        sharing: Shares out energies; None leaves those of requests at zero.
    """

    def __init__(self, sharing: Sharing | None = None) -> None:
        self._sharing = sharing
        self._steps = array("d")
        self._gaps = array("d")
        self._evictions: dict[int, int] = {}

    def begin(  # noqa: D102 - Recorder says it
        self,
        replica: int,
        scheduled_s: float,
        start_s: float,
        cost: StepCost,
        step: Step,
        scheduler: StepScheduler,
    ) -> None:
        work, evictions = step.work, scheduler.num_evictions
        self._steps.extend(
            (
                replica,
                scheduled_s,
                start_s,
                cost.time_s,
                work.prefills,
                work.prefill_tokens,
                work.prefill_pairs,
                work.prefill_context_tokens,
                work.decodes,
                work.decode_context_tokens,
                work.sampled,
                scheduler.num_running,
                scheduler.num_waiting,
                scheduler.num_used_blocks,
                evictions - self._evictions.get(replica, 0),
                len(step.preempted),
                step.queried_tokens,
                step.hit_tokens,
                cost.flops,
                cost.bytes,
            )
        )
        self._evictions[replica] = evictions
        if self._sharing is not None and step.scheduled:
            self._sharing.add(step, cost)

    def tokens(self, step: Step, end_s: float) -> None:
        """Collect inter-token gaps; most of a batch shares one, so they are kept as (gap, count)."""
        previous: dict[float, int] = {}
        for request, _, _, samples in step.scheduled:
            last_s = request.last_token_s
            if last_s is not None and samples:
                previous[last_s] = previous.get(last_s, 0) + 1
        for last_s, count in previous.items():
            self._gaps.extend((end_s - last_s, count))

    def steps(self) -> pl.DataFrame:
        """The steps table, in order of (start, replica)."""
        rows = np.frombuffer(self._steps, dtype=np.float64).reshape(-1, len(STEP_SCHEMA))
        columns = {name: rows[:, i] for i, name in enumerate(STEP_SCHEMA)}
        return (
            pl.DataFrame(columns).cast(pl.Schema(STEP_SCHEMA)).sort("start_s", "replica", maintain_order=True)
        )

    def token_gaps(self) -> pl.DataFrame:
        """Inter-token gaps, see `gaps_table`."""
        gaps = np.frombuffer(self._gaps, dtype=np.float64).reshape(-1, 2)
        return merge_gaps(gaps[:, 0], gaps[:, 1].astype(np.int64))


def merge_gaps(gaps_s: NDArray[np.float64], counts: NDArray[np.int64]) -> pl.DataFrame:
    """Count gaps by bins, as the compiled engine does: those that agree in 12 bits of mantissa are one."""
    bins = np.clip((np.ascontiguousarray(gaps_s).view(np.int64) >> GAP_SHIFT) - GAP_LOW, 0, GAP_BINS - 1)
    order = np.argsort(bins, kind="stable")
    first = np.flatnonzero(np.diff(bins[order], prepend=-1))
    if not len(first):
        return gaps_table(gaps_s, counts)
    least = np.minimum.reduceat(gaps_s[order], first)
    return gaps_table(least, np.add.reduceat(counts[order], first))


def gaps_table(gaps_s: NDArray[np.float64], counts: NDArray[np.int64]) -> pl.DataFrame:
    """gap_s, count: gaps of tokens, ascending; those that differ by less than 2^-12 are one, the least."""
    return pl.DataFrame({"gap_s": np.ascontiguousarray(gaps_s), "count": np.ascontiguousarray(counts)})


def requests_table(requests: list[Request]) -> pl.DataFrame:
    """One row a request, in the order of the workload; times are null for what never happened."""
    return pl.DataFrame(
        {
            "request": [r.row for r in requests],
            "arrival_s": [r.arrival_s for r in requests],
            "replica": [r.replica for r in requests],
            "first_scheduled_s": [r.first_scheduled_s for r in requests],
            "first_token_s": [r.first_token_s for r in requests],
            "finish_s": [r.last_token_s if r.status == "finished" else None for r in requests],
            "prompt_tokens": [r.num_prompt_tokens for r in requests],
            "output_tokens": [r.num_output_tokens for r in requests],
            "cached_tokens": [r.num_cached_tokens for r in requests],
            "preemptions": [r.num_preemptions for r in requests],
            "energy_j": [r.energy_j for r in requests],
            "status": [str(r.status) for r in requests],
        },
        schema={
            "request": pl.Int64,
            "arrival_s": pl.Float64,
            "replica": pl.Int32,
            "first_scheduled_s": pl.Float64,
            "first_token_s": pl.Float64,
            "finish_s": pl.Float64,
            "prompt_tokens": pl.Int64,
            "output_tokens": pl.Int64,
            "cached_tokens": pl.Int64,
            "preemptions": pl.Int64,
            "energy_j": pl.Float64,
            "status": STATUSES,
        },
    )
