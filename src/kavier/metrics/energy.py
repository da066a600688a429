"""GPU energy from per-step power, and facility energy through PUE."""

from __future__ import annotations

import numpy as np
import polars as pl

from kavier.metrics.power import PowerModel
from kavier.native.library import address
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import STEP
from kavier.units import WH_PER_KWH, j_to_kwh, per_million


def with_energy(steps: pl.DataFrame, power: PowerModel, gpus_per_replica: int) -> pl.DataFrame:
    """Add `energy_j`: power at the step's FLOP and byte rates, times its duration, times its GPUs.

    Replicas' GPUs work alike (tensor parallelism), so one GPU's power is that of each. The compiled engine
    does the same sum, in the same function.
    """
    coefficients, records = power.record(gpus_per_replica), np.zeros(len(steps), STEP)
    for name in ("flops", "bytes", "duration_s"):
        records[name] = steps[name].to_numpy()
    LIBRARY.call(operations.FILL_ENERGIES, address(coefficients), address(records), len(steps))
    return steps.with_columns(pl.Series("energy_j", np.ascontiguousarray(records["energy_j"])))


def energy(
    gpu_j: float, *, idle_j: float, pue: float, makespan_s: float, output_tokens: int, total_tokens: int
) -> dict[str, float | None]:
    """Energy of the whole run; facility = GPU energy x PUE (hosts are not modelled).

    Args:
        gpu_j: Of all GPUs over the whole run.
        idle_j: What of it is no request's.
        pue: Facility energy / GPU energy.
        makespan_s: Time over which the mean power is taken.
        output_tokens: Of the finished requests.
        total_tokens: Prompt and output tokens of the finished requests.
    """
    gpu_kwh = j_to_kwh(gpu_j)
    return {
        "gpu_kwh": gpu_kwh,
        "idle_kwh": j_to_kwh(idle_j),
        "facility_kwh": gpu_kwh * pue,
        "j_per_output_token": gpu_j / output_tokens if output_tokens else None,
        "gpu_wh_per_million_tokens": per_million(gpu_kwh * WH_PER_KWH, total_tokens),
        "facility_wh_per_million_tokens": per_million(gpu_kwh * pue * WH_PER_KWH, total_tokens),
        "mean_gpu_w": gpu_j / makespan_s if makespan_s else None,
        "mean_facility_w": gpu_j * pue / makespan_s if makespan_s else None,
    }
