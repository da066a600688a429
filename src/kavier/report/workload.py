"""What a workload looks like, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kavier.workload.statistics import describe
from kavier.workload.table import Workload


def print_info(workload: Workload, *, json: bool) -> None:
    """Counts, rate, burstiness, lengths, sessions, and what an infinite prefix cache would hit."""
    described = describe(workload)
    if json:
        print(json_module.dumps(described, indent=2))
        return
    console = Console(highlight=False)
    console.print(Text(described["source"], "bold"), f" format {described['format']}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for label, text in _lines(described):
        table.add_row(label, text)
    console.print(table)


def print_written(workload: Workload, out: Path) -> None:
    """One line: what was written where, and what reading changed."""
    changes = "".join(f"; {name.replace('_', ' ')}: {count:,}" for name, count in workload.counts.items())
    print(f"{len(workload.requests):,} requests written to {out}{changes}")


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
    for column in ("prompt_tokens", "output_tokens"):
        lengths = described[column]
        points = "  ".join(f"{name} {lengths[name]:,.0f}" for name in ("mean", "p50", "p90", "p99", "max"))
        lines.append((column.replace("_", " "), f"{points}  total {lengths['total']:,}"))
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
        f"{prefix['distinct_blocks']:,} distinct; "
        f"an infinite cache hits {prefix['infinite_cache_hit_ratio_blocks']:.1%} of blocks, "
        f"{prefix['infinite_cache_hit_ratio_tokens']:.1%} of prompt tokens"
    )
