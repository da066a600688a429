"""A power factor from the measured mean power of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kavier.ecosystem.platform import build_platform
from kavier.metrics.power import power_model
from kavier.metrics.power_factor import MeasuredEnergy, power_factor
from kavier.timing.calibration import POWER
from kavier.validation.case import NamedCase
from kavier.validation.identify import MODEL_ERROR, MOST_DOUBT, STEP, Identified
from kavier.validation.measured import read_measured
from kavier.validation.validate import Simulate

LEAST_IDLE_S = 1e-9
"""Rates are per second of something."""


def with_power(found: Identified, case: NamedCase, play: Simulate, gpu_power_w: float) -> Identified:
    """The same with a power factor, or with the reason why there is none.

    Its standard error is what `MODEL_ERROR` of power is worth: near idle, and at the limit of the board,
    power hardly tells it.

    Args:
        found: What latencies told.
        case: The run.
        play: Simulates it with these numbers.
        gpu_power_w: Mean of one GPU from the first arrival to the last answer.

    Raises:
        InputError: As `power_factor`.
    """
    scenario, platform = case.scenario, build_platform(case.scenario)
    energy = _energy(case, play, gpu_power_w)
    model = power_model(scenario.power, platform.gpu, platform.model)
    factor = power_factor(model, [energy])
    more = energy.modelled_j(model.scaled((1.0 + STEP) * factor)) / energy.energy_j - 1.0
    doubt = STEP * MODEL_ERROR / more if more > 0.0 else np.inf
    if doubt > MOST_DOUBT:
        why = f"{STEP:.0%} more of it moves power by {more:.1%} only"
        return replace(found, refused={**found.refused, POWER: why})
    return Identified(
        {**found.values, POWER: factor},
        {**found.standard_errors, POWER: doubt * factor},
        found.refused,
    )


def _energy(case: NamedCase, play: Simulate, gpu_power_w: float) -> MeasuredEnergy:
    """Steps of all replicas as of one GPU, and the rest of the time idle."""
    scenario = case.scenario
    scenario = scenario.model_copy(update={"output": scenario.output.model_copy(update={"steps": True})})
    measured = case.case.measured
    run = measured and read_measured(measured, case.root, scenario.engine.block_size)
    result = play(scenario, run.workload if run else None, None)
    steps = result.steps
    assert steps is not None
    ran = steps.filter(steps["duration_s"] > 0.0)
    requests = result.requests
    finish_s, arrival_s = requests["finish_s"].drop_nulls().to_numpy(), requests["arrival_s"].to_numpy()
    total_s = float(finish_s.max() - arrival_s.min()) * scenario.fleet.replicas
    idle_s = max(total_s - float(ran["duration_s"].sum()), LEAST_IDLE_S)
    return MeasuredEnergy(
        flops=np.append(ran["flops"].to_numpy(), 0.0),
        bytes=np.append(ran["bytes"].to_numpy(), 0.0),
        duration_s=np.append(ran["duration_s"].to_numpy(), idle_s),
        energy_j=gpu_power_w * total_s,
    )
