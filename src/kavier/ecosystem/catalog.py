"""Catalogs: data files in which every number has a unit, a source and a date.

A catalog is a TOML file. `[sources.KEY]` tables say where numbers come from (text, date); a `[defaults]`
table holds what entries do not repeat; every other table is an entry, whose tables with a `value` are
quantities (`flops.bf16` is the quantity of that dotted name) and whose other keys are labels.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from kavier.errors import InputError, nearest, one_of

QUALITIES = ("published", "estimate")
_DATE = re.compile(r"\d{4}(-\d{2}){0,2}")
_QUANTITY_KEYS = {"value", "unit", "source", "quality", "uncertainty"}


@dataclass(frozen=True, slots=True)
class Sourced:
    """A number and where it comes from.

    Attributes:
        unit: As in the catalog file ("GB/s", "W", "gCO2e/kWh").
        source: Document or measurement.
        date: Of the source, or of its reading where it has none: year, month or day (ISO 8601).
        quality: "published" for the very thing, or "estimate".
        uncertainty: +- in `unit`, where known.
    """

    value: float
    unit: str
    source: str
    date: str
    quality: str = "published"
    uncertainty: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of a catalog: its names, words (labels) and numbers (quantities)."""

    name: str
    aliases: tuple[str, ...]
    labels: Mapping[str, str]
    quantities: Mapping[str, Sourced]


@dataclass(frozen=True, slots=True)
class Schema:
    """What the entries of a catalog must hold.

    Attributes:
        thing: What one entry is, for messages ("GPU").
        units: Quantity -> its unit. A final `*` in the quantity stands for the rest of its name.
        required: Quantities that every entry has.
        labels: Labels that every entry has.
        optional_labels: Labels that an entry may have.
    """

    thing: str
    units: Mapping[str, str]
    required: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    optional_labels: tuple[str, ...] = ()

    def unit_of(self, quantity: str) -> str | None:
        """The unit of a quantity, None if the catalog has no such quantity."""
        exact = self.units.get(quantity)
        if exact:
            return exact
        return next(
            (u for q, u in self.units.items() if q.endswith("*") and quantity.startswith(q[:-1])), None
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """Entries by name, in the order of the file."""

    schema: Schema
    entries: Mapping[str, Entry]
    keys: Mapping[str, str] = field(repr=False)

    def find(self, name: str) -> Entry:
        """The entry of a name or alias, whatever its case, blanks and underscores.

        Raises:
            InputError: No such entry; the nearest names are offered.
        """
        found = self.keys.get(_key(name))
        if found is None:
            raise self._unknown(name)
        return self.entries[found]

    def _unknown(self, name: str) -> InputError:
        """Where the names are listed, and the nearest; if none is near, some that begin alike."""
        thing = self.schema.thing
        names = [*self.entries, *(alias for entry in self.entries.values() for alias in entry.aliases)]
        listed = f"a name of `kavier catalog {thing.casefold()}s`"
        alike = [known for known in self.entries if known[:1] == name[:1].upper()][:3]
        if alike and not nearest(name, names):
            listed += f", such as {one_of(alike)}"
        return InputError(f"unknown {thing} {name!r}", expected=listed, near=(name, names))


def load_catalog(file: Literal["gpus.toml", "regions.toml", "prices.toml"], schema: Schema) -> Catalog:
    """Read and check a catalog that is shipped with Kavier."""
    text = (resources.files("kavier.ecosystem") / "catalog" / file).read_text(encoding="utf-8")
    return parse_catalog(text, schema, where=file)


def parse_catalog(text: str, schema: Schema, *, where: str) -> Catalog:
    """Read a catalog.

    Raises:
        InputError: Not TOML, an unknown key, a missing or unknown source, a missing or wrong unit, a value
            that is no finite number, something required that is absent, or a name that two entries claim.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", where=where) from None
    sources = tables.pop("sources", {})
    defaults = tables.pop("defaults", {})
    entries = {
        name: _entry(name, defaults | table, sources, schema, f"{where}, {name}")
        for name, table in tables.items()
    }
    return Catalog(schema, entries, _names(entries.values(), where))


def _entry(name: str, table: dict[str, Any], sources: Mapping[str, Any], schema: Schema, where: str) -> Entry:
    fallback: dict[str, Any] = {key: table.pop(key) for key in ("source", "quality") if key in table}
    aliases = tuple(table.pop("aliases", ()))
    quantities: dict[str, Sourced] = {}
    labels: dict[str, str] = {}
    for key, value in _leaves(table):
        if isinstance(value, dict):
            quantities[key] = _quantity(fallback | value, schema.unit_of(key), sources, f"{where}, {key}")
        else:
            labels[key] = value
    _check_complete(quantities, labels, schema, where)
    return Entry(name, aliases, labels, quantities)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Labels and quantities, nested tables under dotted names."""
    for key, value in table.items():
        if isinstance(value, dict) and not _QUANTITY_KEYS & value.keys():
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _quantity(raw: Mapping[str, Any], unit: str | None, sources: Mapping[str, Any], where: str) -> Sourced:
    if unit is None or raw.keys() - _QUANTITY_KEYS:
        raise InputError("unknown quantity or key in it", where=where, value=sorted(raw))
    if raw.get("unit") != unit:
        raise InputError("wrong or missing unit", where=where, value=raw.get("unit"), expected=repr(unit))
    source = sources.get(raw.get("source", ""))
    if not source or not source.get("text") or not _DATE.fullmatch(source.get("date", "")):
        raise InputError(
            "no such source, or one without text and date",
            where=where,
            value=raw.get("source"),
            expected="a key of [sources]",
        )
    quality = raw.get("quality", "published")
    if quality not in QUALITIES:
        raise InputError("unknown quality", where=where, value=quality, expected=" or ".join(QUALITIES))
    uncertainty = raw.get("uncertainty")
    return Sourced(
        value=_number(raw.get("value"), where),
        unit=unit,
        source=source["text"],
        date=source["date"],
        quality=quality,
        uncertainty=None if uncertainty is None else _number(uncertainty, where),
    )


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError("not a number of at least 0", where=where, value=value)
    return float(value)


def _check_complete(
    quantities: Mapping[str, Sourced], labels: Mapping[str, str], schema: Schema, where: str
) -> None:
    missing = [q for q in schema.required if q not in quantities] + [
        k for k in schema.labels if k not in labels
    ]
    if missing:
        raise InputError(f"missing {', '.join(missing)}", where=where)
    unknown = labels.keys() - {*schema.labels, *schema.optional_labels}
    if unknown or not all(isinstance(label, str) for label in labels.values()):
        raise InputError("unknown or unreadable key", where=where, value=sorted(unknown) or labels)


def _names(entries: Iterable[Entry], where: str) -> dict[str, str]:
    """Key of every name and alias -> name."""
    keys: dict[str, str] = {}
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            if keys.setdefault(_key(name), entry.name) != entry.name:
                raise InputError(f"{name!r} names both {keys[_key(name)]} and {entry.name}", where=where)
    return keys


def _key(name: str) -> str:
    """Names are the same whatever the case, and whether words are joined by -, _ or a blank."""
    return re.sub(r"[\s_-]+", "-", name.strip()).casefold()
