"""The catalogs, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from kavier.ecosystem.catalog import Entry
from kavier.ecosystem.catalog_rows import ROWS, Row
from kavier.ecosystem.gpu import gpu_entry
from kavier.ecosystem.models import find_model, model_entry, model_names
from kavier.ecosystem.prices import price_entry
from kavier.ecosystem.regions import region_entry
from kavier.errors import InputError
from kavier.units import PARAMETERS_PER_BILLION


def print_catalog(kind: str, *, json: bool) -> None:
    """All entries of a catalog, one row each.

    Raises:
        InputError: Unknown kind.
    """
    rows = _rows(kind)
    if json:
        print(json_module.dumps(rows, indent=2))
        return
    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*("-" if value is None else _text(value) for value in row.values()))
    Console(highlight=False, width=_whole_width(table)).print(table, markup=False)


def print_entry(kind: str, name: str, *, json: bool) -> None:
    """One entry, every value with its source and date.

    Raises:
        InputError: Unknown kind or name.
    """
    if kind not in ENTRIES:
        _rows(kind)
    entry = ENTRIES[kind](name)
    if json:
        print(json_module.dumps(entry, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{entry.pop('name')}[/]")
    for key, value in entry.items():
        if value is None:
            continue
        if isinstance(value, dict):
            about = ", ".join(str(value[part]) for part in ("source", "date") if value.get(part))
            spread = f" +-{_text(value['uncertainty'])}" if value.get("uncertainty") else ""
            quality = "" if value.get("quality") in (None, "published") else f" [yellow]{value['quality']}[/]"
            amount = f"{_text(value['value'])}{spread} {value['unit']}"
            console.print(f"  {key:<24} {amount:<26}{quality} [dim]{about}[/]", soft_wrap=True)
        else:
            console.print(f"  {key:<24} {_text(value)}", soft_wrap=True)


def _whole_width(table: Table) -> int:
    """Of the widest row: a name cut short is of no use, a long line can be scrolled or piped."""
    console = Console(width=1000)
    return Measurement.get(console, console.options, table).maximum


def _rows(kind: str) -> list[Row]:
    known: dict[str, Callable[[], list[Row]]] = {"models": _model_rows, **ROWS}
    if kind not in known:
        raise InputError(
            f"unknown catalog {kind!r}", expected="gpus, models, regions or prices", near=(kind, known)
        )
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
