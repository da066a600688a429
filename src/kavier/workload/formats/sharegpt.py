"""ShareGPT-style conversations, only through token counts that the file gives: text is never guessed at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from kavier.errors import InputError
from kavier.workload.columns import OPTIONAL_TEXT, TOKENS, Rule, check_column, json_series
from kavier.workload.formats.containers import as_object
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import AT_ONCE, Workload, make_workload

_ANSWERERS = ("gpt", "assistant", "chatgpt", "model", "bing", "bard")
_PAIRS = (("prompt_tokens", "output_tokens"), ("input_tokens", "output_tokens"))
_RULES = {
    "prompt_tokens": TOKENS,
    "output_tokens": TOKENS,
    "session_id": OPTIONAL_TEXT,
    "parent": Rule(pl.Int64(), nullable=True),
}
_ADVICE = (
    "counts from your model's tokenizer (Kavier does not guess them): prompt_tokens and output_tokens in "
    "each entry, or tokens in each turn; or a trace of arrival_s, prompt_tokens, output_tokens"
)


@dataclass(frozen=True, slots=True)
class _Request:
    """One answer of a conversation; token counts as the file gives them, not yet checked."""

    place: str
    session_id: Any
    prompt_tokens: Any
    output_tokens: Any
    parent: int | None = None


def _read(file: TraceFile) -> Workload:
    where = str(file.path)
    document = file.document()
    requests: list[_Request] = []
    for number, value in enumerate(document if isinstance(document, list) else [document], 1):
        place = f"{where}, entry {number}"
        requests += _requests(as_object(value, place), place, first_row=len(requests))

    def at(row: int, column: str) -> str:
        return f"{requests[row].place}, {column!r}"

    raw = (json_series(name, [getattr(request, name) for request in requests], at) for name in _RULES)
    frame = pl.DataFrame([check_column(column, _RULES[column.name], at) for column in raw])
    frame = frame.with_columns(AT_ONCE, arrival_s=pl.lit(0.0))
    counts = {"no_timestamps": len(requests)}
    return make_workload(frame, source=where, format="sharegpt", counts=counts)


def _requests(entry: dict[str, Any], place: str, first_row: int) -> Iterator[_Request]:
    """The counted requests of one conversation: the entry's own, or one an answer."""
    for prompt, output in _PAIRS:
        if prompt in entry and output in entry:
            yield _Request(place, entry.get("id"), entry[prompt], entry[output])
            return
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        raise InputError("'conversations' is no list", where=place, expected="a list of turns")
    yield from _answers(turns, entry.get("id"), place, first_row)


def _answers(turns: list[Any], session_id: Any, place: str, first_row: int) -> Iterator[_Request]:
    """Each answer's prompt is all that was said before it."""
    said, row, parent = 0, first_row, None
    for number, value in enumerate(turns, 1):
        where = f"{place}, turn {number}"
        turn = as_object(value, where)
        tokens = _tokens(turn, where)
        if turn.get("from") in _ANSWERERS:
            yield _Request(where, session_id, said, tokens, parent)
            parent, row = row, row + 1
        said += tokens


def _tokens(turn: dict[str, Any], where: str) -> int:
    tokens = turn.get("tokens")
    if tokens is None:
        raise InputError("ShareGPT text has no token counts", where=where, expected=_ADVICE)
    if type(tokens) is not int or tokens < 0:
        raise InputError("not a token count", where=where, value=tokens, expected="a whole number >= 0")
    return tokens


FORMAT = Format("sharegpt", "JSON of conversations with token counts", (("conversations",),), _read)
