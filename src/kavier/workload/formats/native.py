"""Kavier's own trace: the columns of the canonical table, as Parquet, JSON lines or CSV."""

from __future__ import annotations

import io
from pathlib import Path

from kavier.errors import InputError
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import REQUIRED, RULES, Workload, make_workload


def _read(file: TraceFile) -> Workload:
    frame = file.table(RULES, only=True)
    return make_workload(frame, source=str(file.path), format="native", place=file.place)


FORMAT = Format("native", "Parquet, JSON lines or CSV with " + ", ".join(REQUIRED), (REQUIRED,), _read)


def write_trace(workload: Workload, path: Path) -> None:
    """Write the requests as a native trace; reading it back gives the same table.

    Args:
        workload: What to write.
        path: Ends in .parquet or .jsonl.

    Raises:
        InputError: Another suffix, or a place that cannot be written.
    """
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        workload.requests.write_parquet(buffer)
    elif path.suffix == ".jsonl":
        workload.requests.write_ndjson(buffer)
    else:
        raise InputError(
            "cannot tell the format of the trace to write", where=str(path), expected=".parquet or .jsonl"
        )
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write the trace: {error.strerror or error}", where=str(path)) from None
