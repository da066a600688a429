"""Qwen-Bailian traces: seconds, hashes of 16-token prefix blocks, turns that name their parent.

Specification: README of github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from kavier.workload.columns import OPTIONAL_NUMBERS, SECONDS, TOKENS, Rule, refuse
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import Workload, check_parents, make_workload, root_rows

BLOCK_TOKENS = 16
_HEADER = ("chat_id", "timestamp", "input_length", "output_length")
_PARENT = Rule(pl.Int64(), nullable=True, non_negative=False)


def _read(file: TraceFile) -> Workload:
    rules = dict(zip(_HEADER, (TOKENS, SECONDS, TOKENS, TOKENS), strict=True))
    trace = file.table({**rules, "parent_chat_id": _PARENT, "hash_ids": OPTIONAL_NUMBERS})
    frame = trace.select(arrival_s="timestamp", prompt_tokens="input_length", output_tokens="output_length")
    counts: dict[str, int] = {}
    if "hash_ids" in trace.columns:
        frame = frame.with_columns(block_hashes=trace["hash_ids"], block_tokens=pl.lit(BLOCK_TOKENS))
    if "parent_chat_id" in trace.columns:
        frame, counts = _with_sessions(frame, trace, file)
    return make_workload(frame, source=str(file.path), format="bailian", counts=counts, place=file.place)


def _with_sessions(
    frame: pl.DataFrame, trace: pl.DataFrame, file: TraceFile
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Parent rows, and as session the first chat of the chain (which the file may not hold)."""
    chats, parents = trace["chat_id"], trace["parent_chat_id"].fill_null(-1)
    refuse(~chats.is_first_distinct(), chats, file.at, "this chat was in an earlier row", "one row a chat")
    row_of = {chat: row for row, chat in enumerate(chats)}
    parent = pl.Series("parent", [row_of.get(chat) for chat in parents], dtype=pl.Int64())
    check_parents(parent, file.at)
    first = root_rows(parent)
    outside = (parents != -1).to_numpy() & parent.is_null().to_numpy()
    root_chat = np.where(outside, parents.to_numpy(), chats.to_numpy())[first]
    session = pl.Series("session_id", root_chat).cast(pl.String())
    return frame.with_columns(session, parent), {"parents_not_in_trace": int(outside.sum())}


FORMAT = Format(
    "bailian", "JSON lines with chat_id, timestamp (s), input_length, output_length", (_HEADER,), _read
)
