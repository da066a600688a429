"""Operational carbon: facility energy times the grid's intensity when it was drawn."""

from __future__ import annotations

from kavier.units import per_million


def carbon(facility_kwh: float, *, gco2_per_kwh: float | None, tokens: int) -> dict[str, float | None]:
    """Location-based operational carbon (GHG Protocol scope 2).

    Args:
        facility_kwh: GPU energy x PUE.
        gco2_per_kwh: Mean intensity when it was drawn; None when none was.
        tokens: Prompt and output tokens of the finished requests.
    """
    grams = facility_kwh * (gco2_per_kwh or 0.0)
    return {
        "operational_gco2e": grams,
        "gco2e_per_million_tokens": per_million(grams, tokens),
        "mean_gco2_per_kwh": gco2_per_kwh if facility_kwh else None,
    }
