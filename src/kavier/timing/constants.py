"""Constants are data: a TOML file whose entries hold value, unit, source and date."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any


def read_constants(package: str, name: str) -> dict[str, float]:
    """The values of a constants file of `package`, by dotted path (`gemm.bf16.launch_s`).

    Raises:
        ValueError: An entry lacks its value, unit, source or date.
    """
    tree = tomllib.loads(files(package).joinpath(name).read_text(encoding="utf-8"))
    return dict(_walk(tree, ""))


def _walk(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, float]]:
    if all(isinstance(child, dict) for child in tree.values()):
        for key, child in tree.items():
            yield from _walk(child, f"{path}.{key}" if path else key)
    elif missing := {"value", "unit", "source", "date"} - tree.keys():
        raise ValueError(f"constant {path} has no {', '.join(sorted(missing))}")
    else:
        yield path, float(tree["value"])


CONSTANTS = read_constants("kavier.timing", "constants.toml")
