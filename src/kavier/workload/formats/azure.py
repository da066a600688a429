"""Azure LLM inference traces of 2023 and 2024 (github.com/Azure/AzurePublicDataset)."""

from __future__ import annotations

import polars as pl

from kavier.units import NS_PER_S
from kavier.workload.columns import SECONDS, TEXT, TOKENS, refuse
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import Workload, make_workload

_ORIGINAL = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_RENAMED = ("arrival_s", "input_tokens", "output_tokens")


def _read(file: TraceFile) -> Workload:
    header = _ORIGINAL if _ORIGINAL[0] in file.columns else _RENAMED
    rule = TEXT if header is _ORIGINAL else SECONDS
    frame = file.table(dict(zip(header, (rule, TOKENS, TOKENS), strict=True)))
    if header is _ORIGINAL and len(frame):
        frame = frame.with_columns(_seconds_since_first(frame["TIMESTAMP"], file))
    frame.columns = ["arrival_s", "prompt_tokens", "output_tokens"]
    return make_workload(frame, source=str(file.path), format="azure", place=file.place)


def _seconds_since_first(stamps: pl.Series, file: TraceFile) -> pl.Series:
    """Exact to the 100 ns of the 2023 files: whole nanoseconds are subtracted, then divided.

    The 2023 files have no zone and seven fractional digits, those of 2024 "+00:00" and up to six; without
    zone UTC is assumed, which cancels in the difference.
    """
    text = stamps.str.strip_chars().str.replace("T", " ", literal=True).str.replace(r"Z$", "+00:00")
    zoned = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", time_unit="ns", time_zone="UTC", strict=False)
    plain = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    time = zoned.fill_null(plain.dt.replace_time_zone("UTC"))
    refuse(time.is_null(), stamps, file.at, "not a time", "such as 2023-11-16 18:15:46.6805900")
    time_ns = time.dt.epoch("ns").to_numpy()
    # NumPy: polars divides by multiplying with the reciprocal, which is off in the last bit.
    return pl.Series(stamps.name, (time_ns - time_ns.min()) / NS_PER_S)


FORMAT = Format("azure", "CSV with TIMESTAMP, ContextTokens, GeneratedTokens", (_ORIGINAL, _RENAMED), _read)
