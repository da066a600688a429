"""What a workload looks like, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from kavier.report.amounts import counted
from kavier.report.terminal import page_console, show
from kavier.workload.statistics import describe
from kavier.workload.table import Workload

POINTS = ("mean", "p50", "p90", "p99", "max", "total")


def print_info(workload: Workload, *, json: bool) -> None:
    """Counts, rate, burstiness, lengths, sessions, and what an infinite prefix cache would hit."""
    described = describe(workload)
    if json:
        print(json_module.dumps(described, indent=2))
        return
    lengths = Table("tokens", *POINTS, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in lengths.columns[1:]:
        column.justify = "right"
    for name in ("prompt_tokens", "output_tokens"):
        numbers = (f"{described[name][point]:,.0f}" for point in POINTS)
        lengths.add_row(name.removesuffix("_tokens"), *numbers)
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for label, text in _lines(described):
        facts.add_row(label, text)
    source = Text.assemble((described["source"], "bold"), f"  format {described['format']}")
    show(page_console(), source, facts, "", lengths)


def print_written(workload: Workload, out: Path) -> None:
    """One line: what was written where, and what reading changed."""
    changes = "".join(f"; {name.replace('_', ' ')}: {count:,}" for name, count in workload.counts.items())
    print(f"{counted(len(workload.requests), 'request')} written to {out}{changes}")


def _lines(described: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("requests", f"{described['requests']:,}"), ("duration", f"{described['duration_s']:,.1f} s")]
    if described["rate_per_s"]:
        lines.append(("rate", f"{described['rate_per_s']:.3f} requests/s"))
    if described["gap_cv"]:
        lines.append(
            (
                "gaps between arrivals",
                f"CV {described['gap_cv']:.3f}, burstiness {described['burstiness']:.3f} (1 = Poisson)",
            )
        )
    if sessions := described.get("sessions"):
        lines.append(("sessions", f"{sessions['count']:,}, {sessions['mean_turns']:.2f} turns on average"))
    lines.append(("prefix sharing", _prefix(described.get("prefix"))))
    lines += [(name.replace("_", " "), f"{count:,}") for name, count in described["counts"].items()]
    return lines


def _prefix(prefix: dict[str, Any] | None) -> str:
    if prefix is None:
        return "not told by this trace"
    return (
        f"{prefix['blocks']:,} blocks of {prefix['block_tokens']} tokens, "
        f"{prefix['distinct_blocks']:,} distinct\n"
        f"an infinite cache hits {prefix['infinite_cache_hit_ratio_blocks']:.1%} of blocks,\n"
        f"{prefix['infinite_cache_hit_ratio_tokens']:.1%} of prompt tokens"
    )
