"""What the run costs: rented GPU-hours, idle ones included."""

from __future__ import annotations

from kavier.units import per_million, s_to_hours


def cost(
    *,
    gpus: int,
    makespan_s: float,
    usd_per_gpu_hour: float | None,
    facility_kwh: float,
    usd_per_kwh: float | None,
    total_tokens: int,
    output_tokens: int,
    finished: int,
) -> dict[str, float | None]:
    """GPU-hours times their price; None where no price is known.

    `electricity_usd` is what the energy would cost at the region's tariff. It is inside the rent and never
    added to it.
    """
    gpu_hours = gpus * s_to_hours(makespan_s)
    usd = None if usd_per_gpu_hour is None else gpu_hours * usd_per_gpu_hour
    return {
        "usd": usd,
        "usd_per_million_tokens": None if usd is None else per_million(usd, total_tokens),
        "usd_per_million_output_tokens": None if usd is None else per_million(usd, output_tokens),
        "usd_per_request": None if usd is None or not finished else usd / finished,
        "gpu_hours": gpu_hours,
        "usd_per_gpu_hour": usd_per_gpu_hour,
        "electricity_usd": None if usd_per_kwh is None else facility_kwh * usd_per_kwh,
    }
