"""Least squares on the logarithm of times, in which a few wrong points count for little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.errors import InputError

Array = NDArray[np.float64]

Form = Callable[[Mapping[str, float]], Any]
"""Seconds of all points, from numbers by name."""

SCALE = 0.1
"""Relative error from which on a point pulls in proportion to its error, not to its square (soft L1)."""

AT_LIMIT = 1e-3
"""Relative distance from its limit within which a number is at it."""


@dataclass(frozen=True, slots=True)
class Number:
    """One number to be fitted: where to start, and the least and most it may be."""

    start: float
    least: float
    most: float
    unit: str = "1"

    def begun(self, start: float | None) -> Number:
        """The same, but searched from `start`, or next to it if it is no place between the limits."""
        if start is None:
            return self
        inside = min(max(start, self.least * (1 + 10 * AT_LIMIT)), self.most * (1 - 10 * AT_LIMIT))
        return replace(self, start=inside)


@dataclass(frozen=True, slots=True)
class Fit:
    """What came out.

    Attributes:
        values: By name.
        errors: predicted / measured - 1 of each point.
        at_limit: Numbers that went as far as they may: the points do not tell them.
    """

    values: dict[str, float]
    errors: Array
    at_limit: tuple[str, ...] = ()

    @property
    def miss(self) -> float:
        """Median of absolute errors."""
        return float(np.median(np.abs(self.errors)))


def need_scipy() -> None:
    """Tell early that fits need SciPy.

    Raises:
        InputError: It is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise InputError(
            "fits need SciPy, which is not installed", expected='pip install "kavier-sim[fit]"'
        ) from None


def fit(form: Form, measured_s: Array, numbers: Mapping[str, Number]) -> Fit:
    """Numbers for which `form` comes closest to the measured times, each searched for by its logarithm.

    Args:
        form: Seconds of all points, from numbers by name.
        measured_s: Measured seconds of all points.
        numbers: What to fit.

    Raises:
        InputError: Fewer points than numbers.
    """
    from scipy.optimize import least_squares

    if len(measured_s) < len(numbers):
        raise InputError(
            f"{len(measured_s)} points for {len(numbers)} numbers", expected=f"at least {len(numbers)}"
        )
    names = list(numbers)
    least, most, start = (
        np.log([getattr(numbers[name], which) for name in names]) for which in ("least", "most", "start")
    )

    def errors(logs: Array) -> Array:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        return np.asarray(np.log(form(values) / measured_s), np.float64)

    # Tolerances far below the errors, so that where the search began is not seen in what it finds.
    settings = {"loss": "soft_l1", "f_scale": SCALE, "max_nfev": 400, "xtol": 1e-10, "ftol": 1e-10}
    found = least_squares(errors, start, bounds=(least, most), **settings).x
    values = dict(zip(names, np.exp(found).tolist(), strict=True))
    at_limit = (found < least + AT_LIMIT) | (found > most - AT_LIMIT)
    return Fit(
        values, np.expm1(errors(found)), tuple(n for n, far in zip(names, at_limit, strict=True) if far)
    )


def spread(errors: Array) -> str:
    """Median and 90th percentile of absolute errors: "5.4 % (p90 12 %)"."""
    size = 100.0 * np.abs(errors)
    return f"{np.median(size):.1f} % (p90 {np.percentile(size, 90):.0f} %)"


def bias(errors: Array) -> str:
    """Median of errors with its sign, and 90th percentile of absolute ones: "-12 % (p90 30 %)"."""
    return f"{100.0 * np.median(errors):+.0f} % (p90 {100.0 * np.percentile(np.abs(errors), 90):.0f} %)"
