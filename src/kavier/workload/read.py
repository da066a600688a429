"""Read a trace, whatever its format: the header tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kavier.errors import InputError
from kavier.workload.formats import (
    azure,
    bailian,
    burstgpt,
    marconi,
    mooncake,
    native,
    sharegpt,
    vllm_bench,
)
from kavier.workload.formats.native import write_trace
from kavier.workload.formats.source import Format, TraceFile, open_trace
from kavier.workload.table import Workload

__all__ = ["FORMATS", "read_trace", "write_trace"]

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (native, azure, burstgpt, mooncake, bailian, marconi, vllm_bench, sharegpt)
}
"""Name -> format."""

_Match = tuple[Format, tuple[str, ...]]


def read_trace(path: Path, format: str = "auto", block_tokens: int | None = None) -> Workload:
    """Read a trace of requests.

    Rows in errors are data rows counted from 1, the header not counted; the line of the file follows in
    brackets where the file has lines.

    Args:
        path: CSV, JSON, JSON lines or Parquet; gzipped files too.
        format: A name of `FORMATS`, or "auto": the format with the most columns that the file has, all of
            its own among them.
        block_tokens: Tokens of a hashed block, where the format does not tell; None = the format's default.

    Raises:
        InputError: Unknown format, a file that cannot be read or is of no known format, a bad value.
    """
    if format != "auto" and format not in FORMATS:
        names = ["auto", *FORMATS]
        raise InputError(
            f"unknown trace format {format!r}", expected=f"one of {', '.join(names)}", near=(format, names)
        )
    file = replace(open_trace(path), block_tokens=block_tokens)
    found = _sniff(file, FORMATS.values() if format == "auto" else [FORMATS[format]])
    if block_tokens is not None and found is not mooncake.FORMAT:
        raise InputError(
            f"block_tokens with a trace of format {found.name!r}, which tells",
            where=str(path),
            value=block_tokens,
        )
    workload = found.read(file)
    return replace(workload, unread_columns=tuple(file.unread))


def _sniff(file: TraceFile, formats: Iterable[Format]) -> Format:
    """The format whose longest header the file has."""
    every = [(one, header) for one in formats for header in one.headers]
    fits = [(one, header) for one, header in every if set(header) <= set(file.columns)]
    if not fits:
        raise _unknown(file, every)
    longest = max(len(header) for _, header in fits)
    best = {one.name: one for one, header in fits if len(header) == longest}
    if len(best) > 1:
        raise InputError(f"could be {' or '.join(best)}", where=str(file.path), expected="a format by name")
    return next(iter(best.values()))


def _unknown(file: TraceFile, every: list[_Match]) -> InputError:
    """What the file has, and what the formats it comes closest to would still need."""
    found = f"columns found: {', '.join(map(repr, file.columns[:20])) or 'none'}"
    nearest = _nearest(file, every)
    if nearest:
        needs = ", or ".join(
            f"missing column {_missing(file, header)} of {one.name}" for one, header in nearest
        )
        header = nearest[0][1]
        absent = next(name for name in header if name not in file.columns)
        others = [name for name in file.columns if name not in header]
        return InputError(f"{needs} ({found})", where=str(file.path), near=(absent, others))
    known = "; ".join({f"{one.name}: {one.shape}": None for one, _ in every})
    return InputError(f"no trace format has these columns ({found})", where=str(file.path), expected=known)


def _nearest(file: TraceFile, every: list[_Match]) -> list[_Match]:
    """Headers of which the file has the most, if that is at least half."""
    shares = [len(set(header) & set(file.columns)) / len(header) for _, header in every]
    best = max(shares)
    return [match for match, share in zip(every, shares, strict=True) if share == best >= 0.5]


def _missing(file: TraceFile, header: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in header if name not in file.columns)
