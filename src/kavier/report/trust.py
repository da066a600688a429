"""How far to trust a result, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from kavier.report.amounts import counted

LABELS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "throughput": "throughput", "energy": "energy"}

UNPREDICTABLE = 0.5
"""Expected error from which on a metric counts as not predicted."""

LIMITS = {
    "burst": "what arrives; while it came, requests piled up",
    "arrivals": "what arrives; a replica could serve more",
    "clients": "the clients (max_concurrency); a replica could serve more",
    "seats": "the batch, which is full (max_num_seqs)",
    "kv_blocks": "KV memory, which is full",
    "token_budget": "the tokens of a step (max_num_batched_tokens)",
    "bandwidth": "the GPU's memory bandwidth; a larger batch would hardly serve more",
    "compute": "the GPU's compute; a larger batch would hardly serve more",
    "overheads": "launches, links and host; a larger batch would hardly serve more",
}
"""`limited_by` -> in words."""


def trust_table(summary: Mapping[str, Any]) -> Table:
    """Expected errors, load, and the nearest of what was validated."""
    trust = summary["trust"]
    table = _table(f"How far to trust this: step times at level {trust['timing_level']!r}.")
    for label, words in _lines(trust):
        table.add_row(label, Text(words))
    return table


def notes_table(summary: Mapping[str, Any]) -> Table:
    """Everything that was assumed, line by line."""
    engine, table = summary["engine"], _table()
    played = "played by the compiled engine"
    if engine["why"]:
        played = f"played by the reference engine: {engine['why']}"
    for note in (played, *summary["trust"]["notes"]):
        table.add_row("-", Text(note), style="dim")
    return table


def _lines(trust: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if expected := trust["expected_error"]:
        sizes = ", ".join(f"{LABELS[name]} {_size(error)}" for name, error in expected.items())
        yield "Expected error", f"{sizes} (one standard deviation)"
    if trust["limited_by"]:
        yield "Load factor", f"{trust['load_factor']:.2f}, limited by {LIMITS[trust['limited_by']]}"
    if near := trust["nearest"]:
        several = near["runs"] > 1
        errors = ", ".join(
            f"{LABELS[name]} {error['median']:.1%}{_direction(error, several=several)}"
            for name, error in near["errors"].items()
        )
        runs = counted(near["runs"], "measured run")
        yield "Nearest validated", f"{near['case']}: median error of {runs} {errors}"
        yield "Differs by", "; ".join(near["differs"]) or "nothing that step times hang on"


ONE_SIDED = 0.5
"""Bias / median error from which on its direction is said."""


def _direction(error: Mapping[str, float], *, several: bool) -> str:
    if abs(error["bias"]) <= ONE_SIDED * error["median"]:
        return ""
    return f" ({'mostly ' if several else ''}too {'long' if error['bias'] > 0 else 'short'})"


def _size(error: float) -> str:
    return "not predictable" if error >= UNPREDICTABLE else f"{error:.0%}" if error >= 0.01 else "<1%"


def _table(title: str | None = None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False, title_justify="left")
    table.title = Text(title, "bold not italic") if title else None
    return table
