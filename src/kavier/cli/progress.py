"""A progress bar on stderr, once a person has waited for two seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0
REFRESH_S = 0.1


def show_log() -> None:
    """Say on stderr what takes long before anything can be counted: compiling, once on a machine."""
    logging.basicConfig(stream=sys.stderr, format="kavier: %(message)s", level=logging.INFO)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total). Wall-clock time is read only here, and only shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=5)
    task = bar.add_task(what, start=True)
    began = time.monotonic()
    shown, last_s = False, began

    def update(done: int, total: int) -> None:
        nonlocal shown, last_s
        now_s = time.monotonic()
        if now_s - last_s < REFRESH_S:
            return
        last_s = now_s
        if not shown and console.is_terminal and now_s - began > PATIENCE_S:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if shown:
            bar.stop()
