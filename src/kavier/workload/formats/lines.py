"""JSON lines of numbers, as nearly all traces are: read by the compiled code of `lines_compiled`.

Five times as fast as polars, which makes a JSON document of each line first. Whatever else a line may hold
(text to keep, a key missing or too many, keys in another order, an exponent) is left to other readers, and so
is whatever is wrong: they name it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.native.library import Library, address
from kavier.workload.formats.containers import Data, count_of

INTEGER, NUMBER, LIST, OTHER = range(4)
"""Kinds of columns. OTHER: integers, or text in plain ASCII, that nobody asked for."""

KINDS: dict[pl.DataType, int] = {pl.Int64(): INTEGER, pl.Float64(): NUMBER, pl.List(pl.UInt64()): LIST}

COLUMN = np.dtype(
    [
        ("key", "i8"),  # u1, in quotes
        ("key_bytes", "i8"),
        ("kind", "i8"),
        ("values", "i8"),  # i8, or f8 of a NUMBER, or how many of a LIST: out, one a row
    ],
    align=True,
)

LINES = np.dtype(
    [
        ("data", "i8"),  # u1, the last one a newline
        ("num_bytes", "i8"),
        ("columns", "i8"),  # in the order of their keys
        ("num_columns", "i8"),
        ("num_rows", "i8"),  # at most
        ("listed", "i8"),  # u8, out: values of all lists
        ("owners", "i8"),  # u4, out: row of each of them
        ("num_listed", "i8"),  # at most
        ("row", "i8"),  # out: rows read
        ("taken", "i8"),  # out: values of lists read
    ],
    align=True,
)

LIBRARY = Library(
    "kavier.workload.formats.lines_compiled",
    arguments=1,
    sources=(
        Path(__file__),
        Path(__file__).with_name("lines_compiled.py"),
        Path(__file__).parents[2] / "native",
    ),
    label="the reader of JSON lines (about 2 s)",
)


def lines_of_numbers(
    data: Data, columns: Sequence[str], types: Mapping[str, pl.DataType]
) -> pl.DataFrame | None:
    """The columns that are wanted; None if any line is not just numbers and one list of numbers.

    Args:
        data: The file.
        columns: Keys of every line, in their order.
        types: Wanted columns and their types.
    """
    kinds = [KINDS.get(types[name]) if name in types else OTHER for name in columns]
    if None in kinds or kinds.count(LIST) > 1:
        return None
    if data[-1:] != b"\n":
        data = b"".join((data, b"\n"))
    text = np.frombuffer(data, np.uint8)
    rows = count_of(b"\n", data)
    values = [np.empty(rows, np.float64 if kind == NUMBER else np.int64) for kind in kinds]
    keys = [np.frombuffer(json.dumps(name).encode(), np.uint8) for name in columns]
    each = zip(keys, kinds, values, strict=True)
    table = np.array([(address(key), len(key), kind, address(out)) for key, kind, out in each], COLUMN)
    most = rows + count_of(b",", data) if LIST in kinds else 0
    listed, owners = np.empty(most, np.uint64), np.empty(most, np.uint32)
    places = address(text), len(text), address(table), len(table), rows, address(listed), address(owners)
    lines = np.array([(*places, most, 0, 0)], LINES)
    if not LIBRARY.call(address(lines)):
        return None
    rows, taken = int(lines["row"][0]), int(lines["taken"][0])
    found = {name: pl.Series(out[:rows]) for name, out in zip(columns, values, strict=True)}
    if LIST in kinds:
        name = columns[kinds.index(LIST)]
        found[name] = _lists(found[name].to_numpy(), listed[:taken], owners[:taken])
    return pl.DataFrame({name: found[name] for name in types})


def _lists(lengths: NDArray[np.int64], listed: NDArray[np.uint64], owners: NDArray[np.uint32]) -> pl.Series:
    """The values, so many a row."""
    flat = pl.DataFrame({"listed": listed, "owner": pl.Series(owners).set_sorted()})
    lists = flat.group_by("owner", maintain_order=True).agg("listed")["listed"]
    if len(lists) == len(lengths):
        return lists
    filled = lengths > 0  # the others are no groups: each takes one more list, which is empty
    places = np.where(filled, np.cumsum(filled) - 1, len(lists))
    return lists.append(pl.Series([[]], dtype=lists.dtype)).gather(places)
