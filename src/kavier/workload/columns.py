"""What one column may hold: a cast and a check that name the row of the first bad value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from kavier.errors import InputError

At = Callable[[int, str], str]
"""(0-based row, column) -> its place as errors name it, e.g. "t.csv, row 3 (line 4), column 'ts'"."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Type and range of a column; with `non_negative`, a number below zero is an error.

    With `finite`, NaN and the infinities are errors.
    """

    dtype: pl.DataType
    nullable: bool = False
    non_negative: bool = True
    finite: bool = True


SECONDS = Rule(pl.Float64())
TOKENS = Rule(pl.Int64())
TEXT = Rule(pl.String())
OPTIONAL_TEXT = Rule(pl.String(), nullable=True)
OPTIONAL_NUMBERS = Rule(pl.List(pl.UInt64()), nullable=True)

_LISTS = OPTIONAL_NUMBERS.dtype
_NAMES = {
    pl.Float64(): "a number",
    pl.Int64(): "a whole number",
    pl.String(): "text",
    pl.Boolean(): "true or false",
    _LISTS: "a list of whole numbers from 0 to 2^64 - 1",
}
_FAILURES = (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError)


def check_column(series: pl.Series, rule: Rule, at: At) -> pl.Series:
    """The series as `rule.dtype`, every value checked.

    Args:
        series: Values as the file gave them; text is parsed, lists may be JSON text.
        rule: What is allowed.
        at: Names the place of a row.

    Raises:
        InputError: A value that is missing, not of the type, NaN, infinite or negative.
    """
    cast = _cast(series, rule.dtype, at)
    if not rule.nullable:
        refuse(cast.is_null(), series, at, "no value", _wanted(rule))
    if rule.dtype == pl.Float64() and rule.finite:
        refuse(~cast.is_finite(), series, at, "not a finite number", _wanted(rule))
    if rule.non_negative and rule.dtype.is_numeric():
        refuse(cast < 0, series, at, "negative value", _wanted(rule))
    return cast


def refuse(mask: pl.Series, series: pl.Series, at: At, problem: str, expected: str | None = None) -> None:
    """Raise an `InputError` about the first row where `mask` is true, if there is one."""
    rows = mask.fill_null(value=False).arg_true()
    if len(rows):
        row = int(rows[0])
        raise InputError(problem, where=at(row, series.name), value=_short(series[row]), expected=expected)


def json_series(name: str, values: list[Any], at: At) -> pl.Series:
    """A polars series of values that came out of a JSON parser.

    Raises:
        InputError: An object, a truth value, a number beyond 64 bits, or values of different kinds.
    """
    kinds = set(map(type, values)) - {type(None)}
    for allowed, dtype in _JSON_DTYPES:
        if kinds <= allowed:
            return _build(name, values, dtype, at)
    row = _odd_one_out(values)
    raise InputError("value of an unexpected kind", where=at(row, name), value=_short(values[row]))


_JSON_DTYPES: tuple[tuple[set[type], pl.DataType], ...] = (
    ({int}, pl.Int64()),
    ({int, float}, pl.Float64()),
    ({str}, pl.String()),
    ({list}, _LISTS),
    ({bool}, pl.Boolean()),
)


def _odd_one_out(values: list[Any]) -> int:
    """First value of a kind no column has, or of another kind than the first value."""
    kinds = [float if type(value) is int else type(value) for value in values]
    first = next(kind for kind in kinds if kind is not type(None))
    usual = first if first in (float, str, list) else None
    return next(i for i, kind in enumerate(kinds) if kind not in (usual, type(None)))


def _build(name: str, values: list[Any], dtype: pl.DataType, at: At) -> pl.Series:
    try:
        return pl.Series(name, values, dtype=dtype)
    except _FAILURES:
        row = next(i for i, value in enumerate(values) if not _fits(value, dtype))
    raise InputError(
        "value not understood", where=at(row, name), value=_short(values[row]), expected=_NAMES[dtype]
    )


def _fits(value: object, dtype: pl.DataType) -> bool:
    try:
        pl.Series([value], dtype=dtype)
    except _FAILURES:
        return False
    return True


def _cast(series: pl.Series, dtype: pl.DataType, at: At) -> pl.Series:
    if dtype == _LISTS:
        return _cast_lists(series, at)
    if series.dtype == dtype:
        return series
    if dtype == pl.Boolean():
        return _cast_flags(series, at)
    if series.dtype.is_nested() or series.dtype in (pl.Boolean, pl.Object, pl.Binary):
        raise InputError(f"values of type {series.dtype}", where=at(0, series.name), expected=_NAMES[dtype])
    cast = _cast_scalars(series, dtype)
    refuse(cast.is_null() & series.is_not_null(), series, at, f"not {_NAMES[dtype]}")
    return cast


def _cast_scalars(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Null where a value has no equal of the type."""
    values = series if series.dtype.is_numeric() else series.cast(pl.String()).str.strip_chars()
    if dtype != pl.Int64() or series.dtype.is_integer():
        return values.cast(dtype, strict=False)
    floats = values.cast(pl.Float64(), strict=False)
    whole = floats.set(~(floats == floats.floor()), None).cast(dtype, strict=False)
    exact = values.cast(dtype, strict=False) if values.dtype == pl.String else whole
    return exact.zip_with(exact.is_not_null(), whole)


_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _cast_flags(series: pl.Series, at: At) -> pl.Series:
    """Truth values as CSV files write them."""
    words = series.cast(pl.String(), strict=False).str.strip_chars().str.to_lowercase()
    flags = words.replace_strict(_FLAGS, default=None, return_dtype=pl.Boolean())
    refuse(flags.is_null() & series.is_not_null(), series, at, f"not {_NAMES[pl.Boolean()]}")
    return flags


def _cast_lists(series: pl.Series, at: At) -> pl.Series:
    if series.dtype == pl.String:
        series = _parse_lists(series, at)
    inner = getattr(series.dtype, "inner", None)
    if series.null_count() == len(series):
        return pl.Series(series.name, [None] * len(series), dtype=_LISTS)
    if inner == pl.Null:
        return series.cast(_LISTS)
    if inner is None or not inner.is_integer():
        raise InputError(f"values of type {series.dtype}", where=at(0, series.name), expected=_NAMES[_LISTS])
    cast = series.cast(_LISTS, strict=False)
    if cast.explode(empty_as_null=False, keep_nulls=False).null_count():
        holes = cast.list.drop_nulls().list.len() != cast.list.len()  # 0.4 us a row
        refuse(holes, series, at, "a missing or impossible value in the list", _NAMES[_LISTS])
    return cast


def _parse_lists(series: pl.Series, at: At) -> pl.Series:
    """Lists written as JSON text, e.g. "[12, 7]"."""
    values = [text and _parse(text) for text in series]
    if not any(isinstance(value, list) for value in values):
        return _build(series.name, values, _LISTS, at)
    return json_series(series.name, values, at)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _wanted(rule: Rule) -> str:
    return _NAMES[rule.dtype] + (" >= 0" if rule.non_negative and rule.dtype.is_numeric() else "")


def _short(value: object) -> object:
    """The value, or the start of its text when it is long."""
    plain = value.to_list() if isinstance(value, pl.Series) else value
    text = repr(plain)
    return plain if len(text) <= 80 else text[:77] + "..."
