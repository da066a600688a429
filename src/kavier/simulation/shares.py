"""Whose energy it is: that of each step, shared out among the requests that take part in it.

Request r of a step with n requests weighs c_r = shared_s / n + its own cost, in seconds (`UnitCosts`), and is
given the step's energy times c_r / sum(c). What is there as soon as anybody is, as weights that are read, is
split equally: so does the Shapley value, each request's mean added energy over all orders of joining.

What a preemption throws away was the request's own, and so is what it computes again. A prefix found in the
cache costs its reading only: who computed it has paid.
"""

from __future__ import annotations

from math import expm1
from typing import Any

from numpy.typing import NDArray

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
        numbers: tuple[float, ...] = power[0].tolist()
        self._floor_w, self._span_w, self._per_flop, self._per_byte, self._gpus = numbers

    def add(self, step: Step, cost: StepCost) -> None:
        """Share out the energy of a step with tokens."""
        units = self._timing.unit_costs(step.work)
        equal_s = units.shared_s / len(step.scheduled)
        weights_s = [equal_s + _own_s(units, part) for part in step.scheduled]
        j_per_s = self._energy_j(cost) / (sum(weights_s) or 1.0)
        for part, weight_s in zip(step.scheduled, weights_s, strict=True):
            part.request.energy_j += j_per_s * weight_s

    def _energy_j(self, cost: StepCost) -> float:
        """Of all GPUs of the replica, see `metrics.power.SaturatingPower`; none if it takes no time."""
        if cost.time_s <= 0.0:
            return 0.0
        activity = (self._per_byte * cost.bytes + self._per_flop * cost.flops) / cost.time_s
        return (self._floor_w - self._span_w * expm1(-activity)) * cost.time_s * self._gpus


def _own_s(units: UnitCosts, part: Scheduled) -> float:
    tokens, computed = part.num_tokens, part.num_computed
    after, row_s = computed + tokens, units.row_s if part.samples else 0.0
    if part.is_decode:
        return row_s + units.decode_s + after * units.decode_context_s
    pairs = tokens * computed + tokens * (tokens + 1) // 2
    context_s = after * units.prefill_context_s + computed * units.cached_s
    return row_s + tokens * units.prefill_s + pairs * units.pair_s + context_s
