"""GPU energy from per-step power, and facility energy through PUE."""

from __future__ import annotations

import numpy as np
import polars as pl

from kavier.metrics.power import PowerModel
from kavier.units import j_to_kwh


def with_energy(steps: pl.DataFrame, power: PowerModel, gpus_per_replica: int) -> pl.DataFrame:
    """Add `energy_j`: power at the step's FLOP and byte rates, times its duration, times its GPUs.

    Replicas' GPUs work alike (tensor parallelism), so one GPU's power is that of each.
    """
    duration_s = steps["duration_s"].to_numpy()
    rates = [
        np.divide(steps[name].to_numpy(), duration_s, out=np.zeros(len(steps)), where=duration_s > 0)
        for name in ("flops", "bytes")
    ]
    return steps.with_columns(
        pl.Series("energy_j", power.power_w(*rates) * duration_s * gpus_per_replica, dtype=pl.Float64)
    )


def energy(timeline: pl.DataFrame, requests: pl.DataFrame, pue: float) -> dict[str, float | None]:
    """Energy of the whole run; facility = GPU energy x PUE (hosts are not modelled)."""
    gpu_j = float(timeline["energy_j"].sum())
    output_tokens = int(requests["output_tokens"].sum())
    return {
        "gpu_kwh": j_to_kwh(gpu_j),
        "facility_kwh": j_to_kwh(gpu_j * pue),
        "j_per_output_token": gpu_j / output_tokens if output_tokens else None,
    }
