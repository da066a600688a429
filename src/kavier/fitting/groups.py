"""One group of numbers, fitted to the kernel that its form follows best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting.robust import Array, Fit, Form, Number, fit, spread
from kavier.fitting.tables import kernels_of
from kavier.timing.constants import read_constants
from kavier.timing.parameters import Parameters
from kavier.units import US_PER_S

POINTS_A_NUMBER = 4
"""Points that a kernel must have for each number that is fitted to it, where the form averages them."""

COVERAGE = 0.11
"""Of the most points of a kernel, that another must have to be chosen: few may be of one odd model."""

WORST = 0.3
"""Median error from which on the form says nothing of a kernel: numbers of another version serve better."""

WORST_UNIT = 5.0
"""Median error from which on times may be of another unit."""

OTHER_UNIT = ", are the times in the unit of their column: latency in milliseconds, time_us in microseconds?"


@dataclass(frozen=True, slots=True)
class Points:
    """The points of one kernel.

    Attributes:
        form: Prices them.
        measured_s: As measured.
        size: What orders them in a plot.
        regimes: Which points an error is told for, by label.
        starts: Where the search begins, for numbers that a point tells by itself.
    """

    form: Form
    measured_s: Array
    size: Array
    regimes: Mapping[str, NDArray[np.bool_]]
    starts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """One group of numbers as fitted.

    Attributes:
        name: `gemm.bf16`.
        version: Of vLLM.
        values: By name.
        units: Of the values, by name.
        source: Files, GPU, version, kernel and how many points.
        error: In words, by regime.
        size_name: What `size` is.
        size: Of each point, for plots.
        predicted_s: Of each point.
        measured_s: Likewise.
    """

    name: str
    version: str
    values: Mapping[str, float]
    units: Mapping[str, str]
    source: str
    error: str
    size_name: str = ""
    size: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    predicted_s: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    measured_s: Array = field(default_factory=lambda: np.zeros(0), repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """A group that the tables do not tell, and why."""

    name: str
    version: str
    why: str


@dataclass(frozen=True, slots=True)
class Task:
    """What to fit to which rows.

    Attributes:
        name: Of the group.
        gpu: Of the measurements.
        version: Of vLLM.
        rows: Of all kernels.
        numbers: What to fit.
        points_of: The points of one kernel, from its rows.
        size_name: What orders points in a plot.
        points_a_number: Points that a kernel must have for each number.
        most_launch_s: A kernel that seems to take longer to start is not served so.
        beside: Errors on other rows of the kernel chosen, in words, from its name and the numbers.
    """

    name: str
    gpu: GpuSpec
    version: str
    rows: pl.DataFrame
    numbers: Mapping[str, Number]
    points_of: Callable[[pl.DataFrame], Points]
    size_name: str
    points_a_number: int = POINTS_A_NUMBER
    most_launch_s: float = math.inf
    beside: Callable[[str, Mapping[str, float]], list[str]] | None = None

    @property
    def least(self) -> int:
        """Points that a kernel must have."""
        return self.points_a_number * len(self.numbers)


@dataclass(frozen=True, slots=True)
class _Tried:
    """A fit to one kernel."""

    label: str
    found: Fit
    points: Points


def fit_task(task: Task) -> Group | Refused:
    """Of the kernels with many points the one that the form follows best."""
    kernels = list(kernels_of(task.rows))
    tried = [_try(task, label, rows) for label, rows in kernels if len(rows) >= task.least]
    if not tried:
        most = max((len(rows) for _, rows in kernels), default=0)
        return _refused(task, f"{most} points of one kernel at most, {task.least} are needed")
    served = [each for each in tried if each.found.values.get("launch_s", 0.0) <= task.most_launch_s]
    if not served:
        most_us = task.most_launch_s * US_PER_S
        return _refused(task, f"every kernel seems to take over {most_us:.0f} us to start: none is served so")
    many = COVERAGE * max(len(each.points.measured_s) for each in served)
    best = min(
        (each for each in served if len(each.points.measured_s) >= many), key=lambda each: each.found.miss
    )
    if best.found.miss > WORST:
        why = f"the form does not follow {best.label}: median error {best.found.miss:.0%}"
        return _refused(task, why + (OTHER_UNIT if best.found.miss > WORST_UNIT else ""))
    return _group(task, best, [each for each in served if each is not best])


def _try(task: Task, label: str, rows: pl.DataFrame) -> _Tried:
    points = task.points_of(rows)
    numbers = {name: number.begun(points.starts.get(name)) for name, number in task.numbers.items()}
    return _Tried(label, fit(points.form, points.measured_s, numbers), points)


def _refused(task: Task, why: str) -> Refused:
    return Refused(task.name, task.version, why)


def _group(task: Task, best: _Tried, others: list[_Tried]) -> Group:
    found, points = best.found, best.points
    return Group(
        task.name,
        task.version,
        found.values,
        {name: number.unit for name, number in task.numbers.items()},
        _source(task, best, others),
        _error(task, best),
        task.size_name,
        points.size,
        (1.0 + found.errors) * points.measured_s,
        points.measured_s,
    )


def _source(task: Task, best: _Tried, others: list[_Tried]) -> str:
    """File, GPU, version, kernel, points, and the median errors of the kernels not chosen."""
    files = "+".join(task.rows["file"].unique().sort().to_list())
    count = f"{len(best.points.measured_s):,} points"
    told = f"{files}, {task.gpu.name}, vLLM {task.version}, {best.label}, {count}"
    missed = ", ".join(f"{each.label} {100 * each.found.miss:.1f} %" for each in others)
    return f"{told} (median errors of others: {missed})" if others else told


def _error(task: Task, best: _Tried) -> str:
    """By regime, then on rows that were not fitted, then what the points do not tell."""
    found = best.found
    told = [
        f"{label}: {spread(found.errors[part])}" for label, part in best.points.regimes.items() if part.any()
    ]
    if task.beside:
        told += task.beside(best.label, found.values)
    if found.at_limit:
        told.append(f"at its limit: {', '.join(found.at_limit)}")
    return "; ".join(told)


def columns(rows: pl.DataFrame, *names: str) -> list[Array]:
    """Columns as arrays of floats."""
    return [rows[name].to_numpy().astype(np.float64) for name in names]


FIXED = read_constants("kavier.timing", "constants.toml")
"""What no table tells."""


def only(group: str, values: Mapping[str, float], known: Mapping[str, float] = FIXED) -> Parameters:
    """Parameters that hold one group, and what is known."""
    return Parameters("kernels", {**known, **{f"{group}.{name}": value for name, value in values.items()}})


def between(size: Array, *limits: tuple[str, float, float]) -> dict[str, Any]:
    """Regimes by size: (label, from, to), the end left out."""
    return {label: (size >= low) & (size < high) for label, low, high in limits}
