"""The catalogs, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from kavier.ecosystem.catalog import Entry
from kavier.ecosystem.catalog_rows import ROWS, Row
from kavier.ecosystem.gpu import gpu_entry
from kavier.ecosystem.models import find_model, model_entry, model_names
from kavier.ecosystem.prices import price_entry
from kavier.ecosystem.regions import region_entry
from kavier.errors import InputError, one_of
from kavier.report.kernel_catalog import kernel_rows, print_kernels
from kavier.report.terminal import page_console, show, table_console
from kavier.units import PARAMETERS_PER_BILLION

HEADERS = {
    "gpus": {
        "gpu": "gpu", "memory_mib": "memory\nMiB", "bandwidth_gb_per_s": "memory\nGB/s",
        "bf16_tflops": "bf16\nTFLOPS", "int8_tflops": "int8\nTOPS", "fp8_tflops": "fp8\nTFLOPS",
        "fp4_tflops": "fp4\nTFLOPS", "tdp_w": "TDP\nW", "loaded_idle_w": "idle W,\nloaded",
        "link_gb_per_s": "link\nGB/s",
    },
    "models": {
        "model": "model", "parameters_billion": "10^9\nparams", "active_billion": "active",
        "weights": "weights", "kv_bytes_per_token": "KV bytes\na token", "max_model_len": "longest\ncontext",
    },
    "regions": {
        "region": "region", "place": "place", "carbon_gco2e_per_kwh": "gCO2e\nper kWh", "carbon_kind": "of",
        "year": "year", "usd_per_kwh": "USD\nper kWh",
    },
    "prices": {
        "gpu": "gpu", "usd_per_gpu_hour": "USD per\nGPU-hour", "lowest_usd": "lowest",
        "highest_usd": "highest", "newest": "newest", "providers": "providers",
    },
    "kernels": {"gpu": "gpu", "vllm": "vLLM", "groups": "groups of numbers"},
}  # fmt: skip
"""Columns of the tables, which fit a terminal; JSON and the entries have all."""

WORDY = ("place", "carbon_kind", "providers", "groups")
"""Columns that may wrap."""


def print_catalog(kind: str, *, json: bool) -> None:
    """All entries of a catalog, one row each.

    Raises:
        InputError: Unknown kind.
    """
    rows = _rows(kind)
    if json:
        print(json_module.dumps(rows, indent=2))
        return
    footer = f"More of each, with sources and dates: kavier catalog {kind} NAME"
    if kind == "regions":
        footer = f"Carbon intensity: {_kind_of_carbon(rows)}. {footer}"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for key, header in HEADERS[kind].items():
        number = any(isinstance(row[key], int | float) for row in rows)
        table.add_column(
            header, justify="right" if number else "left", no_wrap=key not in WORDY, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text("-" if row[key] is None else _text(row[key])) for key in HEADERS[kind]))
    show(table_console(table), table)
    print(f"\n{footer}")


def _kind_of_carbon(rows: list[Row]) -> str:
    """What the intensities of all regions are; a row keeps only of which electricity it is."""
    kinds = {row["carbon_kind"].rpartition(", of ")[0] for row in rows}
    for row in rows:
        row["carbon_kind"] = row["carbon_kind"].rpartition(", of ")[2]
    return " or ".join(sorted(kinds))


def print_entry(kind: str, name: str, *, json: bool) -> None:
    """One entry, every value with its source and date.

    Raises:
        InputError: Unknown kind or name.
    """
    if kind == "kernels":
        print_kernels(name, json=json)
        return
    if kind not in ENTRIES:
        _rows(kind)
    entry = ENTRIES[kind](name)
    if json:
        print(json_module.dumps(entry, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # an address is broken, not cut
    for key, value in entry.items():
        if value is not None and key != "name":
            table.add_row(f"  {key}", _told(value))
    show(page_console(), Text(str(entry["name"]), "bold"), table)


def _told(value: object) -> Text:
    """A value, with its source if it has one."""
    if not isinstance(value, dict):
        return Text(_text(value))
    spread = f" +-{_text(value['uncertainty'])}" if value.get("uncertainty") else ""
    quality = "" if value.get("quality") in (None, "published") else f"  {value['quality']}"
    about = ", ".join(str(value[part]) for part in ("source", "date") if value.get(part))
    amount = f"{_text(value['value'])}{spread} {value['unit']}"
    return Text.assemble(amount, (quality, "yellow"), (f"  {about}", "dim"))


def _rows(kind: str) -> list[Row]:
    known: dict[str, Callable[[], list[Row]]] = {"models": _model_rows, **ROWS, "kernels": kernel_rows}
    if kind not in known:
        raise InputError(f"unknown catalog {kind!r}", expected=one_of(known), near=(kind, known))
    return known[kind]()


def _model_rows() -> list[Row]:
    rows = []
    for name in model_names():
        model = find_model(name)
        rows.append(
            {
                "model": name,
                "parameters_billion": round(model.parameters() / PARAMETERS_PER_BILLION, 2),
                "active_billion": round(model.active_parameters() / PARAMETERS_PER_BILLION, 2),
                "layers": len(model.layers),
                "weights": model.weight_dtype,
                "kv_bytes_per_token": model.kv_bytes_per_token("auto"),
                "max_model_len": model.max_model_len,
            }
        )
    return rows


def _model(name: str) -> dict[str, Any]:
    entry, model = model_entry(name), find_model(name)
    return {
        "name": entry.name,
        "variants": ", ".join(entry.variants) or None,
        "parameters": model.parameters(),
        "published_parameters": entry.published_parameters,
        "published_source": entry.published_source,
        "active_parameters": model.active_parameters(),
        "kv_bytes_per_token": model.kv_bytes_per_token("auto"),
        "weight_bytes": model.weight_bytes(),
        "notes": "; ".join(model.notes) or None,
        **{f"config.{key}": str(value) for key, value in entry.config.items()},
        "source": entry.source,
        "date": entry.date,
    }


def _sourced(entry: Entry) -> dict[str, Any]:
    quantities = {name: asdict(quantity) for name, quantity in entry.quantities.items()}
    return {"name": entry.name, "aliases": ", ".join(entry.aliases) or None, **entry.labels, **quantities}


def _price(name: str) -> dict[str, Any]:
    entry = price_entry(name)
    if entry is None:
        raise InputError(
            f"no price is listed for {gpu_entry(name).name}",
            expected="prices.usd_per_gpu_hour in the scenario",
        )
    return _sourced(entry)


ENTRIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "gpus": lambda name: _sourced(gpu_entry(name)),
    "models": _model,
    "regions": lambda name: _sourced(region_entry(name)),
    "prices": _price,
}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.10g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
