"""Kernel timings as they are published, read into one shape: times in seconds, GPUs by our names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.errors import InputError, reason

PROFILED = "0.19"
"""Version of the profiles, which do not name it: that of the runs they came with."""

APART = ("gpu", "version", "kernel", "file")
"""What tells measurements of one point apart."""

TEXTS = ("gpu", "version", "kernel", "dtype", "distribution", "op", "kv_dtype", "model", "layer")
"""Columns, by our names, that hold words; all others hold whole numbers."""

OPTIONAL = ("window",)
"""Columns whose values may be absent, or below 0."""

ABOVE_ZERO = ("m", "n", "k")
"""Columns of sizes that no kernel has at 0."""


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
    """The rows of the files of one kind.

    Attributes:
        kind: What kind of files they are.
        rows: Our columns, `time_s`, `gpu` by catalog name, `version` of vLLM as 0.14, `kernel` and `file`.
        left_out: What was read and not kept, in words.
    """

    kind: str
    rows: pl.DataFrame
    left_out: tuple[str, ...] = ()


def read_tables(paths: Sequence[Path]) -> list[KernelTable]:
    """Read files of kernel timings, several of one kind into one table.

    Raises:
        InputError: As of `read_kernels`; or no row is of a release of vLLM.
    """
    tables = [read_kernels(path) for path in paths]
    if not any(len(table.rows) for table in tables):
        said = "; ".join(note for table in tables for note in table.left_out)
        raise InputError(f"no kernel of a release of vLLM ({said or 'no rows'})", where=str(paths[0]))
    joined: dict[str, KernelTable] = {}
    for table in tables:
        before = joined.get(table.kind, KernelTable(table.kind, table.rows.clear()))
        rows = pl.concat([before.rows, table.rows], how="vertical_relaxed")
        joined[table.kind] = KernelTable(table.kind, rows, before.left_out + table.left_out)
    return list(joined.values())


def read_kernels(path: Path) -> KernelTable:
    """Read a Parquet or CSV file of kernel timings.

    Raises:
        InputError: It cannot be read or is no table, its columns are of no known kind, a GPU is unknown, a
            number is none, a size is negative, or a time is not positive (with its row).
    """
    try:
        return _read(path)
    except OSError as error:
        raise InputError(f"cannot read it: {reason(error)}", where=str(path)) from None
    except pl.exceptions.PolarsError as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"neither a Parquet nor a CSV table: {first}", where=str(path)) from None


def _read(path: Path) -> KernelTable:
    with path.open("rb"):  # Polars' words for a missing file are longer
        pass
    table = pl.scan_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.scan_parquet(path)
    names = table.collect_schema().names()
    kind = _kind_of(names, path)
    theirs = {**kind.columns, "time_s": kind.time[0]}
    if "framework" in names:
        theirs["framework"] = "framework"
    raw = table.select(pl.col(column).alias(ours) for ours, column in theirs.items()).collect()
    rows = _typed(raw, theirs, path).with_columns(pl.col("time_s") * kind.time[1], file=pl.lit(path.name))
    rows, left_out = _releases(*_of_vllm(rows, path.name), path.name)
    return KernelTable(kind.name, _named(rows, kind, path), tuple(left_out))


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
        expected="columns as of ai-dynamo/aiconfigurator or LLMServingSim's profiles (docs/kernels.md)",
    )


def _typed(raw: pl.DataFrame, theirs: Mapping[str, str], path: Path) -> pl.DataFrame:
    """Words as text, sizes as whole numbers, times as positive numbers.

    Raises:
        InputError: A value is none of that.
    """
    kinds = {name: _dtype(name) for name in raw.columns}
    rows = raw.with_columns(pl.col(name).cast(dtype, strict=False) for name, dtype in kinds.items())
    for name, dtype in kinds.items():
        wrong = rows[name].is_null()
        if name in OPTIONAL or name == "framework":
            wrong &= raw[name].is_not_null()
        if name == "time_s":
            wrong |= ~(rows[name].is_finite() & (rows[name] > 0)).fill_null(value=False)
        if dtype is pl.Int64 and name not in OPTIONAL:
            wrong |= (rows[name] < _least(name)).fill_null(value=False)
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise InputError(
                "not a time" if name == "time_s" else "not a value of this column",
                where=f"{path}, {_place(row, path)}, column {theirs[name]!r}",
                value=raw[name][row],
                expected=_expected(name, dtype),
            )
    return rows


def _least(name: str) -> int:
    """The smallest size that a column may hold."""
    return 1 if name in ABOVE_ZERO else 0


def _expected(name: str, dtype: type[pl.DataType]) -> str:
    if dtype is pl.Int64 and name not in OPTIONAL:
        return f"a whole number of at least {_least(name)}"
    return _EXPECTED[dtype]


def _place(row: int, path: Path) -> str:
    """The row, and in a CSV file with a line each below its header also the line."""
    return f"row {row + 1} (line {row + 2})" if path.suffix == ".csv" else f"row {row + 1}"


_EXPECTED: dict[type[pl.DataType], str] = {
    pl.String: "text", pl.Int64: "a whole number", pl.Float64: "a positive number",
}  # fmt: skip


def _dtype(name: str) -> type[pl.DataType]:
    if name in TEXTS or name == "framework":
        return pl.String
    return pl.Float64 if name == "time_s" else pl.Int64


def _of_vllm(rows: pl.DataFrame, name: str) -> tuple[pl.DataFrame, list[str]]:
    """Other engines' kernels are not vLLM's."""
    if "framework" not in rows.columns:
        return rows, []
    kept = rows.filter(pl.col("framework").is_null() | (pl.col("framework").str.to_lowercase() == "vllm"))
    gone = len(rows) - len(kept)
    return kept.drop("framework"), [f"{name}: {gone:,} rows of other engines"] if gone else []


def _releases(rows: pl.DataFrame, left_out: list[str], name: str) -> tuple[pl.DataFrame, list[str]]:
    """Version 0.14.0 is 0.14; builds of no release (0.1.dev) tell nothing."""
    if "version" not in rows.columns:
        return rows.with_columns(pl.lit(PROFILED).alias("version")), left_out
    kept = rows.with_columns(pl.col("version").str.extract(r"^(0\.\d{1,2})(?:\D|$)")).drop_nulls("version")
    kept = kept.filter(pl.col("version") != "0.1")
    gone = len(rows) - len(kept)
    return kept, [*left_out, f"{name}: {gone:,} rows of no release of vLLM"] if gone else left_out


def _named(rows: pl.DataFrame, kind: Kind, path: Path) -> pl.DataFrame:
    """GPUs by their catalog names; the kernels of a profile are those of its model.

    Raises:
        InputError: Unknown GPU.
    """
    try:
        names = {name: find_gpu(name).name for name in rows["gpu"].unique().sort().to_list()}
    except InputError as error:
        raise InputError(str(error), where=f"{path}, column {kind.columns['gpu']!r}") from None
    rows = rows.with_columns(pl.col("gpu").replace_strict(names, return_dtype=pl.String))
    return rows if "kernel" in rows.columns else rows.with_columns(kernel=pl.col("model"))


def kernels_of(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """(kernel, the median time of each point, ordered by size) of each kernel that was measured, by name."""
    keys = [name for name in rows.columns if name not in (*APART, "time_s")]
    for (kernel,), part in sorted(rows.group_by("kernel"), key=lambda found: str(found[0])):
        yield str(kernel), part.group_by(keys).agg(pl.col("time_s").median()).sort(keys)


def gpus_of(tables: Iterable[KernelTable]) -> list[GpuSpec]:
    """All GPUs of the tables, by name."""
    names = {name for table in tables for name in table.rows["gpu"].unique().to_list()}
    return [find_gpu(name) for name in sorted(names)]
