"""Grid regions: how much carbon a kilowatt-hour carries there, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kavier.ecosystem.catalog import Catalog, Entry, Schema, Sourced, load_catalog

_SCHEMA = Schema(
    thing="region",
    units={"carbon": "gCO2e/kWh", "electricity_price": "USD/kWh"},
    required=("carbon",),
    labels=("place", "year", "carbon_kind"),
)


@dataclass(frozen=True, slots=True)
class Region:
    """A grid region.

    Attributes:
        code: Electricity Maps zone ("NL", "US-CAL-CISO"), or "WORLD".
        place: Name for people.
        year: Year that `carbon` is the mean of.
        carbon_kind: What `carbon` counts ("average, life-cycle, location-based, of consumption").
        carbon: Carbon intensity, gCO2e/kWh.
        electricity_price: What businesses pay, USD/kWh; None where no published figure was found.
    """

    code: str
    place: str
    year: int
    carbon_kind: str
    carbon: Sourced
    electricity_price: Sourced | None


def find_region(name: str) -> Region:
    """The region of a code, country code or name, whatever its case.

    Raises:
        InputError: Unknown region; the nearest names are offered.
    """
    entry = region_entry(name)
    return Region(
        code=entry.name,
        place=entry.labels["place"],
        year=int(entry.labels["year"]),
        carbon_kind=entry.labels["carbon_kind"],
        carbon=entry.quantities["carbon"],
        electricity_price=entry.quantities.get("electricity_price"),
    )


def region_entry(name: str) -> Entry:
    """All that the catalog says of a region.

    Raises:
        InputError: Unknown region; the nearest names are offered.
    """
    return region_catalog().find(name)


def region_names() -> list[str]:
    """Codes of the regions."""
    return list(region_catalog().entries)


@cache
def region_catalog() -> Catalog:
    """The regions shipped with Kavier."""
    return load_catalog("regions.toml", _SCHEMA)
