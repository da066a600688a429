"""Catalogs as plain rows, for tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kavier.ecosystem.gpu import gpu_catalog
from kavier.ecosystem.prices import price_catalog, price_of
from kavier.ecosystem.regions import find_region, region_names
from kavier.errors import InputError

Row = dict[str, Any]


def catalog_rows(kind: str) -> list[Row]:
    """One row an entry, in catalog order; units in the keys, None where the catalog has no number.

    Raises:
        InputError: Unknown kind of catalog.
    """
    if kind not in ROWS:
        raise InputError(f"unknown catalog {kind!r}", expected=" or ".join(ROWS), near=(kind, ROWS))
    return ROWS[kind]()


def _gpu_rows() -> list[Row]:
    return [
        {
            "gpu": entry.name,
            "memory_mib": entry.quantities["memory"].value,
            "bandwidth_gb_per_s": entry.quantities["bandwidth"].value,
            **{
                f"{dtype}_tflops": _value(entry.quantities.get(f"flops.{dtype}"))
                for dtype in ("bf16", "int8", "fp8", "fp4")
            },
            "tdp_w": entry.quantities["tdp"].value,
            "idle_w": entry.quantities["idle_power"].value,
            "loaded_idle_w": entry.quantities["loaded_idle_power"].value,
            "interconnect": entry.labels["interconnect"],
            "link_gb_per_s": entry.quantities["link_bandwidth"].value,
            "aliases": ", ".join(entry.aliases),
        }
        for entry in gpu_catalog().entries.values()
    ]


def _region_rows() -> list[Row]:
    return [
        {
            "region": region.code,
            "place": region.place,
            "carbon_gco2e_per_kwh": region.carbon.value,
            "carbon_kind": region.carbon_kind,
            "year": region.year,
            "usd_per_kwh": _value(region.electricity_price),
        }
        for region in map(find_region, region_names())
    ]


def _price_rows() -> list[Row]:
    rows = []
    for gpu, entry in price_catalog().entries.items():
        offers = entry.quantities
        values = [offer.value for offer in offers.values()]
        rows.append(
            {
                "gpu": gpu,
                "usd_per_gpu_hour": _value(price_of(gpu)),
                "lowest_usd": min(values),
                "highest_usd": max(values),
                "providers": ", ".join(offers),
                "newest": max(offer.date for offer in offers.values()),
            }
        )
    return rows


def _value(quantity: Any) -> float | None:
    return None if quantity is None else quantity.value


ROWS: dict[str, Callable[[], list[Row]]] = {"gpus": _gpu_rows, "regions": _region_rows, "prices": _price_rows}
