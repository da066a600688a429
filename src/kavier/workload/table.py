"""The canonical request table: what arrives, one row a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from kavier.errors import InputError

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

arrival_s: seconds; any origin. block_hashes: identities of the successive `block_tokens`-token
blocks of the prompt (the last may be partial); equal leading hashes = equal leading tokens.
parent: row index (0-based, in this table) of the request whose prompt and answer this prompt
extends. think_s: with `parent`, the request arrives this long after its parent has finished and
arrival_s is only nominal. priority: vLLM's, smaller is served first.
"""

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in arrival order, and what was done to them on the way in.

    Attributes:
        requests: Table with columns of `SCHEMA`, sorted by arrival_s (stable), at least one row.
        source: File, preset or generator it came from.
        format: Name of the reader or "synthetic".
        counts: What reading changed, e.g. {"dropped_zero_output": 25, "sorted_rows": 3}.
    """

    requests: pl.DataFrame
    source: str
    format: str
    counts: Mapping[str, int] = field(default_factory=dict)


def make_workload(
    frame: pl.DataFrame, *, source: str, format: str, counts: Mapping[str, int] | None = None
) -> Workload:
    """Check, cast and sort a table into a `Workload`.

    Rows with zero prompt or output tokens (failed requests) are dropped and counted, rows out of
    order are sorted and counted, parents are renumbered accordingly.

    Raises:
        InputError: Missing or unknown column, null, NaN or negative value (row named), or no request left.
    """
    raise NotImplementedError
