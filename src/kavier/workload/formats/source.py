"""A trace file whatever its container, and what a trace format is."""

from __future__ import annotations

import gzip
import json
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from kavier.errors import InputError
from kavier.workload.columns import Rule, check_column, json_series
from kavier.workload.formats import containers
from kavier.workload.formats.lines import lines_of_numbers
from kavier.workload.table import Workload, row_name

Kind = Literal["csv", "json", "jsonl", "parquet"]


@dataclass(frozen=True, slots=True)
class TraceFile:
    """The bytes of a trace and the names of its columns.

    Attributes:
        path: Where it came from.
        kind: How the bytes are organised.
        data: The bytes, unzipped; JSON lines that lie on disk as they are: there, as a map of the file.
        columns: CSV header, Parquet columns, or keys of the first JSON record.
        block_tokens: Tokens of a hashed block, where the file does not tell; None = as its format has them.
        unread: Columns met that no reader asked for.
    """

    path: Path
    kind: Kind
    data: containers.Data
    columns: tuple[str, ...]
    block_tokens: int | None = None
    unread: dict[str, None] = field(default_factory=dict)

    def table(self, rules: Mapping[str, Rule], *, only: bool = False) -> pl.DataFrame:
        """The columns of `rules` that the file has, cast and checked.

        Args:
            rules: Column name in the file -> what it may hold.
            only: Any other column is an error.

        Raises:
            InputError: An unknown column, a line that does not parse, a bad value (row and line named).
        """
        frames, start = [], 0
        for part in self._parts(rules, only=only):
            at = partial(self._at, start)
            frames.append(pl.DataFrame([check_column(column, rules[column.name], at) for column in part]))
            start += len(part)
        return pl.concat(frames, how="diagonal")

    def document(self) -> Any:
        """The file as one JSON value.

        Raises:
            InputError: Not JSON (line named), or several documents in one file.
        """
        if self.kind not in ("json", "jsonl"):
            raise InputError(f"the file is {self.kind}", where=str(self.path), expected="JSON")
        if self.kind == "jsonl" and len(containers.filled_lines(self.data[:])) > 1:
            raise InputError(
                "several results in one file", where=str(self.path), expected="one JSON document"
            )
        return containers.parse_json(self.data[:], str(self.path))

    def place(self, row: int) -> str:
        """How errors name a row: its number, header not counted, and its line where the file has lines."""
        line = self._line(row)
        return row_name(row) + (f" (line {line})" if line else "")

    def at(self, row: int, column: str) -> str:
        """How errors name a value."""
        return self._at(0, row, column)

    def _at(self, start: int, row: int, column: str) -> str:
        return f"{self.path}, {self.place(start + row)}, column {column!r}"

    def _line(self, row: int) -> int | None:
        if self.kind == "jsonl":
            return containers.filled_lines(self.data[:])[row]
        if self.kind != "csv":
            return None
        records = containers.csv_records(self.data[:], str(self.path))
        try:
            return next((line for line, _ in islice(records, row + 1, None)), None)
        except InputError:  # a field longer than the csv module takes; the row number has to do
            return None

    def _parts(self, rules: Mapping[str, Rule], *, only: bool) -> Iterator[pl.DataFrame]:
        """The wanted columns as the file gives them; a long JSON file in several parts."""
        if self.kind in ("json", "jsonl"):
            yield from self._json_parts(rules, only=only)
            return
        names = self._wanted(self.columns, rules, only=only)
        if self.kind == "parquet":
            yield containers.parquet_frame(self.data[:], names, str(self.path))
        else:
            yield containers.csv_frame(self.data[:], self.columns, str(self.path)).select(names)

    def _json_parts(self, rules: Mapping[str, Rule], *, only: bool) -> Iterator[pl.DataFrame]:
        if self.kind == "jsonl" and (frame := self._plain_lines(rules)) is not None:
            yield frame.select(self._wanted(self.columns, rules, only=only))
            return
        start = 0
        for records in self._records():
            names = self._wanted(dict.fromkeys(chain.from_iterable(records)), rules, only=only)
            at = partial(self._at, start)
            yield pl.DataFrame([json_series(name, [r.get(name) for r in records], at) for name in names])
            start += len(records)

    def _plain_lines(self, rules: Mapping[str, Rule]) -> pl.DataFrame | None:
        """By the fastest reader that can."""
        types = self._types(rules)
        frame = lines_of_numbers(self.data, self.columns, types)
        if frame is None and set(self.columns) <= set(rules):
            return containers.plain_json_lines(self.path, self.data, types)
        return frame

    def _types(self, rules: Mapping[str, Rule]) -> dict[str, pl.DataType]:
        return {name: rule.dtype for name, rule in rules.items() if name in self.columns}

    def _records(self) -> Iterator[list[dict[str, Any]]]:
        where = str(self.path)
        if self.kind == "jsonl":
            yield from containers.json_lines(self.data[:], where)
            return
        document = self.document()
        entries = document if isinstance(document, list) else [document]
        yield [containers.as_object(entry, f"{where}, {row_name(row)}") for row, entry in enumerate(entries)]

    def _wanted(self, columns: Iterable[str], rules: Mapping[str, Rule], *, only: bool) -> list[str]:
        unknown = [name for name in columns if name not in rules]
        if only and unknown:
            raise InputError(
                f"unknown column {unknown[0]!r}",
                where=str(self.path),
                expected=", ".join(rules),
                near=(unknown[0], rules),
            )
        self.unread.update(dict.fromkeys(unknown))
        return [name for name in rules if name in columns]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write down a trace.

    Attributes:
        name: What `--format` calls it.
        shape: What such a file looks like, in a few words.
        headers: Sets of columns; a file that has all columns of one of them may be of this format.
        read: Turns such a file into a workload; other columns than those it knows are not read.
    """

    name: str
    shape: str
    headers: tuple[tuple[str, ...], ...]
    read: Callable[[TraceFile], Workload]


def open_trace(path: Path) -> TraceFile:
    """Read the bytes and find out how they are organised.

    Raises:
        InputError: Missing, unreadable, empty or binary file, or JSON that does not parse.
    """
    data = _contents(path)
    if isinstance(data, mmap.mmap):
        _refuse_binary(data, path)
        return _open_json(path, data, 0)
    data = _unzipped(data, str(path)).removeprefix(b"\xef\xbb\xbf")
    if not data or data.isspace():
        raise InputError("the trace is empty", where=str(path))
    if data.startswith(b"PAR1"):
        return TraceFile(path, "parquet", data, containers.parquet_header(data, str(path)))
    _refuse_binary(data, path)
    if (start := _NO_SPACE.search(data)) and start.group() in (b"{", b"["):
        return _open_json(path, data, start.start())
    return TraceFile(path, "csv", data, containers.csv_header(data, str(path)))


def _contents(path: Path) -> containers.Data:
    """What may be JSON is not copied to memory: polars reads JSON lines faster from the disk."""
    try:
        with path.open("rb") as file:
            if path.is_file() and file.peek(1).startswith(b"{"):
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read the trace: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read the trace: {error}", where=str(path)) from None


def _refuse_binary(data: containers.Data, path: Path) -> None:
    if b"\0" in data[:4096]:
        raise InputError("a binary file", where=str(path), expected="CSV, JSON, JSON lines or Parquet")


def _unzipped(data: bytes, where: str) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"not valid gzip: {error}", where=where) from None


_NO_SPACE = re.compile(rb"\S")


def _open_json(path: Path, data: containers.Data, start: int) -> TraceFile:
    """JSON lines if the first line is a whole object, else one document."""
    end = data.find(b"\n", start)
    try:
        first = json.loads(data[start : None if end < 0 else end])
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict):
        return TraceFile(path, "jsonl", data, tuple(first))
    data = data[:]
    document = containers.parse_json(data, str(path))
    entry = document[0] if isinstance(document, list) and document else document
    return TraceFile(path, "json", data, tuple(containers.as_object(entry, str(path))))
