"""What GPUs cost on demand, from published price lists."""

from __future__ import annotations

from functools import cache
from statistics import median

from kavier.ecosystem.catalog import Catalog, Entry, Schema, Sourced, load_catalog
from kavier.ecosystem.gpu import gpu_entry

_SCHEMA = Schema(thing="price of a GPU", units={"*": "USD/h"})


def price_of(gpu_name: str) -> Sourced | None:
    """USD per GPU-hour: the median of the listed on-demand prices; None where none is listed.

    `uncertainty` is the distance to the farther end of the range, which `source` gives.

    Raises:
        InputError: Unknown GPU; the nearest names are offered.
    """
    entry = price_entry(gpu_name)
    if entry is None:
        return None
    offers = entry.quantities
    values = sorted(offer.value for offer in offers.values())
    low, middle, high = values[0], round(median(values), 4), values[-1]
    return Sourced(
        value=middle,
        unit="USD/h",
        source=f"median of {len(values)} on-demand prices ({low:g} to {high:g}): {', '.join(offers)}",
        date=max(offer.date for offer in offers.values()),
        uncertainty=round(max(middle - low, high - middle), 4) if len(values) > 1 else None,
    )


def price_entry(gpu_name: str) -> Entry | None:
    """The listed on-demand prices of a GPU by provider, in USD per GPU-hour; None where none is listed.

    Raises:
        InputError: Unknown GPU; the nearest names are offered.
    """
    return price_catalog().entries.get(gpu_entry(gpu_name).name)


@cache
def price_catalog() -> Catalog:
    """The price lists shipped with Kavier, by GPU."""
    return load_catalog("prices.toml", _SCHEMA)
