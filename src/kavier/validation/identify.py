"""Least squares on a few numbers, of which those that the data do not tell are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.timing.calibration import CLIENT, DIVIDED, REPLACED

Array = NDArray[np.float64]

MODEL_ERROR = 0.02
"""Relative standard deviation that errors have at least: step times of measured kernels miss the mean TPOT of
six H100 runs by 2 % (docs/validation.md), so that no run tells a number better than that."""

STEP = 0.2
LEAST_CHANGE = 0.01
"""A number that changes by `STEP` of its default has to move some metric by this."""

MOST_DOUBT = 0.2
"""Standard error that a number may have, relative to it."""

MOST_DOUBT_CLIENT_S = 3e-3
"""The same of the client's constant, in seconds."""

MOST_FACTOR = 4.0
"""Factors are sought from 1 / MOST_FACTOR to MOST_FACTOR, other numbers up to `MOST_TIMES` their default."""

MOST_TIMES = 20.0

PRIOR_SD: Mapping[str, float] = {"calibration.kv_read_factor": 0.05}
"""Factor -> how far from 1 it lies before anything is measured, one standard deviation: fitted to a run in
which little KV is read it went to 1.4 and ruined others (timing study of six H100 runs)."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a simulation is off.

    Attributes:
        logs: log(simulated / measured) of each metric and statistic.
        weights: Of each: those of one metric of one case add up, squared, to 1.
    """

    logs: Array
    weights: Array


Simulated = Callable[[Mapping[str, float]], Errors]
"""The errors with some numbers set; the others are as the level says."""


@dataclass(frozen=True, slots=True)
class Identified:
    """What a run tells.

    Attributes:
        values: By name.
        standard_errors: Of each, in its unit.
        refused: Name of what it does not tell -> why.
    """

    values: dict[str, float]
    standard_errors: dict[str, float]
    refused: dict[str, str] = field(default_factory=dict)


def identify(errors: Simulated, defaults: Mapping[str, float]) -> Identified:
    """Fit the numbers, and refuse one after the other what the data do not tell.

    Refused is a number that does not move any metric by `LEAST_CHANGE` when it changes by `STEP`; then, of
    the fitted ones, that which is the most uncertain, as long as a standard error is above `MOST_DOUBT` of
    its number (`MOST_DOUBT_CLIENT_S` for the client's) or not below that of its prior, or a number runs out
    of bounds.

    Args:
        errors: Simulates.
        defaults: Name of each number -> what it is without a fit.

    Raises:
        InputError: Nothing is left to fit.
    """
    refused = dict(_unmoved(errors, defaults))
    while names := [name for name in defaults if name not in refused]:
        found = least_squares(errors, {name: defaults[name] for name in names})
        doubts = {name: _doubt(name, found, defaults[name]) for name in names}
        worst = max(names, key=lambda name: doubts[name][0])
        if doubts[worst][0] <= 1.0:
            return Identified(found.values, found.standard_errors, refused)
        refused[worst] = doubts[worst][1]
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise InputError(
        f"the run identifies none of these numbers: {reasons}",
        expected="a run that tells more, or other numbers in --fit",
    )


def _unmoved(errors: Simulated, defaults: Mapping[str, float]) -> list[tuple[str, str]]:
    """Numbers that no metric depends on, and why they are refused."""
    before, found = errors({}).logs, []
    for name, default in defaults.items():
        change = float(np.abs(errors({name: (1.0 + STEP) * default}).logs - before).max())
        if change < LEAST_CHANGE:
            found.append((name, f"{STEP:.0%} more of it moves no metric by more than {change:.1%}"))
    return found


def _doubt(name: str, found: Identified, default: float) -> tuple[float, str]:
    """(how uncertain, in units of what is allowed; why that is too much)."""
    value, error = found.values[name], found.standard_errors[name]
    least, most = bounds(name, default)
    if value >= 0.999 * most or (least > 0 and value <= 1.001 * least):
        return np.inf, f"it runs to {value:.3g}, which is no small correction"
    prior = PRIOR_SD.get(name, np.inf)
    if error >= prior:
        return np.inf, f"{value:.3g} +- {error:.2g}: the run tells no more than the prior (+- {prior:g})"
    allowed = MOST_DOUBT_CLIENT_S if name == CLIENT else MOST_DOUBT * value
    unit = " s" if name in (CLIENT, *REPLACED) else ""
    text = f"{value:.3g} +- {error:.2g}{unit}, and only +- {allowed:.2g} would do"
    return (error / allowed if allowed else np.inf), text


def bounds(name: str, default: float) -> tuple[float, float]:
    """Between which a number is sought."""
    return (1.0 / MOST_FACTOR, MOST_FACTOR) if name in DIVIDED else (0.0, MOST_TIMES * default)


def least_squares(
    errors: Simulated, defaults: Mapping[str, float], start: Mapping[str, float] | None = None
) -> Identified:
    """Numbers with the least weighted squares of log errors, and the squares of what priors say.

    Standard errors follow from the slopes at the solution and the scatter that is left, which is taken to be
    at least `MODEL_ERROR`; statistics of one metric count as one.

    Args:
        errors: Simulates.
        defaults: Name of each number -> the scale of it, and where to start.
        start: Where to start instead.

    Raises:
        InputError: SciPy is not there.
    """
    try:
        from scipy.optimize import least_squares as solve
    except ImportError:
        raise InputError("to fit needs SciPy", expected="pip install kavier-sim[fit]") from None

    names = list(defaults)
    scales = np.array([defaults[name] for name in names])
    begin = np.array([(start or defaults)[name] for name in names]) / scales
    limits = np.array([bounds(name, defaults[name]) for name in names]).T / scales
    priors = [n for n, name in enumerate(names) if name in PRIOR_SD]
    pull = np.array([MODEL_ERROR / PRIOR_SD[names[n]] for n in priors])

    def residuals(x: Array) -> Array:
        found = errors(dict(zip(names, (x * scales).tolist(), strict=True)))
        return np.concatenate([found.weights * found.logs, pull * (x[priors] - 1.0)])

    ends = {"ftol": PRECISION, "xtol": PRECISION, "max_nfev": MOST_STEPS}
    found = solve(residuals, begin, bounds=limits, diff_step=DIFFERENCE, **ends)
    weights = errors(dict(zip(names, (found.x * scales).tolist(), strict=True))).weights
    data = found.fun[: len(weights)]
    freedom = max(float(np.sum(weights**2)) - len(names), 1.0)
    scatter = max(float(np.sqrt(np.sum(data**2) / freedom)), MODEL_ERROR)
    spread = _root_of_inverse(_slopes(residuals, found.x, limits)) * scatter * scales
    return Identified(
        dict(zip(names, (found.x * scales).tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
    )


DIFFERENCE = 0.1
"""Relative change by which slopes are taken: when steps get longer, requests meet others, which moves metrics
by a per cent at random. Of smaller differences that makes slopes that are none."""

MOST_STEPS, PRECISION = 20, 1e-3
"""When the search ends: after so many steps, or when errors or numbers change by so little."""


LEAST_INFORMATION = 1e-10
"""Share of the largest, below which a direction among the numbers tells nothing."""


def _slopes(residuals: Callable[[Array], Array], x: Array, limits: Array) -> Array:
    """The Jacobian at x by central differences."""
    columns = []
    for number, value in enumerate(x):
        ends = []
        for sign in (-1.0, 1.0):
            moved = x.copy()
            moved[number] = np.clip(value + sign * DIFFERENCE * max(value, DIFFERENCE), *limits[:, number])
            ends.append((moved[number], residuals(moved)))
        (low, below), (high, above) = ends
        columns.append((above - below) / (high - low))
    return np.column_stack(columns)


def _root_of_inverse(jacobian: Array) -> Array:
    """Square roots of the diagonal of (J^T J)^-1; infinite where the columns are not independent."""
    information = jacobian.T @ jacobian
    if np.linalg.matrix_rank(information, tol=LEAST_INFORMATION * np.abs(information).max()) < len(
        information
    ):
        return np.full(len(information), np.inf)
    return np.sqrt(np.diag(np.linalg.inv(information)))


def names_from(text: str) -> tuple[str, ...]:
    """The numbers of a comma-separated list; `client_s` is `calibration.client_s`.

    Raises:
        InputError: No number, or one that is not fitted to latencies.
    """
    known = {name.removeprefix("calibration."): name for name in (CLIENT, *DIVIDED, *REPLACED)}
    found: Sequence[str] = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part == "power_factor":
            raise InputError("latencies do not tell power_factor", expected="--gpu-power-w W")
        if part not in known:
            raise InputError(f"unknown number {part!r}", expected=", ".join(known), near=(part, known))
    if not found:
        raise InputError("no number to fit", expected=", ".join(known))
    return tuple(dict.fromkeys(known[part] for part in found))
