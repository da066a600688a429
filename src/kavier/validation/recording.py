"""A recorded run of the real vLLM scheduler: its workload, its step log and its requests.

Three files of JSON lines, plain or gzipped. The workload: `id`, `arrival_s` or `arrival_step` (the number of the
`schedule` call that sees it first), `prompt_token_ids`, or `hash_ids` and `input_length`, `output_len`, and
optionally `output_token_ids`, `priority`, `hash_block_size`. The step log: `step`, `t`, `dt`, `sched` (lists of
id, tokens, tokens computed before, and where the prefix cache was hit once more the latter), `preempted`, `free`,
`evicted`, `running`, `waiting`; or as the oracle script writes it before it is packed. The requests: `id`,
`first_sched_s`, `first_token_s`, `finish_s`, `cached_tokens`, `preemptions`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.errors import InputError, reason

Row = dict[str, Any]

STEP_FIELDS = ("t", "dt", "sched", "preempted", "free", "evicted", "running", "waiting")
REQUEST_FIELDS = ("first_sched_s", "first_token_s", "finish_s", "cached_tokens", "preemptions")
LARGEST_TOKENS = 2**30


@dataclass(frozen=True, slots=True)
class Recording:
    """What was given to the scheduler, and what it did.

    Attributes:
        ids: Names of the requests, in the order in which they were added.
        table: Canonical request table in that order: arrival_s, prompt_tokens, output_tokens, priority.
        tokens: Prompt of each request, and behind it its answer as far as it was told.
        steps: One row a step, with STEP_FIELDS.
        requests: Id -> REQUEST_FIELDS.
    """

    ids: list[str]
    table: pl.DataFrame
    tokens: list[list[int]]
    steps: list[Row]
    requests: dict[str, Row]


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
    numbered, log, ends = (list(read_rows(path)) for path in (workload, steps, requests))
    if not numbered or not log:
        raise InputError("no rows", where=str(steps if numbered else workload))
    recorded = [_checked(steps, line, row, _step) for line, row in log]
    starts = {row["step"]: row["t"] for row in recorded}
    rows = [_checked(workload, line, row, _request) for line, row in numbered]
    for (line, _), row in zip(numbered, rows, strict=True):
        _place(row, starts, f"{workload}, line {line}")
    rows.sort(key=lambda row: (row["arrival_step"], row["arrival_s"]))
    tokens = [_tokens(row, hash_block_size, i) for i, row in enumerate(rows)]
    table = pl.DataFrame(
        {
            "arrival_s": [float(row["arrival_s"]) for row in rows],
            "prompt_tokens": [_prompt_length(row) for row in rows],
            "output_tokens": [row["output_len"] for row in rows],
            "priority": [row["priority"] for row in rows],
        }
    )
    ids = [row["id"] for row in rows]
    by_id = {
        row["id"]: {name: row[name] for name in REQUEST_FIELDS}
        for row in (_checked(requests, line, row, _end) for line, row in ends)
    }
    _check_ids(ids, by_id, workload, requests)
    return Recording(ids, table, tokens, recorded, by_id)


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, object) of each line.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"not JSON: {error.msg}", where=f"{path}, line {number}") from None
        if not isinstance(row, dict):
            raise InputError("not an object", where=f"{path}, line {number}", value=row)
        yield number, row


def _checked(path: Path, line: int, row: Row, read: Callable[[Row], Row]) -> Row:
    """One line read by `read`; whatever it stumbles over is named."""
    where = f"{path}, line {line}"
    try:
        return read(row)
    except KeyError as error:
        raise InputError(
            f"no {error}", where=where, near=(str(error.args[0]), row), expected=_expected(read)
        ) from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"unreadable: {error}", where=where, expected=_expected(read)) from None


def _expected(read: Callable[[Row], Row]) -> str:
    """What a line of the file that `read` reads is."""
    return (read.__doc__ or "").rstrip(".")


def _step(row: Row) -> Row:
    """A step of the log."""
    free = row["free"] if "free" in row else row["free_after"]
    step = {"step": int(row["step"]), "free": int(free), "sched": [_part(part) for part in row["sched"]]}
    step |= {name: float(row[name]) for name in ("t", "dt")}
    step |= {name: int(row[name]) for name in ("evicted", "running", "waiting")}
    return step | {"preempted": [str(name) for name in row["preempted"]]}


def _part(part: Any) -> list[Any]:
    """A request's part in a step, as the packed log has it."""
    if not isinstance(part, dict):
        name, *counts = part
        return [str(name), *(int(count) for count in counts)]
    hit = [int(part["cached"])] if part.get("cached") else []
    return [str(part["id"]), int(part["n"]), int(part["computed"]), *hit]


def _request(row: Row) -> Row:
    """A request of the workload."""
    known: Row = {"id": str(row["id"]), "output_len": int(row["output_len"])}
    known |= {name: int(row.get(name, 0)) for name in ("priority", "arrival_step")}
    known["by_step"] = "arrival_step" in row
    known["arrival_s"] = float(row["arrival_s"]) if not known["by_step"] else 0.0
    known["output_token_ids"] = [int(token) for token in row.get("output_token_ids", ())]
    if "prompt_token_ids" in row:
        known["prompt_token_ids"] = [int(token) for token in row["prompt_token_ids"]]
    else:
        known["hash_ids"] = [int(name) for name in row["hash_ids"]]
        known["input_length"] = int(row["input_length"])
        known["hash_block_size"] = int(row.get("hash_block_size", 0))
    if _prompt_length(known) < 1 or known["output_len"] < 1:
        raise ValueError("a prompt and an answer have at least one token")
    if max(_prompt_length(known), known["output_len"]) > LARGEST_TOKENS:
        raise ValueError(f"more than {LARGEST_TOKENS} tokens")
    return known


def _end(row: Row) -> Row:
    """A request's times and counts."""
    return {"id": str(row["id"])} | {name: row[name] for name in REQUEST_FIELDS}


def _prompt_length(row: Row) -> int:
    length: int = row["input_length"] if "hash_ids" in row else len(row["prompt_token_ids"])
    return length


def _place(row: Row, starts: dict[int, float], where: str) -> None:
    """An arrival given by step number: the time at which that step was scheduled."""
    if not row["by_step"]:
        return
    if row["arrival_step"] not in starts:
        raise InputError("no such step in the log", where=where, value=row["arrival_step"])
    row["arrival_s"] = starts[row["arrival_step"]]


def _tokens(row: Row, hash_block_size: int, number: int) -> list[int]:
    """Prompt and, as far as it was told, answer. Tokens behind the hashes are unlike any other."""
    if "prompt_token_ids" in row:
        prompt = row["prompt_token_ids"]
    else:
        size, length = row["hash_block_size"] or hash_block_size, row["input_length"]
        prompt = [t for name in row["hash_ids"] for t in range(name * size, (name + 1) * size)][:length]
        prompt += [-(number << 32) - 1 - i for i in range(length - len(prompt))]
    known: list[int] = [*prompt, *row["output_token_ids"][: row["output_len"]]]
    return known


def _check_ids(ids: list[str], by_id: dict[str, Row], workload: Path, requests: Path) -> None:
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise InputError(f"request {twice!r} twice", where=str(workload))
    if missing := [name for name in ids if name not in by_id]:
        raise InputError(
            f"{len(missing)} requests of {workload} are missing",
            where=str(requests), value=missing[0], near=(missing[0], by_id),
        )  # fmt: skip


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
