"""Shared by the benchmarks: whole processes, what they cost, and the machine they ran on."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Rows = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Spent:
    """What a process cost, from its start to its exit, by the operating system's own accounting.

    Attributes:
        wall_s: A monotonic clock, just before and just after.
        cpu_s: User and system time of it and of the processes that it waited for.
        peak_mb: Most memory resident at once; not below the peak of the process that starts it.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float


def spend(
    command: Sequence[str | Path], *, output: Path | None = None, env: Mapping[str, str] | None = None
) -> Spent:
    """Run a command; its standard output goes to a file or nowhere.

    Raises:
        SystemExit: It fails.
    """
    sink: IO[Any] | int = output.open("wb") if output else subprocess.DEVNULL
    began_s = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if not isinstance(sink, int):
        sink.close()
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(map(str, command))}")
    return Spent(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def environment(**changes: str) -> dict[str, str]:
    """As a user has it: Python may keep its bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | changes


def machine() -> str:
    """Processor, cores and memory, in words."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", told, re.MULTILINE))
    name = f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB; load average at the start {load:.1f}"


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A table of which all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def aligned(head: Sequence[str], rows: Rows) -> str:
    """The same for a terminal."""
    lines = [[str(cell) for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def verdict(what: str, *, shown: bool) -> str:
    """A line on a published target."""
    return f"{'shown' if shown else 'MISSED'}: {what}"
