"""Compiled: JSON lines of numbers. Traces have hundreds of megabytes of them.

Functions take the file and a place in it, and answer a value and the place behind it, which is -1 when the
text is not what they read.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from kavier.native.kit import FLOAT64, INT8, INT32, INT64, Integer, at, decorators
from kavier.workload.formats.lines import COLUMN, INTEGER, LINES, LIST, NUMBER

Lines: TypeAlias = Any
Column: TypeAlias = Any
Found: TypeAlias = tuple[Integer, Integer]

compiled, inlined = decorators({"Lines": LINES, "Column": COLUMN})

TAB, NEWLINE, RETURN, SPACE, QUOTE, COMMA, MINUS, POINT = b'\t\n\r ",-.'
ZERO, ONE, NINE, COLON, BRACKET, BACKSLASH, CLOSED, BRACE, CLOSING, DELETE = b"019:[\\]{}\x7f"

BLANKS = 1 << TAB | 1 << RETURN | 1 << SPACE
"""Bits of the characters between the parts of a line."""

EXACT = 2**53
"""Integers up to here, and powers of ten up to the 22nd, are doubles: to divide them rounds once."""

LONGEST = 18
"""Digits that any 64-bit integer has room for."""

TEN_TO_19 = 10**19 - 2**64
"""As a signed number."""


@inlined
def _byte(c: Lines, place: Integer) -> Integer:
    """Nothing reads on behind a newline, and the last byte is one."""
    return at(c.data, c.num_bytes, place, INT8).value


@inlined
def _behind_spaces(c: Lines, place: Integer) -> Integer:
    byte = _byte(c, place)
    while byte <= SPACE and BLANKS >> byte & 1:
        place += 1
        byte = _byte(c, place)
    return place


@inlined
def _behind(c: Lines, place: Integer, mark: Integer) -> Integer:
    """Behind a character with blanks around it."""
    place = _behind_spaces(c, place)
    return _behind_spaces(c, place + 1) if _byte(c, place) == mark else -1


@inlined
def _behind_key(c: Lines, column: Column, place: Integer) -> Integer:
    for i in range(column.key_bytes):
        if _byte(c, place + i) != at(column.key, column.key_bytes, i, INT8).value:
            return -1
    return _behind(c, place + column.key_bytes, COLON)


@inlined
def _digits(c: Lines, place: Integer) -> Found:
    """At least one, and no zero before others; what is beyond 64 bits is lost."""
    value, first = 0, place
    byte = _byte(c, place)
    while ZERO <= byte <= NINE:
        value = value * 10 + (byte - ZERO)
        place += 1
        byte = _byte(c, place)
    if place == first or (place > first + 1 and _byte(c, first) == ZERO):
        return 0, -1
    return value, place


@inlined
def _unsigned(c: Lines, place: Integer) -> Found:
    """Up to 2^64 - 1, as the signed number of the same bits."""
    value, end = _digits(c, place)
    count = end - place
    if count <= LONGEST + 1:  # -1 as well
        return value, end
    whole = count == LONGEST + 2 and _byte(c, place) == ONE and TEN_TO_19 <= value < 0
    return value, end if whole else -1


@inlined
def _signed(c: Lines, place: Integer) -> Found:
    negative = _byte(c, place) == MINUS
    first = place + 1 if negative else place
    value, end = _digits(c, first)
    return -value if negative else value, end if end - first <= LONGEST else -1


@compiled
def _listed(c: Lines, place: Integer) -> Integer:
    """A list of unsigned integers: behind its end."""
    place = _behind(c, place, BRACKET)
    if place < 0 or _byte(c, place) == CLOSED:
        return place + 1 if place >= 0 else -1
    while True:
        value, place = _unsigned(c, place)
        if place < 0:
            return -1
        at(c.listed, c.num_listed, c.taken, INT64).value = value
        at(c.owners, c.num_listed, c.taken, INT32).value = c.row
        c.taken += 1
        place = _behind_spaces(c, place)
        byte = _byte(c, place)
        if byte == CLOSED:
            return place + 1
        if byte != COMMA:
            return -1
        place = _behind_spaces(c, place + 1)


@inlined
def _double(c: Lines, column: Column, place: Integer) -> Integer:
    """A decimal number that is rounded right in one step."""
    whole, end = _signed(c, place)
    target = at(column.values, c.num_rows, c.row, FLOAT64)
    target.value = float(whole)
    if end < 0 or _byte(c, end) != POINT:
        return end
    value, scale, end = whole if whole > 0 else -whole, 1.0, end + 1
    first, byte = end, _byte(c, end)
    while ZERO <= byte <= NINE and value < EXACT:
        value, scale = value * 10 + (byte - ZERO), scale * 10.0
        end += 1
        byte = _byte(c, end)
    if end == first or value >= EXACT or end - first > 22:
        return -1
    target.value = -(value / scale) if _byte(c, place) == MINUS else value / scale
    return end


@inlined
def _other(c: Lines, place: Integer) -> Integer:
    """Text in plain ASCII without backslashes, or an integer."""
    if _byte(c, place) != QUOTE:
        _, place = _signed(c, place)
        return place
    place += 1
    byte = _byte(c, place)
    while byte != QUOTE:
        if byte < SPACE or byte >= DELETE or byte == BACKSLASH:
            return -1
        place += 1
        byte = _byte(c, place)
    return place + 1


@compiled
def _value(c: Lines, column: Column, place: Integer) -> Integer:
    if column.kind == LIST:
        taken = c.taken
        place = _listed(c, place)
        at(column.values, c.num_rows, c.row, INT64).value = c.taken - taken
        return place
    if column.kind == NUMBER:
        return _double(c, column, place)
    if column.kind == INTEGER:
        value, place = _signed(c, place)
        at(column.values, c.num_rows, c.row, INT64).value = value
        return place
    return _other(c, place)


@compiled
def _line(c: Lines, place: Integer) -> Integer:
    """One object, with every column in its turn."""
    mark = BRACE
    for i in range(c.num_columns):
        column = at(c.columns, c.num_columns, i, COLUMN)
        place = _behind(c, place, mark)
        if place >= 0:
            place = _behind_key(c, column, place)
        if place >= 0:
            place = _value(c, column, place)
        if place < 0:
            return -1
        mark = COMMA
    return _behind(c, place, CLOSING)


def dispatch(lines: int) -> int:
    """Whether all lines were read; see `lines`."""
    c = at(lines, 1, 0, LINES)
    place = 0
    while place < c.num_bytes:
        place = _behind_spaces(c, place)
        if _byte(c, place) != NEWLINE:
            place = _line(c, place)
            if place < 0 or _byte(c, place) != NEWLINE:
                return 0
            c.row += 1
        place += 1
    return 1
