"""The canonical request table: what arrives, one row a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from kavier.errors import InputError
from kavier.workload.columns import At, Rule, check_column, refuse

SCHEMA: dict[str, pl.DataType] = {
    "arrival_s": pl.Float64(),
    "prompt_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "block_hashes": pl.List(pl.UInt64()),
    "block_tokens": pl.Int64(),
    "session_id": pl.String(),
    "parent": pl.Int64(),
    "think_s": pl.Float64(),
    "tenant": pl.String(),
    "model": pl.String(),
    "priority": pl.Int64(),
    "slo_class": pl.String(),
}
"""Column -> type. The first three are required, the others optional.

arrival_s: seconds >= 0; any origin. block_hashes: identities of the successive `block_tokens`-token
blocks of the prompt (the last may be partial); equal leading hashes = equal leading tokens; null where
nothing is known. block_tokens: the same in every row that has hashes.
parent: row index (0-based, in this table) of the request whose prompt and answer this prompt
extends. think_s: with `parent`, the request arrives this long after its parent has finished and
arrival_s is only nominal. priority: vLLM's, smaller is served first.
"""

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")

RULES: dict[str, Rule] = {
    name: Rule(dtype, nullable=name not in REQUIRED, non_negative=name not in ("parent", "priority"))
    for name, dtype in SCHEMA.items()
}
"""Column -> what its values may be; parents have a check of their own."""


AT_ONCE = pl.when(pl.col("parent").is_not_null()).then(0.0).alias("think_s")
"""think_s of traces without timestamps: a turn arrives as soon as the one it continues has ended."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in arrival order, and what was done to them on the way in.

    Attributes:
        requests: Table with columns of `SCHEMA`, sorted by arrival_s (stable), at least one row.
        source: File, preset or generator it came from.
        format: Name of the reader or "synthetic".
        counts: What reading changed, e.g. {"dropped_zero_output_tokens": 25, "sorted_rows": 3}; only
            what did happen.
        unread_columns: Columns of the file that its format has no use for.
    """

    requests: pl.DataFrame
    source: str
    format: str
    counts: Mapping[str, int] = field(default_factory=dict)
    unread_columns: tuple[str, ...] = ()


def row_name(row: int) -> str:
    """How errors name a row: 1-based, the header not counted."""
    return f"row {row + 1}"


def make_workload(
    frame: pl.DataFrame,
    *,
    source: str,
    format: str,
    counts: Mapping[str, int] | None = None,
    place: Callable[[int], str] = row_name,
) -> Workload:
    """Check, cast and sort a table into a `Workload`.

    Rows with zero prompt or output tokens (failed requests) are dropped and counted, rows out of
    order are sorted and counted, parents are renumbered accordingly. A parent that was dropped becomes
    null, counted in `dropped_parents`.

    Args:
        frame: Table with columns of `SCHEMA`, of these or of castable types.
        source: For errors and reports.
        format: Name of the reader.
        counts: What the reader itself changed.
        place: How errors name the row with this 0-based index.

    Raises:
        InputError: Missing or unknown column, null, NaN or negative value (row named), hashes that do
            not cover the prompt, a parent that does not exist or is its own ancestor, no request left.
    """

    def at(row: int, column: str) -> str:
        return f"{source}, {place(row)}, column {column!r}"

    check_names(frame.columns, source)
    present = [name for name in SCHEMA if name in frame.columns]
    table = pl.DataFrame([check_column(frame[name], RULES[name], at) for name in present])
    _check_blocks(table, at)
    if "parent" in present:
        check_parents(table["parent"], at)
    rows, changes = _order(table)
    if not len(rows):
        raise InputError(
            "no request left" if len(table) else "no request", where=source, expected=_why(changes)
        )
    kept = table if _is_whole(rows, len(table)) else table[rows]
    ordered, lost = _renumber_parents(kept, rows, len(table))
    all_counts = {**(counts or {}), **changes, "dropped_parents": lost}
    return Workload(ordered, source, format, {name: count for name, count in all_counts.items() if count})


def _is_whole(rows: np.ndarray, height: int) -> bool:
    """All rows in their order."""
    return len(rows) == height and bool((rows == np.arange(height)).all())


def check_names(columns: Iterable[str], where: str) -> None:
    """Columns are those of `SCHEMA` and hold the required ones.

    Raises:
        InputError: Which column is missing or unknown, and the nearest name.
    """
    unknown = [name for name in columns if name not in SCHEMA]
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise InputError(
            f"missing column {missing[0]!r}", where=where, expected=f"it beside {', '.join(columns)}"
        )
    if unknown:
        near = unknown[0], SCHEMA
        raise InputError(f"unknown column {unknown[0]!r}", where=where, expected=", ".join(SCHEMA), near=near)


def _why(changes: Mapping[str, int]) -> str:
    drops = ", ".join(f"{name} {count}" for name, count in changes.items() if count)
    return "at least one request with prompt and output tokens" + (f" ({drops})" if drops else "")


def _check_blocks(table: pl.DataFrame, at: At) -> None:
    """Hashes cover each prompt exactly, in blocks of one size."""
    if "block_hashes" not in table.columns:
        return
    hashes = table["block_hashes"]
    if "block_tokens" not in table.columns:
        refuse(
            hashes.is_not_null(), hashes, at, "block_hashes without block_tokens", "both columns or neither"
        )
        return
    size = table["block_tokens"]
    hashed = hashes.is_not_null()
    refuse(
        hashed & ~(size > 0).fill_null(value=False), size, at, "no block size", "tokens per block, at least 1"
    )
    first = size.filter(hashed).first() if hashed.any() else 0
    refuse(hashed & (size != first), size, at, "a second block size", f"{first!r}, as in the rows before")
    blocks = (table["prompt_tokens"] + size - 1) // size
    _refuse_count(hashes.list.len(), blocks, table, at)


def _refuse_count(found: pl.Series, wanted: pl.Series, table: pl.DataFrame, at: At) -> None:
    wrong = (found != wanted).fill_null(value=False).arg_true()
    if not len(wrong):
        return
    row = int(wrong[0])
    tokens, size = table["prompt_tokens"][row], table["block_tokens"][row]
    raise InputError(
        f"{found[row]} block hashes for a prompt of {tokens} tokens",
        where=at(row, "block_hashes"),
        expected=f"{wanted[row]}, one for each {size}-token block begun",
    )


def check_parents(parent: pl.Series, at: At) -> None:
    """Every parent is a row of the table, and nobody is their own ancestor.

    Raises:
        InputError: The first row where that is not so.
    """
    outside = (parent < 0) | (parent >= len(parent))
    refuse(outside, parent, at, "no such row", f"a row index from 0 to {len(parent) - 1}")
    rows = np.arange(len(parent))
    above = parent.fill_null(-1).to_numpy()
    if (above < rows).all():
        return
    roots = root_rows(parent)
    circular = roots[above[roots] >= 0]
    refuse(pl.Series(np.isin(rows, circular)), parent, at, "the request is its own ancestor", "no circles")


def root_rows(parent: pl.Series) -> np.ndarray:
    """Row of the first ancestor of every row, itself if it has none; of a circle, some row of it."""
    rows = np.arange(len(parent))
    above = parent.fill_null(pl.Series(rows)).to_numpy()
    for _ in range(len(rows).bit_length()):  # doubles the steps taken each time
        above = above[above]
    return above


def _order(table: pl.DataFrame) -> tuple[np.ndarray, dict[str, int]]:
    """Rows to keep, by arrival (stable), and how many were dropped and why, or out of order."""
    no_output = (table["output_tokens"] == 0).to_numpy()
    no_prompt = (table["prompt_tokens"] == 0).to_numpy() & ~no_output
    rows = np.flatnonzero(~no_output & ~no_prompt)
    arrival_s = table["arrival_s"].to_numpy()[rows]
    sorted_rows = int((arrival_s[1:] < arrival_s[:-1]).sum())
    return rows[np.argsort(arrival_s, kind="stable")] if sorted_rows else rows, {
        "dropped_zero_output_tokens": int(no_output.sum()),
        "dropped_zero_prompt_tokens": int(no_prompt.sum()),
        "sorted_rows": sorted_rows,
    }


def _renumber_parents(ordered: pl.DataFrame, rows: np.ndarray, height: int) -> tuple[pl.DataFrame, int]:
    """Parents as rows of the new table; null, and counted, where the parent is no longer there."""
    if "parent" not in ordered.columns:
        return ordered, 0
    new_row = np.full(height + 1, -1)  # the last entry is where "no parent" (-1) looks
    new_row[rows] = np.arange(len(rows))
    old = ordered["parent"]
    parent = pl.Series("parent", new_row[old.fill_null(-1).to_numpy()])
    parent = parent.set(parent < 0, None)
    return ordered.with_columns(parent), parent.null_count() - old.null_count()
