"""A measured run: the requests to simulate, and what became of each of them on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from kavier.errors import InputError
from kavier.validation.layout import FLAG, NUMBER, Chosen, Column, ColumnSpec, Hashes, Rows, Text, choose
from kavier.workload.columns import OPTIONAL_NUMBERS, OPTIONAL_TEXT, Rule, check_column, refuse
from kavier.workload.formats.source import open_trace
from kavier.workload.table import REQUIRED, RULES, Workload, make_workload

TIMES = ("ttft_s", "e2e_s")

LEAST_REQUESTS = 5
"""Mean and percentiles of fewer tell nothing."""

MOST_BEHIND, MOST_BEHIND_S = 0.1, 0.05
"""How much later than its first token the end of an answer of one token may be seen: the larger of a share of
its time, and seconds."""

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
        unknown: Failed requests whose lengths nobody knows, without skipped ones: they are not simulated.
    """

    workload: Workload
    times: pl.DataFrame
    unknown: int


def read_measured(section: Measured, root: Path, block_tokens: int = 16, skip: int = 0) -> MeasuredRun:
    """Read a table of measured requests.

    Args:
        section: Where it is and what its columns mean.
        root: Folder that its paths are taken from.
        block_tokens: Tokens of the blocks that equal prompts (`same_prompt`) share.
        skip: So many of the first requests are simulated, but not compared.

    Raises:
        InputError: What a trace may have wrong, a missing column; e2e_s below ttft_s, times that are
            negative, missing or 0 though the request is not marked as failed, answers that were not
            streamed, fewer than `LEAST_REQUESTS` requests beyond the skipped ones (row and column named).
    """
    chosen = choose(section, root)
    frame = _columns(chosen, section)
    _check_times(frame, chosen)
    lengthless = pl.any_horizontal(pl.col("prompt_tokens", "output_tokens").fill_null(0) == 0)
    known = frame.with_row_index("row").filter(~(pl.col("failed") & lengthless))
    known = known.sort("arrival_s", maintain_order=True)
    _check_enough(known[skip:], str(chosen.file.path), skip)
    kept = chosen.only(known["row"].to_numpy())
    known = known.with_columns(_hashes(section, kept, known["prompt_tokens"], root, block_tokens))
    workload = make_workload(
        known.select(name for name in _WORKLOAD if name in known.columns),
        source=str(chosen.file.path),
        format="measured",
        place=kept.place,
    )
    if len(workload.requests) < len(known):
        raise _lengthless(known, kept)
    served = ~pl.col("failed")
    times = known.select(
        *(pl.when(served).then(pl.col(name)).alias(name) for name in TIMES),
        pl.lit(workload.requests["output_tokens"]).alias("output_tokens"),
        "failed",
    )
    workload = replace(workload, unread_columns=_unread(chosen, section))
    return MeasuredRun(
        workload, times, unknown=_unknown(frame.filter(pl.col("failed") & lengthless), known, skip)
    )


def _unknown(lost: pl.DataFrame, known: pl.DataFrame, skip: int) -> int:
    """How many of the requests without lengths do not lie among the skipped ones."""
    if not skip:
        return len(lost)
    return int((lost["arrival_s"] > known["arrival_s"][skip - 1]).fill_null(value=True).sum())


def _lengthless(known: pl.DataFrame, kept: Chosen) -> InputError:
    """A request that is not marked as failed, with 0 tokens."""
    name = "output_tokens" if (known["output_tokens"] == 0).any() else "prompt_tokens"
    return InputError(
        "0 tokens of a request that is not marked as failed",
        where=kept.at(int((known[name] == 0).arg_true()[0]), name),
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
    present = _present(chosen, section)
    for name in (*REQUIRED, *TIMES):
        if name not in present:
            found = ", ".join(chosen.file.columns)
            raise InputError(
                f"missing column {name!r} of a measured run (columns found: {found})",
                where=str(chosen.file.path),
                near=(name, chosen.file.columns),
            )
    if section.columns:
        parts = [chosen.column(spec, _KNOWN[name]).alias(name) for name, spec in present.items()]
        frame = pl.DataFrame(parts)
    else:
        frame = chosen.plain({name: _KNOWN[name] for name in present})
    failed = pl.col("failed").fill_null(value=False) if "failed" in present else pl.lit(value=False)
    return frame.with_columns(failed.alias("failed"))


def _present(chosen: Chosen, section: Measured) -> dict[str, Column]:
    """Where those quantities are that the file has."""
    specs = {name: section.columns.get(name, Column(column=name)) for name in _KNOWN}
    named, columns = section.columns, chosen.file.columns
    return {name: spec for name, spec in specs.items() if name in named or spec.column in columns}


def _unread(chosen: Chosen, section: Measured) -> tuple[str, ...]:
    """Columns of the file that nobody asked for."""
    specs = _present(chosen, section).values()
    read = {*section.where, *(spec.column for spec in specs), *(spec.fill_by for spec in specs)}
    read |= {section.same_prompt, section.hashes.by if section.hashes else None}
    return tuple(name for name in chosen.file.columns if name not in read)


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
    _check_single_tokens(frame, chosen)
    _check_streamed(frame.filter(~pl.col("failed")), str(chosen.file.path))


def _check_single_tokens(frame: pl.DataFrame, chosen: Chosen) -> None:
    """The first token of an answer of one is its last."""
    ttft_s, e2e_s = frame["ttft_s"], frame["e2e_s"]
    one = ~frame["failed"] & (frame["output_tokens"] == 1)
    late = one & (e2e_s - ttft_s > MOST_BEHIND_S) & (e2e_s - ttft_s > MOST_BEHIND * e2e_s)
    if len(rows := late.fill_null(value=False).arg_true()):
        row = int(rows[0])
        raise InputError(
            f"e2e_s = {e2e_s[row]:g} is long after ttft_s = {ttft_s[row]:g}, of 1 output token",
            where=chosen.at(row, "e2e_s"),
            expected=f"times that differ by at most {MOST_BEHIND:.0%} or {MOST_BEHIND_S:g} s",
        )


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


def _check_enough(scored: pl.DataFrame, where: str, skip: int) -> None:
    if (served := int((~scored["failed"]).sum())) < LEAST_REQUESTS:
        beyond = f", beyond the first {skip:,}" if skip else ""
        raise InputError(
            "a measured run that is too short to say anything",
            where=where,
            value=f"{served} requests that did not fail{beyond}",
            expected=f"at least {LEAST_REQUESTS}",
        )


def _check_streamed(served: pl.DataFrame, where: str) -> None:
    several = served.filter(pl.col("output_tokens") > 1)
    if len(several) and (several["ttft_s"] == several["e2e_s"]).all():
        raise InputError(
            "ttft_s = e2e_s in every request: the answers were not streamed, and tell no TTFT or TPOT",
            where=where,
            expected="the time of the first token in ttft_s",
        )


def _hashes(
    section: Measured, kept: Chosen, prompt_tokens: pl.Series, root: Path, block_tokens: int
) -> list[pl.Series]:
    """Columns that tell which prompts share blocks, where the case says how to know."""
    if not (section.same_prompt or section.hashes):
        return []
    tokens = check_column(prompt_tokens, RULES["prompt_tokens"], kept.at)
    if section.hashes:
        size, hashes = section.hashes.block_tokens, _hashes_elsewhere(section.hashes, kept, tokens, root)
    else:
        prompts = kept.raw(section.same_prompt or "", OPTIONAL_TEXT)
        size, hashes = block_tokens, _hashes_of_prompts(prompts, tokens, block_tokens)
    return [hashes.alias("block_hashes"), pl.Series("block_tokens", np.full(len(tokens), size))]


def _hashes_of_prompts(prompts: pl.Series, tokens: pl.Series, size: int) -> pl.Series:
    """Hashes such that every prompt has its own blocks, in all requests that send it."""
    blocks = (tokens + size - 1) // size
    first = prompts.rank("dense").cast(pl.Int64()) * max(blocks.to_list())
    return pl.select(pl.int_ranges(first, first + blocks)).to_series().cast(pl.List(pl.UInt64()))


def _hashes_elsewhere(section: Hashes, kept: Chosen, tokens: pl.Series, root: Path) -> pl.Series:
    """Hashes of another file's rows, full blocks only; the block that is begun is the request's own."""
    other = Chosen(open_trace(root / section.file))
    keys, lists = other.raw(section.by, OPTIONAL_TEXT), other.raw(section.column, OPTIONAL_NUMBERS)
    known = dict(zip(keys.to_list(), lists.to_list(), strict=True))
    wanted = kept.raw(section.by, OPTIONAL_TEXT)
    refuse(~wanted.is_in(keys.to_list()), wanted, kept.at, f"not in {section.file}")
    fresh = 1 + max((max(hashes) for hashes in known.values() if hashes), default=0)
    size, found = section.block_tokens, []
    for key, length in zip(wanted.to_list(), tokens.to_list(), strict=True):
        shared = (known[key] or [])[: length // size]
        own = -(-length // size) - len(shared)
        found.append([*shared, *range(fresh, fresh + own)])
        fresh += own
    return pl.Series(found, dtype=pl.List(pl.UInt64()))
