"""A page of tables, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from kavier.report.terminal import show, table_console


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, prose, and a table if it has columns; the first column is text, the others are numbers."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def show_sections(sections: Sequence[Section]) -> None:
    """Print them on stdout."""
    for section in sections:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for number, name in enumerate(section.columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in section.rows:
            table.add_row(*map(Text, row))
        console = table_console(table)
        show(console, Text(section.title, "bold"), Text(section.text))
        if section.columns:
            show(console, table)
        show(console, "")


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The same as a Markdown page."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        if section.columns:
            rule = ["---", *["---:"] * (len(section.columns) - 1)]
            parts.append("\n".join(_row(cells) for cells in (section.columns, rule, *section.rows)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
