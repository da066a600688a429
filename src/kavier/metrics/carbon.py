"""Operational carbon: facility energy times the grid's intensity when it was drawn."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from kavier.units import j_to_kwh, per_million


def carbon(
    timeline: pl.DataFrame, *, pue: float, gco2_per_kwh: ArrayLike, tokens: int
) -> dict[str, float | None]:
    """Location-based operational carbon (GHG Protocol scope 2).

    Args:
        timeline: Rows with energy_j.
        pue: Facility energy / GPU energy.
        gco2_per_kwh: One intensity, or one for each row of the timeline.
        tokens: Prompt and output tokens of the finished requests.
    """
    facility_kwh = j_to_kwh(1.0) * pue * timeline["energy_j"].to_numpy()
    grams = float((facility_kwh * np.asarray(gco2_per_kwh)).sum())
    energy_kwh = float(facility_kwh.sum())
    return {
        "operational_gco2e": grams,
        "gco2e_per_million_tokens": per_million(grams, tokens),
        "mean_gco2_per_kwh": grams / energy_kwh if energy_kwh else None,
    }
