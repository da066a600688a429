"""Whose energy it is: that of each step, shared out among the requests that take part in it.

Request r of a step with n requests weighs c_r = shared_s / n + its own cost, in seconds (`UnitCosts`), and is
given the step's energy times c_r / sum(c). What is there as soon as anybody is, as weights that are read, is
split equally: so does the Shapley value, each request's mean added energy over all orders of joining.

What a preemption throws away was the request's own, and so is what it computes again. A prefix found in the
cache costs its reading only: who computed it has paid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.native.library import address
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import STEP
from kavier.simulation.scheduler import Scheduled, Step
from kavier.timing.step import StepCost, StepTimeModel, UnitCosts


class Sharing:
    """Adds to the energy of requests, step by step, request by request.

    Args:
        timing: Tells what weighs how much.
        power: One record of `kernel.records.POWER`.
    """

    def __init__(self, timing: StepTimeModel, power: NDArray[Any]) -> None:
        self._timing = timing
        self._power, self._priced = power, np.zeros(1, STEP)

    def add(self, step: Step, cost: StepCost) -> None:
        """Share out the energy of a step with tokens."""
        units = self._timing.unit_costs(step.work)
        equal_s = units.shared_s / len(step.scheduled)
        weights_s = [equal_s + _own_s(units, part) for part in step.scheduled]
        j_per_s = self._energy_j(cost) / (sum(weights_s) or 1.0)
        for part, weight_s in zip(step.scheduled, weights_s, strict=True):
            part.request.energy_j += j_per_s * weight_s

    def _energy_j(self, cost: StepCost) -> float:
        """As the step's row will tell, from the same function: there is one power model."""
        step = self._priced[0]
        step["duration_s"], step["flops"], step["bytes"] = cost
        LIBRARY.call(operations.FILL_ENERGIES, address(self._power), address(self._priced), 1)
        return float(step["energy_j"])


def _own_s(units: UnitCosts, part: Scheduled) -> float:
    tokens, computed = part.num_tokens, part.num_computed
    after, row_s = computed + tokens, units.row_s if part.samples else 0.0
    if part.is_decode:
        return row_s + units.decode_s + after * units.decode_context_s
    pairs = tokens * computed + tokens * (tokens + 1) // 2
    context_s = after * units.prefill_context_s + computed * units.cached_s
    return row_s + tokens * units.prefill_s + pairs * units.pair_s + context_s
