"""How lines get to a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table

NARROWEST = 80
"""Columns of a page at least: a narrower terminal breaks its lines, but nothing is cut."""


WHOLE_ROWS = 10_000
"""Columns for what goes to a file: whole rows, for other programs."""


def page_console(widest: int = WHOLE_ROWS) -> Console:
    """As wide as the terminal, but not wider than that; a file gets the widest."""
    console = Console(highlight=False)
    width = max(min(console.width, widest), NARROWEST) if console.is_terminal else widest
    return Console(highlight=False, width=width)


def table_console(table: Table) -> Console:
    """For a table that cuts nothing: gaps shrink where that helps; else the terminal breaks lines."""
    console = page_console()
    if _least(table) > console.width:
        table.padding = (0, 1, 0, 0)
        console.width = max(console.width, _least(table))
    return console


def _least(table: Table) -> int:
    """Columns that a table needs when all that may wrap is wrapped."""
    console = Console(width=WHOLE_ROWS)
    return Measurement.get(console, console.options, table).minimum


def show(console: Console, *parts: RenderableType) -> None:
    """Print without blanks at the ends of lines, which rich fills up to the width."""
    for part in parts:
        for line in console.render_lines(part, pad=False):
            console.print(Segments([*_stripped(line), Segment.line()]), end="", soft_wrap=True)


def _stripped(line: Iterable[Segment]) -> list[Segment]:
    kept = list(line)
    while kept and not kept[-1].text.rstrip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept
