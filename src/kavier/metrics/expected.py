"""How far off each number of a run may be: errors of step times, and what the queue makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import expm1, hypot
from typing import Any

from kavier.metrics.capacity import SATURATED, Load

MOST = 20.0
"""Sensitivity at most: beyond it nothing is predicted, and any number would do."""

STEPS_WAITED = 1.5
"""Steps that a request waits although there is room: the rest of one, and one that is scheduled already."""

TIME_IN_ENERGY = 0.65
"""Error of energy / error of step times: shorter steps draw more power (measured on 171 runs)."""

Sensitivity = dict[str, dict[str, float]]
"""Metric -> per cent by which it grows when "decode" or "prefill" takes 1 % longer."""


def sensitivity(load: Load, summary: Mapping[str, Any]) -> Sensitivity:
    """What a small error of step times becomes.

    With requests that come whatever happens, longer steps make larger batches, and these longer steps: 1 /
    (1 - slope) in all, if requests come for long enough. Waiting for a seat grows by 1 / (1 - load) of
    that; beyond load 1, where the queue only grows, by load / (load - 1), and the batch is full. Clients
    that wait for answers slow down instead.

    Args:
        load: Of a replica.
        summary: Of the run.
    """
    steps, seats = _amplification(load)
    ttft_s, e2e_s, queue_s = (summary[name]["mean"] for name in ("ttft_s", "e2e_s", "queue_s"))
    tpot_s = summary["tpot_s"]["mean"] or 0.0
    share = load.prefill_share
    mixed = {"decode": 1.0 - share, "prefill": share}
    waited_s = min(queue_s, STEPS_WAITED * tpot_s)
    queue = ((waited_s * steps) + (queue_s - waited_s) * seats) / ttft_s
    alone = steps * max(1.0 - queue_s / ttft_s, 0.0)
    ttft = {"decode": queue * mixed["decode"], "prefill": queue * mixed["prefill"] + alone}
    tpot = {"decode": steps, "prefill": 0.0}  # the prefills in between are in the validated error
    first = ttft_s / e2e_s
    e2e = {kind: first * ttft[kind] + (1.0 - first) * tpot[kind] for kind in ttft}
    bound = 1.0 if load.closed or load.factor >= SATURATED else min(e2e_s / summary["makespan_s"], 1.0)
    return {
        "ttft_s": ttft,
        "tpot_s": tpot,
        "e2e_s": e2e,
        "throughput": {kind: bound * weight for kind, weight in mixed.items()},
        "energy": {kind: TIME_IN_ENERGY * weight for kind, weight in mixed.items()},
    }


def _amplification(load: Load) -> tuple[float, float]:
    """What 1 % of step time does to times of steps, and to the wait for a seat, in per cent."""
    if load.closed:
        return 1.0, 1.0
    if load.factor >= 1.0:
        return 1.0, _capped(load.factor, load.factor - 1.0)
    steps = _reached(_capped(1.0, 1.0 - load.slope), load.lives)
    return steps, _capped(steps, 1.0 - load.factor)


def _reached(steady: float, lives: float) -> float:
    """Mean of what a run from empty reaches of it: batches follow slower, the nearer they are to runaway."""
    past = lives / steady
    return 1.0 + (steady - 1.0) * (1.0 + expm1(-past) / past) if past else 1.0


def _capped(above: float, below: float) -> float:
    return above / max(below, above / MOST)


def expected_errors(
    found: Mapping[str, Mapping[str, float]], step_errors: Mapping[str, float], power_error: float
) -> dict[str, float]:
    """Metric -> relative error, one standard deviation; that of energy includes the power model's.

    Errors of decode and prefill add up: they share causes.

    Args:
        found: Sensitivity.
        step_errors: Of "decode" and "prefill".
        power_error: Of the power model.
    """
    from_time = {
        metric: sum(weights[kind] * step_errors[kind] for kind in step_errors)
        for metric, weights in found.items()
    }
    return {**from_time, "energy": hypot(power_error, from_time["energy"])}
