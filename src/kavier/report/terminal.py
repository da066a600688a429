"""How lines get to a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table

NARROWEST = 80
"""Columns of a page at least: a narrower terminal breaks its lines, but nothing is cut."""


def page_console(widest: int) -> Console:
    """As wide as the terminal, but not wider than that; a file gets the widest."""
    console = Console(highlight=False)
    width = max(min(console.width, widest), NARROWEST) if console.is_terminal else widest
    return Console(highlight=False, width=width)


def table_console(table: Table) -> Console:
    """As wide as the terminal, where columns that may wrap do; a file gets whole rows, for other programs."""
    console = Console(highlight=False)
    widest = Console(width=10_000)
    needed = Measurement.get(widest, widest.options, table).maximum
    width = max(console.width, NARROWEST) if console.is_terminal else needed
    return Console(highlight=False, width=width)


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
