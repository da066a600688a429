"""The compiled reader of JSON lines reads what the others read, and leaves to them what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kavier.errors import InputError
from kavier.workload.columns import OPTIONAL_NUMBERS, SECONDS, TOKENS, Rule
from kavier.workload.formats.lines import lines_of_numbers
from kavier.workload.formats.source import TraceFile

RULES = {
    "at": SECONDS,
    "tokens": TOKENS,
    "parent": Rule(pl.Int64(), nullable=True, non_negative=False),
    "hashes": OPTIONAL_NUMBERS,
}
TYPES = {name: rule.dtype for name, rule in RULES.items()}


def lines(*values: str, key: str = "at", end: str = "\n") -> bytes:
    return "".join(f'{{"{key}": {value}}}{end}' for value in values).encode()


def outcome(text: bytes, columns: tuple[str, ...]) -> tuple[object, ...]:
    """What is read, or how it is refused."""
    file = TraceFile(Path("t.jsonl"), "jsonl", text, columns)
    try:
        frame = file.table(RULES)
    except InputError as error:
        return (str(error),)
    return frame.schema, frame.rows(), tuple(file.unread)


def check_alike(text: bytes, columns: tuple[str, ...]) -> None:
    found = outcome(text, columns)
    with patch("kavier.workload.formats.source.lines_of_numbers", return_value=None):
        assert found == outcome(text, columns)


values = {
    "at": st.one_of(
        st.integers(-5, 2**63).map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
        st.decimals(-10, 10**9, places=6).map(str),
        st.sampled_from(["0", "-0", "-0.0", "1e-5", "null", "007", "1.", "-", "true", "9007199254740993"]),
        st.text("0123456789.-", max_size=25),
    ),
    "tokens": st.one_of(st.integers(-1, 2**64).map(str), st.sampled_from(["12.0", "1.5", '"7"', "null", ""])),
    "parent": st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), st.just("null")),
    "hashes": st.one_of(
        st.lists(st.one_of(st.integers(0, 99), st.integers(10**18, 2**64 + 9))).map(str),
        st.sampled_from(["[]", "[ ]", "[1,]", "[,1]", "[1 2]", "[1.0]", "[-1]", "[null]", "null", "[01]"]),
    ),
    "other": st.one_of(
        st.sampled_from(['"text"', '"a\\"b"', '"é"', '"\t"', "1.5", "{}", "null", '""', "3", '"']),
        st.integers(-(2**70), 2**70).map(str),
    ),
}  # fmt: skip
blanks = st.sampled_from(["", "", "", " ", "  ", "\t", "\r", "\n", "\x0b"])


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, tuple[str, ...]]:
    """Lines as nearly any program would write them, mostly well-formed."""
    columns = tuple(draw(st.lists(st.sampled_from(list(values)), min_size=1, unique=True)))
    odd = draw(st.booleans())
    text = ""
    for _ in range(draw(st.integers(1, 4))):
        keys = draw(st.permutations(columns)) if odd and draw(st.booleans()) else columns
        blank = blanks if odd else st.sampled_from(["", " "])
        fields = [
            f'{draw(blank)}"{key}"{draw(blank)}:{draw(blank)}{draw(values[key])}{draw(blank)}' for key in keys
        ]
        text += (
            draw(blank)
            + "{"
            + ",".join(fields)
            + "}"
            + draw(blank)
            + draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n"]))
        )
    return (text if draw(st.booleans()) else text.rstrip("\n")).encode(), columns


@settings(deadline=None, max_examples=500)
@given(files())
def test_all_readers_of_lines_read_alike_and_refuse_alike(file):
    check_alike(*file)


@settings(deadline=None, max_examples=300)
@given(files(), st.data())
def test_a_damaged_file_is_refused_alike(file, data):
    text, columns = file
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, min(first + 9, len(text))))
    check_alike(text[:first] + data.draw(st.binary(max_size=3)) + text[last:], columns)


@settings(deadline=None)
@given(st.floats(0, 2**53 - 1), st.integers(0, 12))
@example(0.1 + 0.2, 17)
def test_decimals_are_rounded_as_python_rounds_them(number, places):
    text = f"{number:.{places}f}"
    frame = lines_of_numbers(lines(text), ["at"], {"at": pl.Float64()})
    assert frame is None or frame["at"].to_list() == [float(text)]
    assert frame is not None or float(text.replace(".", "")) >= 2**53


ROW = {"other": "text", "at": 61.114, "tokens": 521, "parent": -1, "hashes": [1, 2**64 - 1], "turn": 1}


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" , ", " : ")])
@pytest.mark.parametrize("end", ["\n", "", "\r\n", " \n\n"])
def test_the_lines_of_public_traces_are_read_here(separators, end):
    rows = [ROW, ROW | {"hashes": []}, ROW | {"at": 0.125, "hashes": [3]}]
    text = "\n".join(json.dumps(row, separators=separators) for row in rows) + end
    frame = lines_of_numbers(text.encode(), list(ROW), TYPES)
    assert frame is not None
    assert frame.schema == TYPES
    assert frame.to_dicts() == [{name: row[name] for name in TYPES} for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        lines("1") + lines("1", key="an"),
        lines("1") + lines("1", key="att"),
        lines("1", "2", end=""),
        lines("1e3"),
        lines("9007199254740993.5"),
        lines("0.12345678901234567890123"),
        lines("1234567890123456789"),
        lines("1 2"),
        lines("nul"),
        b'{"at": 1, "at": 2}\n',
        b'{"at": 1',
        b'{"at": ',
        b"{",
        b'"at": 1}\n',
    ],
)
def test_other_lines_are_left_to_other_readers(text):
    assert lines_of_numbers(text, ["at"], {"at": pl.Float64()}) is None


def test_so_is_text_that_is_wanted_and_a_second_list():
    assert lines_of_numbers(lines('"x"'), ["at"], {"at": pl.String()}) is None
    both = {"one": TYPES["hashes"], "two": TYPES["hashes"]}
    assert lines_of_numbers(b'{"one": [1], "two": [2]}\n', list(both), both) is None
