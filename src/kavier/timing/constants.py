"""Constants are data: a TOML file whose numbers have a value, a unit, a source and a date."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

PROVENANCE = ("source", "date", "error")
"""What a table of constants may say of all that is in it; the first two must be said somewhere."""


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
        ValueError: An entry lacks its value, unit, source or date.
    """
    return dict(_walk(tree, "", {}))


def _walk(
    tree: Mapping[str, Any], path: str, said: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if "value" in tree or not any(isinstance(child, dict) for child in tree.values()):
        entry = {**said, **tree}
        if missing := {"value", "unit", "source", "date"} - entry.keys():
            raise ValueError(f"constant {path} has no {', '.join(sorted(missing))}")
        yield path, entry
        return
    own = {key: tree[key] for key in PROVENANCE if isinstance(tree.get(key), str)}
    said = {**said, **own}
    for key, child in tree.items():
        if key not in own:
            yield from _walk(child, f"{path}.{key}" if path else key, said)
