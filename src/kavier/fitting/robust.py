"""Least squares on the logarithm of times, in which a few wrong points count for little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.errors import InputError

Array = NDArray[np.float64]

SCALE = 0.1
"""Relative error from which on a point pulls in proportion to its error, not to its square (soft L1)."""


@dataclass(frozen=True, slots=True)
class Number:
    """One number to be fitted: where to start, and the least and most it may be."""

    start: float
    least: float
    most: float
    unit: str = "1"


@dataclass(frozen=True, slots=True)
class Fit:
    """What came out.

    Attributes:
        values: By name.
        errors: predicted / measured - 1 of each point.
    """

    values: dict[str, float]
    errors: Array


def fit(
    form: Callable[[Mapping[str, float]], Any],
    measured_s: Array,
    numbers: Mapping[str, Number],
    weights: Array | float = 1.0,
) -> Fit:
    """Numbers for which `form` comes closest to the measured times.

    Args:
        form: Times of all points, from values by name.
        measured_s: Times of all points.
        numbers: What to fit. Each is searched for by its logarithm.
        weights: Of each point, by which its error is multiplied.

    Raises:
        InputError: Fewer than two points a number.
    """
    from scipy.optimize import least_squares

    if len(measured_s) < 2 * len(numbers):
        raise InputError(
            f"{len(measured_s)} points for {len(numbers)} numbers", expected=f"at least {2 * len(numbers)}"
        )
    names = list(numbers)

    def errors(logs: Array) -> Array:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        return np.asarray(np.log(form(values) / measured_s), np.float64)

    bounds = [np.log([getattr(numbers[n], which) for n in names]) for which in ("least", "most")]
    start = np.log([numbers[n].start for n in names])
    found = least_squares(
        lambda logs: weights * errors(logs), start, bounds=bounds, loss="soft_l1", f_scale=SCALE, max_nfev=400
    )
    values = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    return Fit(values, np.expm1(errors(found.x)))


def spread(errors: Array) -> str:
    """Median and 90th percentile of absolute errors: "5.4 % (p90 12 %)"."""
    size = 100.0 * np.abs(errors)
    return f"{np.median(size):.1f} % (p90 {np.percentile(size, 90):.0f} %)"
