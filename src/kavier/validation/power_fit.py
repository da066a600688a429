"""Power models fitted to measured points, and their errors on families of models that a fit did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import find_gpu
from kavier.errors import InputError
from kavier.metrics.power import FITTED_ON, saturating
from kavier.metrics.power_factor import MeasuredEnergy, power_factor
from kavier.units import PJ_PER_J
from kavier.validation.power_work import Work

Array = NDArray[np.float64]

NUDGE = 2.0**-20
"""Step of a numerical derivative."""

SOFT = 0.1
"""Log error from which on a point counts for less than its square."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form of power model.

    Attributes:
        formula: (parameters, work) -> watts of each point.
        start: Parameter -> where the fit begins; all are above 0.
    """

    formula: Callable[[Array, Work], Array]
    start: Mapping[str, float]


def _saturated(floor_w: Array, p: Array, w: Work) -> Array:
    watts: Array = floor_w + (w.tdp_w - floor_w) * -np.expm1(-(p[0] * w.mbu + p[1] * w.mfu))
    return watts


def _added(floor_w: Array, p: Array, w: Work) -> Array:
    watts: Array = floor_w + (p[0] * w.bytes_per_s + p[1] * w.flops_per_s) / PJ_PER_J
    return np.minimum(watts, w.tdp_w)


CANDIDATES: Mapping[str, Candidate] = {
    "saturating": Candidate(lambda p, w: _saturated(w.idle_w, p, w), {"alpha": 1.0, "beta": 8.0}),
    "saturating, free floor": Candidate(
        lambda p, w: _saturated(p[2] * w.tdp_w, p, w), {"alpha": 1.0, "beta": 8.0, "floor": 0.2}
    ),
    "additive": Candidate(
        lambda p, w: _added(p[2] * w.tdp_w, p, w), {"byte_energy": 80.0, "flop_energy": 1.0, "floor": 0.3}
    ),
    "additive, idle floor": Candidate(
        lambda p, w: _added(w.idle_w, p, w), {"byte_energy": 100.0, "flop_energy": 1.0}
    ),
    "constant": Candidate(lambda p, w: p[0] * w.tdp_w, {"share": 0.7}),
    "TDP": Candidate(lambda _, w: w.tdp_w, {}),
}
"""Saturating: alpha, beta, and the floor as a share of the TDP if it is not the loaded idle power. Additive:
pJ a byte, pJ a FLOP in 16 bits, floor. Constant: share of the TDP."""

SHIPPED = ("saturating", "additive", "constant")
"""Those a scenario can choose."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of predicted power; the measured power is 1."""

    count: int
    mape: float
    bias: float
    p95: float
    sd: float


def errors(predicted: Array, measured: Array) -> Errors:
    """Mean absolute, mean, 95th percentile of the absolute, and root mean square relative error."""
    error = predicted / measured - 1.0
    size = np.abs(error)
    return Errors(
        len(error),
        float(size.mean()),
        float(error.mean()),
        float(np.percentile(size, 95)),
        float(np.sqrt(np.mean(error**2))),
    )


@dataclass(frozen=True, slots=True)
class PowerFit:
    """A candidate fitted to all points, and its predictions of each family from fits to the others.

    Attributes:
        name: A key of `CANDIDATES`.
        parameters: Fitted to all points.
        sd: Jackknife over families.
        left_out_w: Predicted power of each point, its family left out of the fit.
        left_out: Family -> parameters fitted to the others.
    """

    name: str
    parameters: Mapping[str, float]
    sd: Mapping[str, float]
    left_out_w: Array
    left_out: Mapping[str, Array]


def fit_power(work: Work) -> list[PowerFit]:
    """Fit every candidate.

    Raises:
        InputError: Fewer than three families of models, or points on another GPU than `FITTED_ON`.
    """
    if len(set(work.families)) < 3:
        raise InputError(
            "too few points to fit a power model",
            value=f"families {', '.join(sorted(set(work.families)))}",
            expected="runs of at least 3 families of models: each in turn is left out",
        )
    reference = find_gpu(FITTED_ON).name
    for point in work.points:
        if find_gpu(point.gpu).name != reference:
            raise InputError("not the GPU of the fit", where=point.where, value=point.gpu, expected=reference)
    return [_fit_without_each(name, candidate, work) for name, candidate in CANDIDATES.items()]


def _fit_without_each(name: str, candidate: Candidate, work: Work) -> PowerFit:
    names, predicted = list(candidate.start), np.empty(len(work.points))
    fits: dict[str, Array] = {}
    for family in sorted(set(work.families.tolist())):
        left = work.families == family
        fits[family] = _fit(candidate, work.of(~left))
        predicted[left] = candidate.formula(fits[family], work.of(left))
    spread = np.std(list(fits.values()), axis=0) * np.sqrt(len(fits) - 1)
    return PowerFit(
        name,
        dict(zip(names, _fit(candidate, work).tolist(), strict=True)),
        dict(zip(names, np.atleast_1d(spread).tolist(), strict=True)),
        predicted,
        fits,
    )


def _fit(candidate: Candidate, work: Work) -> Array:
    """Parameters of the least soft loss (2 SOFT^2 (sqrt(1 + (e/SOFT)^2) - 1)) of the log errors e.

    Damped Gauss-Newton on the logarithms of the parameters.
    """
    logs: Array = np.log(np.array(list(candidate.start.values())))
    if not len(logs):
        return logs

    def log_errors(at: Array) -> Array:
        error: Array = np.log(candidate.formula(np.exp(at), work) / work.power_w)
        return error

    def loss(error: Array) -> float:
        return float(np.sum(np.hypot(1.0, error / SOFT) - 1.0))

    damping, error, steps = 1e-3, log_errors(logs), NUDGE * np.eye(len(logs))
    for _ in range(200):
        slope = np.array([(log_errors(logs + step) - error) / NUDGE for step in steps]).T
        weight = 1.0 / np.hypot(1.0, error / SOFT)
        normal, pull = (slope.T * weight) @ slope, (slope.T * weight) @ error
        damped = normal + damping * np.diag(np.diag(normal) + 1e-3)  # regular, whatever has no effect
        move = np.clip(-np.linalg.solve(damped, pull), -1.0, 1.0)
        moved = log_errors(logs + move)
        if loss(moved) <= loss(error):
            logs, error, damping = logs + move, moved, max(damping / 4.0, 1e-9)
            if np.max(np.abs(move)) < 1e-9:
                break
        else:
            damping *= 8.0
    fitted: Array = np.exp(logs)
    return fitted


def batches(work: Work) -> NDArray[np.str_]:
    """Of each point, the range that its batch lies in."""
    names = np.array(["8-16", "17-65", "66-160", "above 160"])
    return names[np.searchsorted([16.5, 65.5, 160.5], [point.batch for point in work.points])]


def regimes(work: Work) -> dict[str, NDArray[np.str_]]:
    """Way to group the points -> group of each."""
    return {
        "running requests": batches(work),
        "weights": np.array([point.dtype for point in work.points]),
        "GPUs": np.array([str(point.gpus) for point in work.points]),
        "task": np.array([point.task for point in work.points]),
        "model family": work.families,
    }


def deployments(work: Work) -> NDArray[np.str_]:
    """Of each point, the model, its GPUs and the task."""
    return np.array([f"{p.model} | {p.gpus} | {p.task}" for p in work.points])


def by_group(predicted: Array, work: Work, groups: NDArray[np.str_]) -> dict[str, Errors]:
    """Group -> errors, in the order of the points."""
    chosen = {group: groups == group for group in dict.fromkeys(groups.tolist())}
    return {group: errors(predicted[one], work.power_w[one]) for group, one in chosen.items()}


def calibrated(fit: PowerFit, work: Work) -> Errors:
    """Errors behind one calibration point a deployment: that of the middle batch, which is not counted.

    The saturating model, its parameters from fits without the family; deployments of one point are left out.
    """
    predicted, measured = [], []
    for group in dict.fromkeys(deployments(work).tolist()):
        for point_w, power_w in _others(fit, work.of(deployments(work) == group)):
            predicted.append(point_w)
            measured.append(power_w)
    return errors(np.array(predicted), np.array(measured))


def _others(fit: PowerFit, work: Work) -> Iterator[tuple[float, float]]:
    """(calibrated, measured) power of the points of a deployment but the middle one."""
    order = np.argsort([point.batch for point in work.points])
    middle = order[len(order) // 2]
    alpha, beta = fit.left_out[str(work.families[0])]
    gpu = find_gpu(work.points[0].gpu)
    # The rates given to it are utilisations.
    power = replace(saturating(gpu, gpu.flops_per_s["bf16"]), per_byte=alpha, per_flop=beta)
    factor = power_factor(
        power, [MeasuredEnergy(work.mfu[middle], work.mbu[middle], 1.0, work.power_w[middle])]
    )
    watts = power.scaled(factor).power_w(work.mfu, work.mbu)
    for index in order:
        if index != middle:
            yield float(watts[index]), float(work.power_w[index])
