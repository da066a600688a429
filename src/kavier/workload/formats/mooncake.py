"""Mooncake traces (github.com/kvcache-ai/Mooncake): milliseconds, hashes of 512-token prefix blocks."""

from __future__ import annotations

import polars as pl

from kavier.units import MS_PER_S
from kavier.workload.columns import OPTIONAL_NUMBERS, SECONDS, TOKENS
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import Workload, make_workload

BLOCK_TOKENS = 512
_HEADER = ("timestamp", "input_length", "output_length")


def _read(file: TraceFile) -> Workload:
    rules = dict(zip(_HEADER, (SECONDS, TOKENS, TOKENS), strict=True))
    trace = file.table({**rules, "hash_ids": OPTIONAL_NUMBERS})
    frame = trace.select(
        # NumPy: polars divides by multiplying with the reciprocal, which is off in the last bit.
        arrival_s=pl.Series(trace["timestamp"].to_numpy() / MS_PER_S),
        prompt_tokens="input_length",
        output_tokens="output_length",
    )
    if "hash_ids" in trace.columns:
        frame = frame.with_columns(
            block_hashes=trace["hash_ids"], block_tokens=pl.lit(file.block_tokens or BLOCK_TOKENS)
        )
    return make_workload(frame, source=str(file.path), format="mooncake", place=file.place)


FORMAT = Format(
    "mooncake", "JSON lines with timestamp (ms), input_length, output_length, hash_ids", (_HEADER,), _read
)
