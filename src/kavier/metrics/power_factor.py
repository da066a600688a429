"""One factor that makes a power model meet what a deployment was measured to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import numpy.typing as npt

from kavier.errors import InputError
from kavier.metrics.power import PowerModel

MOST = 8.0
"""Factors are sought from 1 / MOST to MOST; what needs more is no small correction."""


@dataclass(frozen=True, slots=True)
class MeasuredEnergy:
    """Energy of ONE GPU, and what it did for it.

    A measured power in a steady state is the energy of one step of one second.

    Attributes:
        flops: Of each step.
        bytes: Of each step.
        duration_s: Of each step; idle time is a step without FLOPs and bytes.
        energy_j: Of all steps together.
    """

    flops: npt.ArrayLike
    bytes: npt.ArrayLike
    duration_s: npt.ArrayLike
    energy_j: float

    def modelled_j(self, power: PowerModel) -> float:
        """What the model says."""
        duration_s = np.asarray(self.duration_s, np.float64)
        watts = power.power_w(np.asarray(self.flops) / duration_s, np.asarray(self.bytes) / duration_s)
        return float(np.sum(watts * duration_s))


def power_factor(power: PowerModel, runs: Sequence[MeasuredEnergy]) -> float:
    """The factor on a model's activity, for `PowerModel.scaled`, with the least squares of log errors.

    It is meant for one deployment: one model, engine, precision and number of GPUs.

    Raises:
        InputError: No energy is measured or one is not above 0, or no factor in reach gives these energies:
            they lie below what idle GPUs take, or at the limit of the board.
    """
    if not runs or min(run.energy_j for run in runs) <= 0:
        raise InputError("a power factor needs at least one measured energy above 0 J")

    def misfit(log_factor: float) -> float:
        scaled = power.scaled(exp(log_factor))
        return sum(log(run.modelled_j(scaled) / run.energy_j) ** 2 for run in runs)

    found = _least(misfit, -log(MOST), log(MOST))
    if misfit(-log(MOST)) <= misfit(found) or misfit(log(MOST)) <= misfit(found):
        ratio = sum(run.modelled_j(power) for run in runs) / sum(run.energy_j for run in runs)
        raise InputError(
            f"no factor of power model {power.name!r} gives the measured energies",
            value=f"{1 / ratio:.2f} times the modelled ones",
            expected="energies between those of idle GPUs and of GPUs at their limit",
        )
    return exp(found)


def _least(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-6) -> float:
    """Where a function with one valley is least (golden-section search)."""
    shrink = (sqrt(5.0) - 1.0) / 2.0
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = function(right)
    return (low + high) / 2.0
