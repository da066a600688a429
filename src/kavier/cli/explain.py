"""`kavier explain METRIC`: what a number means and how it is computed."""

from __future__ import annotations

from typing import Annotated

import typer


def explain(
    metric: Annotated[
        str | None, typer.Argument(help="A key of summary.json, such as ttft_s; none lists all.")
    ] = None,
) -> None:
    """Say what a metric means, its unit, formula and source."""
    from kavier.report.console import print_explanation, print_glossary

    if metric is None:
        print_glossary()
    else:
        print_explanation(metric)
