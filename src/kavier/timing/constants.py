"""Constants are data: a TOML file whose numbers have a value, a unit, a source and a date."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

PROVENANCE = ("source", "date", "error")
"""What a table of constants may say of all that is in it; the first two must be said somewhere."""

TEXTS = (*PROVENANCE, "unit")
"""What is said of a constant in words."""

SAID = ("value", "standard_error", *TEXTS)
"""All that is said of a constant."""


def read_constants(package: str, name: str) -> dict[str, float]:
    """The values of a constants file of `package`, by dotted path (`gemm.bf16.launch_s`).

    Raises:
        ValueError: An entry lacks its value, unit, source or date.
    """
    tree = tomllib.loads(files(package).joinpath(name).read_text(encoding="utf-8"))
    return {path: float(entry["value"]) for path, entry in entries(tree).items()}


def entries(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each constant of a tree with all that is said of it: value, unit, source, date, maybe error.

    Raises:
        ValueError: An entry lacks its value, unit, source or date, or is no table.
    """
    return dict(_walk(tree, "", {}))


def _walk(
    tree: Mapping[str, Any], path: str, said: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if "value" in tree or not any(isinstance(child, dict) for child in tree.values()):
        yield path, _entry(tree, path, said)
        return
    _check_tables(tree, path)
    own = {key: tree[key] for key in PROVENANCE if isinstance(tree.get(key), str)}
    said = {**said, **own}
    for key, child in tree.items():
        if key not in own and isinstance(child, dict):
            yield from _walk(child, f"{path}.{key}" if path else key, said)


def _entry(tree: Mapping[str, Any], path: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A constant with all that is said of it."""
    if "value" not in tree:
        _check_tables(tree, path)
    if not path:
        raise ValueError("no table of a constant, such as [group.name] with value, unit, source and date")
    entry = {**said, **tree}
    if missing := {"value", "unit", "source", "date"} - entry.keys():
        raise ValueError(f"constant {path} has no {', '.join(sorted(missing))}")
    for key in TEXTS:
        if key in entry and not isinstance(entry[key], str):
            raise ValueError(f"{path}.{key} is no text (got {entry[key]!r}); expected text in quotes")
    return entry


def _check_tables(tree: Mapping[str, Any], path: str) -> None:
    """What holds constants holds tables, and words about them."""
    for key, child in tree.items():
        words = key in PROVENANCE or (path and key in SAID)
        if isinstance(child, dict) or (words and (isinstance(child, str) or key not in PROVENANCE)):
            continue
        name = f"{path}.{key}" if path else key
        wanted = "text in quotes" if words else "a table with value, unit, source and date"
        raise ValueError(f"{name} is not usable (got {child!r}); expected {wanted}")
