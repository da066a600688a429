"""The shipped numbers of kernels, and tables of numbers by group."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from kavier.ecosystem.gpu import gpu_entry
from kavier.errors import InputError
from kavier.report.terminal import page_console, show
from kavier.timing.parameters import kernel_entries, kernel_versions, measured_gpus

WIDE = 140
"""Columns of a table of groups where it goes to a file."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group of numbers in a table.

    Attributes:
        numbers: In words, one a line.
        said: Errors and source, one a line.
    """

    name: str
    version: str
    numbers: str
    said: str


def print_groups(title: str, rows: Iterable[GroupRow]) -> None:
    """A table with a row a group."""
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, header_style="bold")
    for header in ("group", "vLLM", "numbers"):
        table.add_column(header, no_wrap=True)
    table.add_column("error by regime: median (p90); fitted on", overflow="fold")
    for row in rows:
        table.add_row(row.name, row.version, Text(row.numbers), Text(row.said))
    show(page_console(WIDE), Text(title, "bold"), table)


def numbers_told(values: Mapping[str, float], units: Mapping[str, str]) -> str:
    """Numbers in words, one a line: "launch_s 3.65e-06 s"."""
    return "\n".join(
        f"{name} {value:.4g}{'' if units[name] == '1' else f' {units[name]}'}"
        for name, value in values.items()
    )


def kernel_rows() -> list[dict[str, Any]]:
    """One row a GPU and version of vLLM: the groups of numbers that were fitted to its kernels."""
    return [
        {"gpu": gpu, "vllm": version, "groups": ", ".join(by_group(kernel_entries(gpu, version)))}
        for gpu in measured_gpus()
        for version in kernel_versions(gpu)
    ]


def by_group(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Numbers by group and name, each with all that is said of it."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, entry in entries.items():
        group, _, name = path.rpartition(".")
        found.setdefault(group, {})[name] = entry
    return found


def print_kernels(name: str, *, json: bool) -> None:
    """All numbers that are shipped for a GPU, with sources and errors.

    Raises:
        InputError: Unknown GPU, or none of its kernels were measured.
    """
    gpu = gpu_entry(name).name
    if gpu not in measured_gpus():
        raise InputError(f"no measured kernels of {gpu}", expected=f"one of {', '.join(measured_gpus())}")
    versions = {version: by_group(kernel_entries(gpu, version)) for version in kernel_versions(gpu)}
    if json:
        print(json_module.dumps({"gpu": gpu, "versions": versions}, indent=2))
        return
    rows = [
        _row(group, version, all_) for version, groups in versions.items() for group, all_ in groups.items()
    ]
    print_groups(gpu, rows)


def _row(group: str, version: str, numbers: Mapping[str, Mapping[str, Any]]) -> GroupRow:
    values = {name: float(entry["value"]) for name, entry in numbers.items()}
    units = {name: str(entry["unit"]) for name, entry in numbers.items()}
    first = next(iter(numbers.values()))
    said = [*str(first["error"]).split("; "), f"{first['source']}, {first['date']}"]
    return GroupRow(group, version, numbers_told(values, units), "\n".join(said))
