"""A recorded run of the real vLLM scheduler: its workload, its step log and its requests.

Three files of JSON lines, plain or gzipped; fields not named here are passed over.

Workload: `id`, `output_len`, `arrival_s` or `arrival_step` (the number of the first `schedule` call that sees
it), and `prompt_token_ids`, or `hash_ids` and `input_length`. Optional: `hash_block_size`, `priority`,
`output_token_ids`.

Step log: `step`, `t`, `dt`, `sched`, `preempted`, `free`, `evicted`, `running`, `waiting`. A part of `sched`
is a list of id, tokens, tokens computed before, and of a request just admitted with cached tokens these once
more. Also read is the form that the recording script writes: `free_after`, and parts as objects with `id`,
`n`, `computed` and `cached`.

Requests: `id`, `first_sched_s`, `first_token_s`, `finish_s`, `cached_tokens`, `preemptions`; null is what
never happened.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.errors import InputError, reason

Row = dict[str, Any]

STEP_FIELDS = ("t", "dt", "sched", "preempted", "free", "evicted", "running", "waiting")
REQUEST_FIELDS = ("first_sched_s", "first_token_s", "finish_s", "cached_tokens", "preemptions")
LARGEST_TOKENS = 2**24
LARGEST = 2**53
"""Integers up to it are exact in doubles."""

LATEST_S = 1e9
"""Later, doubles do not tell microseconds apart."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was given to the scheduler, and what it did.

    Attributes:
        workload: File that the requests came from.
        ids: Names of the requests, in the order in which they were added.
        table: Canonical request table in that order: arrival_s, prompt_tokens, output_tokens, priority.
        tokens: Prompt of each request, and behind it its answer as far as it was told.
        steps: One row a step, with STEP_FIELDS and its number `step`.
        requests: Id -> REQUEST_FIELDS.
    """

    workload: Path
    ids: list[str]
    table: pl.DataFrame
    tokens: list[list[int]]
    steps: list[Row]
    requests: dict[str, Row]

    @property
    def overlaps(self) -> bool:
        """A step was scheduled before the one before it had ended, as only asynchronous scheduling does."""
        return any(
            after["t"] < before["t"] + before["dt"]
            for before, after in pairwise(self.steps)
            if before["sched"]
        )


def read_recording(workload: Path, steps: Path, requests: Path, hash_block_size: int) -> Recording:
    """Read the three files.

    Args:
        workload: What was given to the scheduler.
        steps: Its step log.
        requests: What became of each request.
        hash_block_size: Tokens of one of the workload's `hash_ids` where a row does not say.

    Raises:
        InputError: A file that cannot be read, a line that is no such row, or files of different runs.
    """
    lines, log, ends = (_lines(path) for path in (workload, steps, requests))
    recorded = [_step(line) for line in log]
    _check_order(log, recorded)
    rows = [_request(line, hash_block_size) for line in lines]
    _place(lines, rows, recorded)
    results = [_end(line) for line in ends]
    _check_ids(Ids(lines, rows), Ids(ends, results), log, recorded)
    rows.sort(key=lambda row: (row["arrival_step"], row["arrival_s"]))
    table = pl.DataFrame(
        {
            "arrival_s": [row["arrival_s"] for row in rows],
            "prompt_tokens": [row["prompt_tokens"] for row in rows],
            "output_tokens": [row["output_len"] for row in rows],
            "priority": [row["priority"] for row in rows],
        }
    )
    return Recording(
        workload=workload,
        ids=[row["id"] for row in rows],
        table=table,
        tokens=[_tokens(row, number) for number, row in enumerate(rows)],
        steps=recorded,
        requests={row["id"]: row for row in results},
    )


# --- Lines ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A JSON object of a file, and where it is; its methods complain of a field that is wrong."""

    where: str
    row: Row

    def value(self, name: str) -> Any:
        """The field as it is."""
        if name not in self.row:
            raise InputError(f"no field {name!r}", where=self.where, near=(name, self.row))
        return self.row[name]

    def seconds(self, name: str) -> float:
        """A time."""
        value = self.value(name)
        if type(value) not in (int, float) or not 0 <= value <= LATEST_S:
            raise self.wrong(name, value, f"seconds from 0 to {LATEST_S:g}")
        return float(value)

    def count(self, name: str, least: int = 0, most: int = LARGEST) -> int:
        """A whole number."""
        value = self.value(name)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def counts(self, name: str) -> list[int]:
        """A list of whole numbers."""
        value = self.value(name)
        if not isinstance(value, list) or any(type(one) is not int or one < 0 for one in value):
            raise self.wrong(name, value, "a list of whole numbers from 0 on")
        return value

    def name(self, name: str = "id") -> str:
        """What a request is called."""
        value = self.value(name)
        if type(value) not in (str, int):
            raise self.wrong(name, value, "text")
        return str(value)

    def wrong(self, name: str, value: object, expected: str) -> InputError:
        """The error to raise."""
        return InputError(f"bad {name!r}", where=self.where, value=value, expected=expected)


def _lines(path: Path) -> list[Line]:
    lines = list(read_lines(path))
    if not lines:
        raise InputError("no rows", where=str(path), expected="JSON lines")
    return lines


def read_lines(path: Path) -> Iterator[Line]:
    """Each line that is not empty.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read it: {reason(error)}", where=str(path)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"not JSON: {said}", where=where, value=line.strip()) from None
        if not isinstance(row, dict):
            raise InputError("not a JSON object", where=where, value=row)
        yield Line(where, row)


# --- Rows -------------------------------------------------------------------------------------------------


def _step(line: Line) -> Row:
    """A step of the log."""
    free = "free_after" if "free" not in line.row and "free_after" in line.row else "free"
    sched, preempted = line.value("sched"), line.value("preempted")
    if not isinstance(sched, list):
        raise line.wrong("sched", sched, "a list of parts")
    if not isinstance(preempted, list):
        raise line.wrong("preempted", preempted, "a list of ids")
    return {
        "step": line.count("step"),
        "t": line.seconds("t"),
        "dt": line.seconds("dt"),
        "sched": [_part(line, part) for part in sched],
        "preempted": [str(name) for name in preempted],
        "free": line.count(free),
        "evicted": line.count("evicted"),
        "running": line.count("running"),
        "waiting": line.count("waiting"),
    }


def _part(line: Line, part: Any) -> list[Any]:
    """A request's part in a step, as the packed log has it."""
    if isinstance(part, dict):
        hit = [part["cached"]] if part.get("cached") else []
        part = [part.get("id"), part.get("n"), part.get("computed"), *hit]
    is_part = isinstance(part, list) and len(part) in (3, 4) and type(part[0]) in (str, int)
    if not is_part or any(type(count) is not int for count in part[1:]):
        raise line.wrong("sched", part, "parts of [id, tokens, tokens computed before]")
    return [str(part[0]), *part[1:]]


def _request(line: Line, hash_block_size: int) -> Row:
    """A request of the workload."""
    row = line.row
    by_step = "arrival_step" in row
    known: Row = {
        "id": line.name(),
        "output_len": line.count("output_len", 1, LARGEST_TOKENS),
        "priority": line.count("priority", -LARGEST) if "priority" in row else 0,
        "arrival_step": line.count("arrival_step") if by_step else 0,
        "arrival_s": 0.0 if by_step else line.seconds("arrival_s"),
        "output_token_ids": line.counts("output_token_ids") if row.get("output_token_ids") else [],
    }
    if "hash_ids" in row and "prompt_token_ids" not in row:
        known["prompt_tokens"] = line.count("input_length", 1, LARGEST_TOKENS)
        sized = "hash_block_size" in row
        known["size"] = line.count("hash_block_size", 1, LARGEST_TOKENS) if sized else hash_block_size
        return {**known, "hash_ids": line.counts("hash_ids")}
    tokens = line.counts("prompt_token_ids")
    if not 1 <= len(tokens) <= LARGEST_TOKENS:
        raise line.wrong("prompt_token_ids", tokens[:5], f"1 to {LARGEST_TOKENS} tokens")
    return {**known, "prompt_tokens": len(tokens), "prompt_token_ids": tokens}


def _end(line: Line) -> Row:
    """A request's times and counts."""
    checks: dict[str, Callable[[str], float]] = {
        name: line.seconds if name.endswith("_s") else line.count for name in REQUEST_FIELDS
    }
    ends = {name: check(name) if line.value(name) is not None else None for name, check in checks.items()}
    return {"id": line.name(), **ends}


def _tokens(row: Row, number: int) -> list[int]:
    """Prompt and, as far as it was told, answer. Tokens behind the hashes are unlike any other."""
    if "prompt_token_ids" in row:
        prompt = row["prompt_token_ids"]
    else:
        size, length = row["size"], row["prompt_tokens"]
        hashes = row["hash_ids"][: -(-length // size)]
        prompt = [t for name in hashes for t in range(name * size, (name + 1) * size)][:length]
        prompt += [-(number << 32) - 1 - i for i in range(length - len(prompt))]
    known: list[int] = [*prompt, *row["output_token_ids"][: row["output_len"]]]
    return known


# --- What must hold between them ----------------------------------------------------------------------------


def _check_order(log: list[Line], steps: list[Row]) -> None:
    before = {"step": -1, "t": -inf}
    for line, step in zip(log, steps, strict=True):
        if step["step"] <= before["step"]:
            raise line.wrong("step", step["step"], f"more than the {before['step']} of the line before")
        if step["t"] < before["t"]:
            raise line.wrong("t", step["t"], f"at least the {before['t']} of the line before")
        before = step


def _place(lines: list[Line], rows: list[Row], steps: list[Row]) -> None:
    """Arrivals given by step number: the time at which that step was scheduled."""
    starts = {step["step"]: step["t"] for step in steps}
    by_step = "arrival_step" in lines[0].row
    for line, row in zip(lines, rows, strict=True):
        if ("arrival_step" in line.row) != by_step:
            raise InputError(
                "arrival_step in some lines only", where=line.where, expected="in all, or in none"
            )
        if by_step:
            number = row["arrival_step"]
            if number not in starts:
                raise line.wrong("arrival_step", number, "the number of a step of the log")
            row["arrival_s"] = starts[number]


class Ids:
    """Where each request of a file is.

    Args:
        lines: The file.
        rows: Its rows; an id that comes twice is an error.
    """

    def __init__(self, lines: list[Line], rows: list[Row]) -> None:
        self.lines: dict[str, Line] = {}
        self.file = lines[0].where.rpartition(", line ")[0]
        for line, row in zip(lines, rows, strict=True):
            if row["id"] in self.lines:
                raise InputError(f"request {row['id']!r} a second time", where=line.where)
            self.lines[row["id"]] = line

    def check(self, name: str, where: str) -> None:
        """Complain of a request that this file lacks."""
        if name not in self.lines:
            raise InputError(
                f"request {name!r} is not in {self.file}",
                where=where, expected="files of one run", near=(name, self.lines),
            )  # fmt: skip


def _check_ids(workload: Ids, requests: Ids, log: list[Line], steps: list[Row]) -> None:
    for name, line in requests.lines.items():
        workload.check(name, line.where)
    for name, line in workload.lines.items():
        requests.check(name, line.where)
    for line, step in zip(log, steps, strict=True):
        for name in (*(part[0] for part in step["sched"]), *step["preempted"]):
            workload.check(name, line.where)


class TokenKeys:
    """Block keys from token ids: every distinct (chain before, tokens) has a number.

    Args:
        sequences: Tokens of each request.
        block_size: Tokens a block.
    """

    def __init__(self, sequences: list[list[int]], block_size: int) -> None:
        self._sequences = sequences
        self._size = block_size
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def keys(self, row: int) -> list[int]:
        """Keys of the full blocks of request `row`."""
        tokens, keys, parent = self._sequences[row], [], -1
        for start in range(0, len(tokens) - self._size + 1, self._size):
            content = (parent, tuple(tokens[start : start + self._size]))
            parent = self._numbers.setdefault(content, len(self._numbers))
            keys.append(parent)
        return keys

    @property
    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys of all requests, one after the other, and where each one's begin (one more than requests)."""
        rows = [self.keys(row) for row in range(len(self._sequences))]
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.array([key for row in rows for key in row], dtype=np.int64), starts
