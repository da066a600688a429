"""Timelines made of steps or cells alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.metrics.sums import sum_steps
from kavier.metrics.timeline import Timeline, Totals, joined
from kavier.simulation import output
from kavier.simulation.compiled import CompiledResult
from kavier.simulation.kernel.records import CELLS_A_STEP
from kavier.simulation.sampling import Sampling


def timeline(steps: pl.DataFrame, *, replicas: int, **about: Any) -> pl.DataFrame:
    """Of the steps table with energy_j."""
    sampling = Sampling(about["window_s"][0], about["interval_s"])
    return timeline_of(sum_steps(steps, replicas, sampling), **about)


def timeline_of(
    cells: list[list[NDArray[np.void]]], *, window_s: tuple[float, float], interval_s: float, idle_w: float
) -> pl.DataFrame:
    """Of cells that no sink took."""
    frames: list[pl.DataFrame] = []
    made = Timeline(
        replicas=len(cells),
        start_s=window_s[0],
        interval_s=interval_s,
        idle_w=idle_w,
        keep=frames.append,
    )
    made.close(cells, window_s[1])
    return joined(frames)


@dataclass(frozen=True)
class Watched:
    """A run whose timeline was taken while it was played."""

    result: CompiledResult
    frames: list[pl.DataFrame]
    totals: Totals

    @property
    def rows(self) -> pl.DataFrame:
        return joined(self.frames)


def watched(
    play: Callable[[Sampling], CompiledResult], sampling: Sampling, replicas: int, idle_w: float = 200.0
) -> Watched:
    """Play with a sink."""
    frames: list[pl.DataFrame] = []
    made = Timeline(
        replicas=replicas,
        start_s=sampling.start_s,
        interval_s=sampling.interval_s,
        idle_w=idle_w,
        keep=frames.append,
        intensity=lambda start_s, length_s: 100.0 + start_s + length_s,
    )
    result = play(replace(sampling, sink=made))
    made.close(result.cells, sampling.start_s if result.end_s is None else result.end_s)
    return Watched(result, frames, made.totals())


def small_pieces(size: int) -> AbstractContextManager[Any]:
    """Cells leave the engine so many at a time."""
    room = max(size, CELLS_A_STEP + 1)
    return patch.multiple(
        output, FIRST_CELLS=room, PIECE=size, LEAST_PIECE=size, FIRST_STEPS=room, MOST_STEPS=room
    )
