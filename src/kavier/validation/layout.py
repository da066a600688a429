"""Where a file keeps what a comparison needs: a small declarative mapping of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, StringConstraints, field_validator

from kavier.errors import InputError, one_of
from kavier.scenario import Count, Positive, Section
from kavier.workload.columns import OPTIONAL_TEXT, At, Rule, refuse
from kavier.workload.formats.source import TraceFile, open_trace

FLAG = Rule(pl.Boolean(), nullable=True)
NUMBER = Rule(pl.Float64(), nullable=True, non_negative=False, finite=False)
"""Whether a value is missing or makes sense is judged once rows are chosen and columns have their names."""

Text = Annotated[str, StringConstraints(min_length=1)]
Wanted = str | float | tuple[str | float, ...]


class Column(Section):
    """Where a quantity is found: a column's numbers times `scale`.

    With `pattern`, the number that its first group finds in text; with `numbers`, that which the text
    stands for. `fill_by`: where there is none (or 0), the median of the rows that are equal in that column.
    """

    column: Text
    scale: Positive = 1.0
    pattern: str | None = None
    numbers: Mapping[str, float] | None = None
    fill_by: Text | None = None

    @field_validator("pattern")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if groups != 1:
            raise ValueError("a pattern needs one group, around the number")
        return pattern


def _named(given: object) -> object:
    return {"column": given} if isinstance(given, str) else given


ColumnSpec = Annotated[Column, BeforeValidator(_named)]


class Hashes(Section):
    """Block hashes that lie in a file of their own, one row a request.

    `by`: column that both files have. Fewer hashes than blocks begun: the rest are no other request's.
    """

    file: Path
    by: Text
    column: Text = "hash_ids"
    block_tokens: Count = 16


class Rows(Section):
    """Rows of a file: those whose columns hold the values of `where` (one of several where it is a list)."""

    file: Path
    where: Mapping[str, Wanted] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of an open file.

    Attributes:
        file: The file.
        rows: Their indices in it, from 0 on; None = all.
    """

    file: TraceFile
    rows: NDArray[np.int64] | None = None

    def column(self, spec: Column, rule: Rule = NUMBER) -> pl.Series:
        """One column, as `spec` says.

        Raises:
            InputError: No such column, a value that is not understood (row named).
        """
        if spec.pattern or spec.numbers:
            values = _numbers(self.raw(spec.column, OPTIONAL_TEXT), spec, self.at)
        else:
            values = self.raw(spec.column, rule)
        if spec.scale != 1:
            values = values.cast(pl.Float64()) * spec.scale
        return values if spec.fill_by is None else self._filled(values, spec.fill_by)

    def plain(self, rules: Mapping[str, Rule]) -> pl.DataFrame:
        """Columns as the file gives them, all in one reading.

        Raises:
            InputError: A value that is not understood (row named).
        """
        frame = self.file.table(rules)
        return frame if self.rows is None else frame[self.rows]

    def raw(self, name: str, rule: Rule) -> pl.Series:
        """A column as the file gives it.

        Raises:
            InputError: As `column`.
        """
        if name not in self.file.columns:
            where, near = str(self.file.path), (name, self.file.columns)
            raise InputError(f"no column {name!r}", where=where, near=near)
        return self.plain({name: rule})[name]

    def at(self, row: int, column: str) -> str:
        """How errors name a value of these rows."""
        return self.file.at(self._row(row), column)

    def place(self, row: int) -> str:
        """How errors name one of these rows."""
        return self.file.place(self._row(row))

    def only(self, rows: NDArray[np.int64]) -> Chosen:
        """Some of these rows, in this order."""
        return Chosen(self.file, rows if self.rows is None else self.rows[rows])

    def _row(self, row: int) -> int:
        return row if self.rows is None else int(self.rows[row])

    def _filled(self, values: pl.Series, key: str) -> pl.Series:
        frame = pl.DataFrame({"value": values.set(values == 0, None), "key": self.raw(key, OPTIONAL_TEXT)})
        usual = pl.col("value").median().over("key").round()
        return frame.select(pl.col("value").fill_null(usual).fill_null(0)).to_series()


def choose(selection: Rows, root: Path) -> Chosen:
    """Open a file and choose its rows.

    Args:
        selection: Which.
        root: Where its path is taken from.

    Raises:
        InputError: The file cannot be read, has no such column, or no such row.
    """
    every = Chosen(open_trace(root / selection.file))
    masks = [_is_wanted(every, name, wanted) for name, wanted in selection.where.items()]
    if not masks:
        return every
    rows = pl.select(pl.all_horizontal(*masks)).to_series().arg_true().to_numpy().astype(np.int64)
    if not len(rows):
        raise InputError("no row is all that `where` asks for", where=str(every.file.path))
    return Chosen(every.file, rows)


def _is_wanted(every: Chosen, name: str, wanted: Wanted) -> pl.Series:
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    numbers = [value for value in values if not isinstance(value, str)]
    found = every.raw(name, NUMBER if len(numbers) == len(values) else OPTIONAL_TEXT)
    mask = found.is_in(numbers if found.dtype == pl.Float64 else list(map(str, values)))
    if not mask.any():
        where, near = str(every.file.path), (str(values[0]), map(str, found.drop_nulls().unique()))
        raise InputError(f"no row whose {name} is {one_of(map(repr, values))}", where=where, near=near)
    return mask


def _numbers(words: pl.Series, spec: Column, at: At) -> pl.Series:
    """Numbers that text holds or stands for."""
    name = words.name
    if spec.pattern:
        words = words.str.extract(spec.pattern)
    if spec.numbers:
        found = words.replace_strict(dict(spec.numbers), default=None, return_dtype=pl.Float64())
    else:
        found = words.cast(pl.Float64(), strict=False)
    refuse(found.is_null(), words.rename(name), at, "no number", spec.pattern or "one of `numbers`")
    return found
