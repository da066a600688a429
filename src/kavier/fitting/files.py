"""Fitted groups as a catalog file."""

from __future__ import annotations

from collections.abc import Iterable

from kavier.fitting.kernels import Group

DIGITS = 4
"""Significant digits kept of a fitted number: far more than its error leaves."""


def toml_of(groups: Iterable[Group], title: str, date: str) -> str:
    """The text of a file of `timing/kernels`: each group with its source, error and date."""
    lines = [f"# {title}", "# Written by `kavier fit-kernels`; do not edit.", ""]
    for group in groups:
        lines += [
            f"[{group.name}]",
            f'source = "{group.source}"',
            f'error = "{group.error}"',
            f'date = "{date}"',
        ]
        lines += [
            f'{name} = {{ value = {rounded(v)}, unit = "{group.units[name]}" }}'
            for name, v in group.values.items()
        ]
        lines.append("")
    return "\n".join(lines)


def rounded(value: float) -> str:
    """The number with four significant digits, as Python and TOML read it."""
    return repr(float(f"{value:.{DIGITS}g}"))
