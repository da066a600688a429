"""Bytes to columns: CSV, JSON, JSON lines and Parquet, each error with the line it is on."""

from __future__ import annotations

import csv
import io
import json
import mmap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from kavier.errors import InputError

Data: TypeAlias = bytes | mmap.mmap
"""A file's bytes, in memory or where they lie on disk; sliced, they are in memory."""

# Polars panics, which is no Exception, on some damaged files.
_PARQUET_FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def csv_header(data: bytes, where: str) -> tuple[str, ...]:
    """Names in the first line, stripped.

    Raises:
        InputError: Two columns of one name, or columns that no comma separates.
    """
    _, fields = next(csv_records(data.split(b"\n", 1)[0], where), (1, []))
    names = tuple(name.strip() for name in fields)
    if len(names) == 1 and (separators := [mark for mark in ";\t|" if mark in names[0]]):
        where = f"{where}, line 1"
        raise InputError("columns that no comma separates", where=where, value=separators[0], expected="','")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two columns are called {twice[0]!r}", where=f"{where}, line 1")
    return names


def csv_frame(data: bytes, header: Sequence[str], where: str) -> pl.DataFrame:
    """All columns as text, empty fields as null; blank lines are no rows.

    Raises:
        InputError: A line with more fields than the header, text that is not UTF-8.
    """
    try:
        frame = pl.read_csv(data, has_header=False, skip_rows=1, new_columns=list(header), infer_schema=False)
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(header, pl.String()))
    except pl.exceptions.PolarsError:
        return _slow_csv_frame(data, header, where)
    whole = (
        frame.width == len(header) and not frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()
    )
    return frame if whole else _slow_csv_frame(data, header, where)


def _slow_csv_frame(data: bytes, header: Sequence[str], where: str) -> pl.DataFrame:
    """Line by line: names the line that is wrong, and tells blank lines from empty fields."""
    rows = []
    for line, fields in islice(csv_records(data, where), 1, None):
        if len(fields) > len(header):
            raise InputError(
                f"{len(fields)} fields", where=f"{where}, line {line}", expected=f"{len(header)}"
            )
        rows.append([field or None for field in fields] + [None] * (len(header) - len(fields)))
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String()), orient="row")


def csv_records(data: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """(line a record ends on, its fields), header first, blank lines left out.

    Raises:
        InputError: Not UTF-8, or quotes that do not close.
    """
    reader = csv.reader(io.StringIO(_text(data, where), newline=""))
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except csv.Error as error:
        raise InputError(f"not valid CSV: {error}", where=f"{where}, line {reader.line_num}") from None


def parquet_header(data: bytes, where: str) -> tuple[str, ...]:
    """Column names.

    Raises:
        InputError: A damaged file.
    """
    try:
        return tuple(pl.read_parquet_schema(io.BytesIO(data)))
    except _PARQUET_FAILURES as error:
        raise InputError(f"not valid Parquet: {_first_line(error)}", where=where) from None


def parquet_frame(data: bytes, columns: Sequence[str], where: str) -> pl.DataFrame:
    """Some columns.

    Raises:
        InputError: A damaged file.
    """
    try:
        return pl.read_parquet(io.BytesIO(data), columns=list(columns))
    except _PARQUET_FAILURES as error:
        raise InputError(f"not valid Parquet: {_first_line(error)}", where=where) from None


def parse_json(text: bytes, where: str, first_line: int = 1) -> Any:
    """One JSON value; `first_line` is the line of the file that `text` begins on.

    Raises:
        InputError: Not JSON, line named.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"not valid JSON: {error.msg}", where=f"{where}, line {line}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=f"{where}, line {first_line}") from None


def filled_lines(data: bytes) -> list[int]:
    """Numbers, from 1, of the lines that are not blank."""
    return [number for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def plain_json_lines(path: Path, data: Data, types: dict[str, pl.DataType]) -> pl.DataFrame | None:
    """Lines that all have these columns, no others, and values of these types; None if any has not.

    Six times as fast as `json_lines`, but does not tell what is wrong; where no line holds text, `lines` is
    faster still. Polars copies bytes in memory, but not a file; by its path it would be a pattern of names.
    """
    try:
        with path.open("rb") if isinstance(data, mmap.mmap) else io.BytesIO(data) as source:
            frame = pl.read_ndjson(source, schema=types)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return None
    # As many keys as values, and no value missing: so no line has a key of another name.
    whole = count_of(b":", data) == frame.height * frame.width
    return frame if whole and not frame.select(pl.sum_horizontal(pl.all().null_count())).item() else None


def count_of(character: bytes, data: Data) -> int:
    """How often a character of one byte occurs; in pieces that stay in the processor's cache."""
    found = np.frombuffer(data, np.uint8)
    pieces = (found[first : first + _PIECE] for first in range(0, len(found), _PIECE))
    return sum(int(np.count_nonzero(piece == ord(character))) for piece in pieces)


_PIECE = 1 << 17


def json_lines(data: bytes, where: str, chunk_lines: int = 65536) -> Iterator[list[dict[str, Any]]]:
    """Records in chunks, so that a long trace is never all Python objects at once.

    Raises:
        InputError: A line that is not a JSON object.
    """
    lines = ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    while chunk := list(islice(lines, chunk_lines)):
        yield _records_at_once([line for _, line in chunk]) or [
            as_object(parse_json(line, where, number), f"{where}, line {number}") for number, line in chunk
        ]


def _records_at_once(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """One record a line, parsed in one go (three times as fast); None if any line is not just that."""
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    whole = len(records) == len(lines) and all(isinstance(record, dict) for record in records)
    return records if whole else None


def as_object(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(value, dict):
        raise InputError(
            "not a JSON object", where=where, value=repr(value)[:60], expected='{"key": value, ...}'
        )
    return value


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError("not UTF-8 text", where=f"{where}, line {line}") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
