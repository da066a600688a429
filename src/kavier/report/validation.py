"""Measured against simulated, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kavier.metrics.distribution import NOTHING
from kavier.report.amounts import counted, latency
from kavier.report.terminal import page_console, show

WIDTH = 110

MANY_TIMES = 10.0
"""Errors from which on decimals say nothing."""

LABELS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}

STATISTICS = tuple(NOTHING)

Compared = Mapping[str, Any]
"""`Comparison.as_dict` of `kavier.validation.compare`."""


def print_validation(compared: Sequence[Compared], summary: Sequence[Compared], *, json: bool) -> None:
    """Print every case, then medians and worst errors over cases.

    Args:
        compared: One a case.
        summary: One a group of cases, as `kavier.validation.compare.summary`.
        json: As they are.
    """
    if json:
        print(json_module.dumps({"cases": compared, "summary": summary}, indent=2))
    else:
        show(page_console(WIDTH), *_pages(compared), *_summaries(summary))


def print_ablation(variants: Sequence[Compared], *, json: bool) -> None:
    """Print the errors without each term.

    Args:
        variants: As `kavier.validation.ablation.ablate`.
        json: As they are.
    """
    if json:
        print(json_module.dumps({"ablation": variants}, indent=2))
    else:
        title = f"Median and worst absolute error of means, {counted(variants[0]['cases'], 'case')}"
        show(page_console(WIDTH), Text(title, "bold"), _ablation(variants))


def _ablation(variants: Sequence[Compared]) -> Table:
    table = _table(
        "without", *(f"{label} {what}" for label in LABELS.values() for what in ("median", "worst"))
    )
    for one in variants:
        means = [one["metrics"].get(metric, {}).get("mean", {}) for metric in LABELS]
        table.add_row(
            one["removed"], *(size(mean.get(name)) for mean in means for name in ("median", "worst"))
        )
    return table


def percent(error: float | None) -> str:
    """With its sign."""
    return "-" if error is None else f"{error:+.1%}"


def size(error: float | None) -> str:
    """Without sign."""
    return "-" if error is None else f"{error:.1%}" if error < MANY_TIMES else f"{error:,.0%}"


def _pages(compared: Sequence[Compared]) -> Iterator[RenderableType]:
    """A table for each measured run; aggregates of a file share one, a line each."""
    for (of, aggregates), group in groupby(compared, key=lambda one: (one["set"], one["requests"] is None)):
        mine = list(group)
        for part in [mine] if aggregates else [[one] for one in mine]:
            yield Text(_title(of, part, aggregates=aggregates), "bold")
            yield _lines(of, part) if aggregates else _case(part[0])
            for note in _common(part):
                yield Text(f"- {note}", "dim")
            yield ""


def _title(of: str, cases: Sequence[Compared], *, aggregates: bool) -> str:
    one = cases[0]
    if aggregates:
        return f"{of}: {counted(len(cases), 'case')}, step times at level {one['level']!r}"
    title = f"{one['case']}: {counted(one['requests'], 'request')}, step times at level {one['level']!r}"
    return title + (", overloaded" if one["overloaded"] else "")


def _case(one: Compared) -> Table:
    names = [name.replace("p", "P") for name in STATISTICS]
    table = _table("", "", *names, "median of requests")
    for metric, points in one["metrics"].items():
        for side in ("measured", "simulated"):
            label = LABELS[metric] if side == "measured" else ""
            table.add_row(label, side, *(latency(points[point][side]) for point in STATISTICS))
        errors = [percent(points[point]["error"]) for point in STATISTICS]
        table.add_row("", "error", *errors, size(one["per_request_median_error"].get(metric)), style="bold")
    return table


def _lines(of: str, cases: Sequence[Compared]) -> Table:
    """Aggregates: measured, simulated, error of each statistic that is known."""
    found = (
        (metric, point) for one in cases for metric in one["metrics"] for point in one["metrics"][metric]
    )
    known = list(dict.fromkeys(found))
    columns = [
        name for metric, point in known for name in (f"{LABELS[metric]} {point}", "simulated", "error")
    ]
    table = _table("", *columns)
    for one in cases:
        cells = []
        for metric, point in known:
            pair = one["metrics"].get(metric, {}).get(point, {})
            both = [latency(pair.get(side)) for side in ("measured", "simulated")]
            cells += [*both, percent(pair.get("error"))]
        table.add_row(one["case"].removeprefix(f"{of} "), *cells)
    return table


def _common(cases: Sequence[Compared]) -> list[str]:
    """Notes of the first case; those that do not hold for all, such as a closed loop's, are an example."""
    first = cases[0]["notes"]
    return [note if all(note in one["notes"] for one in cases) else f"first case: {note}" for note in first]


def _summaries(summary: Sequence[Compared]) -> Iterator[RenderableType]:
    for group in summary:
        apart = " that are overloaded" if group["overloaded"] else ""
        title = f"Absolute error over {counted(group['cases'], 'case')}{apart}, level {group['level']!r}"
        yield Text(title, "bold")
        table = _table("", "of", "median", "mean", "bias", "worst", "which is")
        table.columns[1].justify = table.columns[-1].justify = "left"
        for metric, points in group["metrics"].items():
            for point, error in points.items():
                sizes = [size(error[name]) for name in ("median", "mean")]
                row = [*sizes, percent(error["bias"]), size(error["worst"]), error["worst_case"]]
                table.add_row(LABELS[metric], point.replace("p", "P"), *row)
        yield table
        yield ""


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column else "left")
    return table
