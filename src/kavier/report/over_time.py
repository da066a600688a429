"""Small plots: what the fleet did from the first arrival to the last token."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from kavier.report.amounts import duration, level, power
from kavier.runner import Result

BARS = " ▁▂▃▄▅▆▇█"
GAP = 2
USUAL = 38
"""Columns that names and captions take: with longer ones everything is added up again, for shorter plots."""

WAITING = "left waiting: no step had room; Queue counts the wait for the next step too"
"""Why that may be nothing where requests do queue."""


class Plot(NamedTuple):
    """A line of them."""

    name: str
    values: NDArray[np.float64]
    caption: str


def over_time(result: Result, width: int) -> Table:
    """A line for each level, with the highest of its means beside it."""
    plots, room = _fitting(result, width)
    pieces = len(plots[0].values)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=False)
    for plot in plots:
        line = sparkline(np.repeat(plot.values, max(room // pieces, 1)))
        table.add_row(plot.name, Text(line, "cyan"), plot.caption)
    mean_s = result.summary["makespan_s"] / pieces
    table.title = Text.assemble(
        ("Over time, whole fleet", "bold not italic"), (f"  means of {duration(mean_s)}", "dim not italic")
    )
    table.caption = Text(WAITING, "dim not italic")
    table.title_justify = table.caption_justify = "left"
    return table


def _fitting(result: Result, width: int) -> tuple[list[Plot], int]:
    """Plots of at most as many pieces as there are samples, and the room that their captions leave them.

    Captions depend a little on the number of pieces, being of means of these.
    """
    samples = ceil(result.summary["makespan_s"] / result.scenario.output.sample_interval_s)
    room = width - USUAL
    while True:
        plots = _plots(result, max(min(room, samples), 1))
        taken = max(len(plot.name) for plot in plots) + max(len(plot.caption) for plot in plots) + 2 * GAP
        if room <= max(width - taken, 1):
            return plots, room
        room = max(width - taken, 1)


def _plots(result: Result, pieces: int) -> list[Plot]:
    means = result.course.means(pieces)
    blocks = result.summary["kv"]["blocks"] * result.scenario.fleet.replicas
    most = {name: float(values.max()) for name, values in means.items()}
    plots = [
        Plot("running", means["running"], _requests(most["running"])),
        Plot("left waiting", means["waiting"], _requests(most["waiting"])),
    ]
    if blocks:  # none without KV cache
        use = f"up to {most['used_blocks'] / blocks:.1%} of blocks"
        plots.append(Plot("KV use", means["used_blocks"], use))
    return [*plots, Plot("GPU power", means["energy_j"], f"up to {power(most['energy_j'])}")]


def _requests(most: float) -> str:
    return f"up to {shown} request{'' if shown == '1' else 's'}" if (shown := level(most)) != "0" else "none"


def sparkline(values: NDArray[np.float64]) -> str:
    """Drawn from 0 to the largest."""
    top = max(float(values.max()), 1e-12)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values.tolist())
