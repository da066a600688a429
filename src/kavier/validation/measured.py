"""A measured run: the requests to simulate, and what became of each of them on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from kavier.errors import InputError
from kavier.validation.layout import FLAG, NUMBER, Chosen, Column, ColumnSpec, Hashes, Rows, Text, choose
from kavier.workload.columns import OPTIONAL_NUMBERS, OPTIONAL_TEXT, Rule, refuse
from kavier.workload.formats.source import open_trace
from kavier.workload.table import REQUIRED, RULES, Workload, make_workload

TIMES = ("ttft_s", "e2e_s")

LEAST_REQUESTS = 5
"""Mean and percentiles of fewer tell nothing."""

_WORKLOAD = (*REQUIRED, "block_hashes", "block_tokens", "session_id", "priority")
_KNOWN: dict[str, Rule] = {
    **{name: RULES[name] for name in _WORKLOAD},
    **dict.fromkeys(("arrival_s", "prompt_tokens", "output_tokens", *TIMES), NUMBER),
    "failed": FLAG,
}
"""Column of a measured table -> how it is read; make_workload judges the requests, this module the rest."""


class Measured(Rows):
    """A table of measured requests.

    `columns`: quantity -> where it is found; what is not named is found under its own name. `same_prompt`:
    column that is equal where prompts are, which then share all their blocks. `hashes`: block hashes in
    another file. With neither, prompts share nothing unless the file has block_hashes itself.
    """

    columns: Mapping[str, ColumnSpec] = {}
    same_prompt: Text | None = None
    hashes: Hashes | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What was measured, row for row.

    Attributes:
        workload: Requests in order of arrival.
        times: Columns ttft_s, e2e_s (null where the request failed), output_tokens and failed.
        unknown: Failed requests whose lengths nobody knows: they are not simulated.
    """

    workload: Workload
    times: pl.DataFrame
    unknown: int


def read_measured(section: Measured, root: Path, block_tokens: int = 16) -> MeasuredRun:
    """Read a table of measured requests.

    Args:
        section: Where it is and what its columns mean.
        root: Folder that its paths are taken from.
        block_tokens: Tokens of the blocks that equal prompts (`same_prompt`) share.

    Raises:
        InputError: What a trace may have wrong, a missing column; e2e_s below ttft_s, times that are
            negative, missing or 0 though the request is not marked as failed, answers that were not
            streamed, fewer than `LEAST_REQUESTS` requests (row and column named).
    """
    chosen = choose(section, root)
    frame = _columns(chosen, section)
    frame = frame.with_columns(_failed(frame), _own_row(len(frame)))
    _check_times(frame, chosen)
    if section.same_prompt:
        frame = frame.with_columns(
            _hashes_of_prompts(chosen.raw(section.same_prompt, OPTIONAL_TEXT), frame, block_tokens)
        )
    if section.hashes:
        frame = frame.with_columns(_hashes_elsewhere(section.hashes, chosen, frame, root))
    names = () if section.columns else tuple(name for name in chosen.file.columns if name not in _KNOWN)
    return _run(frame, chosen, unread=names)


def _run(frame: pl.DataFrame, chosen: Chosen, unread: tuple[str, ...]) -> MeasuredRun:
    lengthless = pl.any_horizontal(pl.col("prompt_tokens", "output_tokens").fill_null(0) == 0)
    known = frame.filter(~(pl.col("failed") & lengthless)).sort("arrival_s", maintain_order=True)
    rows = known["row"].to_numpy()
    workload = make_workload(
        known.select(name for name in _WORKLOAD if name in known.columns),
        source=str(chosen.file.path),
        format="measured",
        place=lambda row: chosen.place(int(rows[row])),
    )
    if len(workload.requests) < len(known):
        raise _lengthless(known, chosen)
    workload = replace(workload, unread_columns=unread)
    failed = pl.col("failed")
    times = known.select(
        *(pl.when(~failed).then(pl.col(name)).alias(name) for name in TIMES),
        pl.lit(workload.requests["output_tokens"]).alias("output_tokens"),
        failed,
    )
    return MeasuredRun(workload, times, unknown=len(frame) - len(known))


def _lengthless(known: pl.DataFrame, chosen: Chosen) -> InputError:
    """A request that is not marked as failed, with 0 tokens."""
    name = "output_tokens" if (known["output_tokens"] == 0).any() else "prompt_tokens"
    row = int(known.filter(pl.col(name) == 0)["row"][0])
    return InputError(
        "0 tokens of a request that is not marked as failed",
        where=chosen.at(row, name),
        expected="tokens, or a column failed that is true",
    )


def _columns(chosen: Chosen, section: Measured) -> pl.DataFrame:
    """The columns of a measured table, under their own names."""
    if unknown := [name for name in section.columns if name not in _KNOWN]:
        raise InputError(
            f"columns: unknown quantity {unknown[0]!r}",
            expected=", ".join(_KNOWN),
            near=(unknown[0], _KNOWN),
        )
    specs = {name: section.columns.get(name, Column(column=name)) for name in _KNOWN}
    present = {
        name: spec
        for name, spec in specs.items()
        if name in section.columns or spec.column in chosen.file.columns
    }
    for name in (*REQUIRED, *TIMES):
        if name not in present:
            found = ", ".join(chosen.file.columns)
            raise InputError(
                f"missing column {name!r} of a measured run (columns found: {found})",
                where=str(chosen.file.path),
                near=(name, chosen.file.columns),
            )
    return pl.DataFrame([chosen.column(spec, _KNOWN[name]).alias(name) for name, spec in present.items()])


def _failed(frame: pl.DataFrame) -> pl.Expr:
    return (
        pl.col("failed").fill_null(value=False) if "failed" in frame.columns else pl.lit(value=False)
    ).alias("failed")


def _own_row(height: int) -> pl.Series:
    return pl.Series("row", np.arange(height))


def _check_times(frame: pl.DataFrame, chosen: Chosen) -> None:
    failed = frame["failed"]
    for name in TIMES:
        times = frame[name]
        refuse(times < 0, times, chosen.at, "negative value", "seconds above 0")
        none = times.fill_nan(None).fill_null(0.0) == 0
        wanted = "seconds above 0, or a column failed that is true"
        _refuse_unmarked(~failed & none, times, chosen, wanted)
        refuse(~failed & times.is_infinite(), times, chosen.at, "not a finite number", wanted)
    ttft_s, e2e_s = frame["ttft_s"], frame["e2e_s"]
    early = ~failed & (e2e_s < ttft_s)
    if len(rows := early.arg_true()):
        row = int(rows[0])
        raise InputError(
            f"e2e_s = {e2e_s[row]:g} is below ttft_s = {ttft_s[row]:g}",
            where=chosen.at(row, "e2e_s"),
            expected="the last token not before the first",
        )
    _check_enough(frame.filter(~pl.col("failed")), str(chosen.file.path))


def _refuse_unmarked(mask: pl.Series, times: pl.Series, chosen: Chosen, wanted: str) -> None:
    """Rows without time; `refuse` would not show that there is no value."""
    if len(rows := mask.arg_true()):
        row = int(rows[0])
        found = "empty" if times[row] is None else times[row]
        raise InputError(
            f"no time ({found}) of a request that is not marked as failed",
            where=chosen.at(row, times.name),
            expected=wanted,
        )


def _check_enough(served: pl.DataFrame, where: str) -> None:
    if len(served) < LEAST_REQUESTS:
        raise InputError(
            "a measured run that is too short to say anything",
            where=where,
            value=f"{len(served)} requests that did not fail",
            expected=f"at least {LEAST_REQUESTS}",
        )
    several = served.filter(pl.col("output_tokens") > 1)
    if len(several) and (several["ttft_s"] == several["e2e_s"]).all():
        raise InputError(
            "ttft_s = e2e_s in every request: the answers were not streamed, and tell no TTFT or TPOT",
            where=where,
            expected="the time of the first token in ttft_s",
        )


def _hashes_of_prompts(prompt: pl.Series, frame: pl.DataFrame, block_tokens: int) -> list[pl.Series]:
    """Hashes such that every prompt has its own full blocks, in all requests that send it."""
    blocks = (frame["prompt_tokens"].fill_null(0).cast(pl.Int64()) + block_tokens - 1) // block_tokens
    longest = max(blocks.to_list())
    first = prompt.rank("dense").cast(pl.Int64()) * longest
    hashes = pl.select(pl.int_ranges(first, first + blocks)).to_series().cast(pl.List(pl.UInt64()))
    size = pl.Series("block_tokens", np.full(len(frame), block_tokens))
    return [hashes.alias("block_hashes"), size]


def _hashes_elsewhere(section: Hashes, chosen: Chosen, frame: pl.DataFrame, root: Path) -> list[pl.Series]:
    """Hashes of another file's rows, full blocks only; the block that is begun is the request's own."""
    other = Chosen(open_trace(root / section.file))
    keys, lists = other.raw(section.by, OPTIONAL_TEXT), other.raw(section.column, OPTIONAL_NUMBERS)
    known = dict(zip(keys.to_list(), lists.to_list(), strict=True))
    wanted = chosen.raw(section.by, OPTIONAL_TEXT)
    refuse(~wanted.is_in(keys.to_list()), wanted, chosen.at, f"not in {section.file}")
    fresh = 1 + max((max(hashes) for hashes in known.values() if hashes), default=0)
    size, found = section.block_tokens, []
    for key, tokens in zip(wanted.to_list(), frame["prompt_tokens"].to_list(), strict=True):
        full, begun = int(tokens) // size, -(-int(tokens) // size)
        shared = (known[key] or [])[:full]
        found.append([*shared, *range(fresh, fresh + begun - len(shared))])
        fresh += begun - len(shared)
    hashes = pl.Series("block_hashes", found, dtype=pl.List(pl.UInt64()))
    return [hashes, pl.Series("block_tokens", np.full(len(found), size))]
