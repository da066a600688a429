"""A progress bar on stderr, once a person has waited for two seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_S = 2.0
REFRESH_S = 0.1


def show_log() -> None:
    """Say on stderr what takes long before anything can be counted: compiling, once on a machine."""
    logging.basicConfig(stream=sys.stderr, format="kavier: %(message)s", level=logging.INFO)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total). Wall-clock time is read only here, and only shown."""
    began = last_s = time.monotonic()
    bar: Progress | None = None

    def update(done: int, total: int) -> None:
        nonlocal bar, last_s
        now_s = time.monotonic()
        if now_s - last_s < REFRESH_S:
            return
        last_s = now_s
        if bar is None and sys.stderr.isatty() and now_s - began > PATIENCE_S:
            bar = _start_bar(what)
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield update
    finally:
        if bar is not None:
            bar.stop()


def _start_bar(what: str) -> Progress:
    """With one task."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True, refresh_per_second=5)
    bar.add_task(what)
    bar.start()
    return bar
