"""Traces of the Kavier prototype and of Marconi (zenodo 14970139): token counts, and maybe the tokens."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl

from kavier.workload.columns import OPTIONAL_NUMBERS, OPTIONAL_TEXT, SECONDS, TOKENS, refuse
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import AT_ONCE, Workload, make_workload

BLOCK_TOKENS = 16
_HEADER = ("num_input_tokens", "num_output_tokens")
_RULES = {
    "num_input_tokens": TOKENS,
    "num_output_tokens": TOKENS,
    "ts": SECONDS,
    "session_id": OPTIONAL_TEXT,
    "turn_id": TOKENS,
    "input_tokens": OPTIONAL_NUMBERS,
}


def _read(file: TraceFile) -> Workload:
    trace = file.table(_RULES)
    counts = {"no_timestamps": 0 if "ts" in trace.columns else len(trace)}
    frame = trace.select(
        arrival_s=pl.col("ts") if "ts" in trace.columns else pl.lit(0.0),
        prompt_tokens="num_input_tokens",
        output_tokens="num_output_tokens",
    )
    if "session_id" in trace.columns:
        frame = frame.with_columns(trace["session_id"], _parents(trace))
        if "ts" not in trace.columns:
            frame = frame.with_columns(AT_ONCE)
    if "input_tokens" in trace.columns:
        _check_lengths(trace, file)
        hashes = pl.Series(map(block_hashes, trace["input_tokens"]), dtype=pl.List(pl.UInt64()))
        frame = frame.with_columns(block_hashes=hashes, block_tokens=pl.lit(BLOCK_TOKENS))
    return make_workload(frame, source=str(file.path), format="marconi", counts=counts, place=file.place)


def block_hashes(tokens: pl.Series | None) -> list[int] | None:
    """64-bit hash of each 16-token block and all before it; of the partial block at the end too."""
    if tokens is None:
        return None
    data = tokens.to_numpy().astype("<u8").tobytes()
    size = BLOCK_TOKENS * 8
    hashes, chain = [], b""
    for start in range(0, len(data), size):
        chain = blake2b(chain + data[start : start + size], digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "little"))
    return hashes


def _parents(trace: pl.DataFrame) -> pl.Series:
    """Row of the turn before, where this prompt is long enough to hold its prompt and answer."""
    order = ["session_id", *(name for name in ("turn_id", "ts") if name in trace.columns), "row"]
    turns = trace.with_columns(row=pl.int_range(pl.len())).sort(order)
    before = turns.shift(1)
    held = before["num_input_tokens"] + before["num_output_tokens"] <= turns["num_input_tokens"]
    extends = (before["session_id"] == turns["session_id"]) & held
    parent = np.full(len(trace), -1)
    parent[turns["row"].to_numpy()] = np.where(extends.fill_null(value=False), before["row"].fill_null(0), -1)
    series = pl.Series("parent", parent)
    return series.set(series < 0, None)


def _check_lengths(trace: pl.DataFrame, file: TraceFile) -> None:
    given = trace["num_input_tokens"]
    found = trace["input_tokens"].list.len()
    refuse(found != given, given, file.at, "not the length of input_tokens")


FORMAT = Format("marconi", "CSV or Parquet with num_input_tokens, num_output_tokens", (_HEADER,), _read)
