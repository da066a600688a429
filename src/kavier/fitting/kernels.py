"""The numbers of the step-time model, each group fitted to measured kernels of one GPU.

The forms are the very functions that price a step. What is known not to hold in serving is left out: points
whose data stay in the L2 cache because a benchmark repeats them, and launches outside of a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting import experts, gemm
from kavier.fitting.attention import fit_attention, fit_profiled_attention
from kavier.fitting.collectives import fit_all_reduce
from kavier.fitting.experts import fit_experts
from kavier.fitting.gemm import fit_gemm, fit_profiled_gemm
from kavier.fitting.groups import Group, Refused
from kavier.fitting.tables import KINDS, KernelTable
from kavier.timing.own_kernels import version_number

Tables = Mapping[str, pl.DataFrame]
"""Rows by kind of table."""


def fit_gpu(gpu: GpuSpec, tables: Sequence[KernelTable]) -> Iterator[Group | Refused]:
    """Every group that the tables tell of a GPU, for each version of vLLM, oldest first.

    Tables of single kernels, of many shapes, come before the profile of one served model.
    """
    own = {table.kind: table.rows.filter(pl.col("gpu") == gpu.name) for table in tables}
    kinds = {kind for kind, rows in own.items() if len(rows)}
    versions = {version for rows in own.values() for version in rows["version"].unique().to_list()}
    for version in sorted(versions, key=version_number):
        now = {kind: rows.filter(pl.col("version") == version) for kind, rows in own.items()}
        yield from _version(gpu, version, {kind: rows for kind, rows in now.items() if len(rows)}, kinds)


def _version(gpu: GpuSpec, version: str, held: Tables, kinds: set[str]) -> Iterator[Group | Refused]:
    """The groups of one version.

    Args:
        gpu: Of all rows.
        version: Likewise.
        held: Tables that have rows of this version.
        kinds: Kinds of tables that have rows of any version.
    """
    if "gemm" in held:
        yield from fit_gemm(gpu, version, held["gemm"])
    elif "gemm" not in kinds and (layers := [held[kind] for kind in _PROFILED_LAYERS if kind in held]):
        yield fit_profiled_gemm(gpu, version, pl.concat(layers, how="diagonal_relaxed"))
    if "moe" in held:
        yield from fit_experts(gpu, version, held["moe"])
    if "attention" in held:
        yield from fit_attention(gpu, version, held["attention"])
    if "profile_attention" in held:
        for group in fit_profiled_attention(gpu, version, held["profile_attention"]):
            if group.name == "attention.mixed" or "attention" not in kinds:
                yield group
    if "all_reduce" in held:
        yield from fit_all_reduce(gpu, version, held["all_reduce"])


_PROFILED_LAYERS = ("profile_dense", "profile_per_sequence")

FITTED: Mapping[str, Collection[str]] = {"gemm": gemm.THEIRS.values(), "moe": experts.THEIRS.values()}
"""Kind of table -> the types of weights that are fitted, as the tables name them."""


def unknown_types(tables: Sequence[KernelTable]) -> Iterator[str]:
    """What rows of which types nothing is fitted to, in words."""
    columns = {kind.name: kind.columns for kind in KINDS}
    for table in tables:
        if table.kind not in FITTED:
            continue
        fitted = list(FITTED[table.kind])
        others = table.rows.filter(~pl.col("dtype").is_in(fitted))
        for file, name, rows in others.group_by("file", "dtype").len().sort("file", "dtype").rows():
            column = columns[table.kind]["dtype"]
            yield f"{file}: {rows:,} rows of {column} {name!r} (fitted are {', '.join(fitted)})"
