"""Kernel timings as they are published, read into one shape: times in seconds, GPUs by our names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.errors import InputError

PROFILED = "0.19.0"
"""Version of the profiles, which do not name it: that of the runs they came with."""

VERSIONED = ("gpu", "version", "kernel")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file.

    Attributes:
        name: What it holds.
        columns: Its columns that are read, by our names; all must be there.
        time: Column of times, and seconds of its unit.
    """

    name: str
    columns: Mapping[str, str]
    time: tuple[str, float]


_AIC = {"gpu": "system", "version": "version", "kernel": "kernel_source"}
KINDS = (
    Kind("gemm", {**_AIC, "dtype": "gemm_dtype", "m": "m", "n": "n", "k": "k"}, ("latency", 1e-3)),
    Kind(
        "moe",
        {
            **_AIC, "dtype": "moe_dtype", "tokens": "num_tokens", "hidden": "hidden_size",
            "width": "inter_size", "per_token": "topk", "experts": "num_experts", "tp": "moe_tp_size",
            "ep": "moe_ep_size", "distribution": "distribution",
        },
        ("latency", 1e-3),
    ),
    Kind(
        "attention",
        {
            **_AIC, "op": "op_name", "batch": "batch_size", "isl": "isl", "step": "step",
            "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
            "kv_dtype": "kv_cache_dtype", "dtype": "attn_dtype",
            "window": "window_size",
        },
        ("latency", 1e-3),
    ),
    Kind(
        "all_reduce",
        {**_AIC, "dtype": "allreduce_dtype", "gpus": "num_gpus", "elements": "message_size"},
        ("latency", 1e-3),
    ),
    Kind(
        "profile_attention",
        {
            "gpu": "gpu", "model": "model", "tp": "tp", "chunk": "prefill_chunk", "cached": "kv_prefill",
            "decodes": "n_decode", "context": "kv_decode",
        },
        ("time_us", 1e-6),
    ),
    Kind(
        "profile_dense",
        {"gpu": "gpu", "model": "model", "tp": "tp", "layer": "layer", "tokens": "tokens"},
        ("time_us", 1e-6),
    ),
    Kind(
        "profile_per_sequence",
        {"gpu": "gpu", "model": "model", "tp": "tp", "layer": "layer", "tokens": "sequences"},
        ("time_us", 1e-6),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelTable:
    """The rows of one file.

    Attributes:
        kind: What kind of file it is.
        source: Its name, for provenance.
        rows: Our columns, `time_s`, `gpu` by catalog name, and `version` of vLLM as 0.14.
    """

    kind: str
    source: str
    rows: pl.DataFrame


def read_kernels(path: Path) -> KernelTable:
    """Read a Parquet or CSV file of kernel timings.

    Raises:
        InputError: It cannot be read, its columns are of no known kind, a GPU is unknown, or a time is not
            positive (with its row).
    """
    table = _read(path)
    kind = _kind_of(table.columns, path)
    column, unit_s = kind.time
    rows = table.select(
        *(pl.col(theirs).alias(ours) for ours, theirs in kind.columns.items()),
        (pl.col(column).cast(pl.Float64) * unit_s).alias("time_s"),
        *([pl.col("framework").cast(pl.String)] if "framework" in table.columns else []),
    )
    rows = rows.with_columns(pl.col(c).cast(pl.String) for c in rows.columns if _is_text(rows.schema[c]))
    _refuse_times(rows, column, path)
    if "framework" in rows.columns:  # other engines' kernels are not vLLM's
        engine = pl.col("framework")
        rows = rows.filter(engine.is_null() | (engine.str.to_lowercase() == "vllm")).drop("framework")
    names = {name: find_gpu(name).name for name in rows["gpu"].unique().to_list()}
    rows = rows.with_columns(pl.col("gpu").replace_strict(names))
    if "version" not in rows.columns:
        rows = rows.with_columns(pl.lit(PROFILED).alias("version"))
    version = pl.col("version").str.extract(r"^(0\.\d\d)\b")  # 0.1.dev is a build from no release
    return KernelTable(kind.name, path.name, rows.with_columns(version).drop_nulls("version"))


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.read_parquet(path)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}", where=str(path)) from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"neither Parquet nor CSV: {error}", where=str(path)) from None


def _kind_of(columns: list[str], path: Path) -> Kind:
    missing = {
        kind.name: [c for c in (*kind.columns.values(), kind.time[0]) if c not in columns] for kind in KINDS
    }
    for kind in KINDS:
        if not missing[kind.name]:
            return kind
    nearest = min(missing, key=lambda name: len(missing[name]))
    raise InputError(
        f"no known kind of kernel file; nearest is {nearest}, without {', '.join(missing[nearest])}",
        where=str(path),
        expected="columns as of ai-dynamo/aiconfigurator or LLMServingSim's profiles (docs/validation.md)",
    )


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Categorical | pl.Enum)


def _refuse_times(rows: pl.DataFrame, column: str, path: Path) -> None:
    bad = rows.with_row_index("row").filter(~(pl.col("time_s").is_finite() & (pl.col("time_s") > 0)))
    bad = bad if len(bad) else rows.with_row_index("row").filter(pl.col("time_s").is_null())
    if len(bad):
        raise InputError(
            "not a time",
            where=f"{path}, row {bad['row'][0] + 1}, column {column!r}",
            value=bad["time_s"][0],
            expected="a positive number",
        )


def kernels_of(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """(kernel, the median time of each point) of each kernel that was measured."""
    keys = [c for c in rows.columns if c not in (*VERSIONED, "time_s")]
    for (kernel,), part in sorted(rows.group_by("kernel"), key=lambda found: str(found[0])):
        yield str(kernel), part.group_by(keys).agg(pl.col("time_s").median()).sort(keys)


def gpus_of(tables: Iterable[KernelTable]) -> list[GpuSpec]:
    """All GPUs of the tables, by name."""
    names = {name for table in tables for name in table.rows["gpu"].unique().to_list()}
    return [find_gpu(name) for name in sorted(names)]
