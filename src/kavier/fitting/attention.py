"""Attention: `timing.attention.AttentionLayers`, fitted to tables of kernels or to a profiled model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Attention
from kavier.ecosystem.models import find_model
from kavier.fitting.gemm import numbers_of
from kavier.fitting.groups import FIXED, Group, Points, Refused, Task, between, columns, fit_task, only
from kavier.fitting.robust import Array, Number, bias
from kavier.scenario import Engine
from kavier.timing.attention import AttentionLayers, attention_layers, attention_work
from kavier.timing.parameters import parameters_of

COLD_KV = 1.5
"""KV above this multiple of the L2 comes from memory: the attention benchmark repeats one call."""

THOUSAND = 1000.0
"""Tokens a unit of a plot's axis."""

HEAD_DIM = 128
"""Heads of this size, with 16-bit KV and no window, are fitted; errors are told for others."""

DECODE = {
    "launch_s": Number(15e-6, 5e-6, 1e-4, "s"),
    "sequence_head_s": Number(1e-8, 1e-10, 1e-6, "s"),
    "memory_efficiency": Number(0.9, 0.3, 1.0),
}
PREFILL = {
    "launch_s": Number(10e-6, 1e-6, 1e-4, "s"),
    "compute_efficiency": Number(0.6, 0.1, 1.0),
    "query_efficiency": Number(0.4, 0.02, 1.0),
    "context_efficiency": Number(0.3, 0.02, 1.0),
}
MIXED = {"mixed_rows": Number(128.0, 1.0, 256.0, "rows"), "empty_block_s": Number(5e-9, 1e-10, 1e-7, "s")}
"""Begun with whole blocks of rows: with few, decodes wait for memory and no point tells how many."""

NUMBERS = {"attention.decode": DECODE, "attention.prefill": PREFILL, "attention.mixed": MIXED}

NEUTRAL = FIXED | dict.fromkeys(
    [f"{group}.{name}" for group, numbers in {**NUMBERS, "gemm.bf16": numbers_of("bf16")}.items()
     for name in numbers],
    1.0,
)  # fmt: skip
"""Numbers that a form reads although the points at hand do not depend on them."""

OTHERS = {
    "fp8 KV": (pl.col("kv_dtype") == "fp8", HEAD_DIM, False),
    "heads of 64": (pl.col("kv_dtype") == "bfloat16", 64, False),
    "heads of 256": (pl.col("kv_dtype") == "bfloat16", 256, False),
    "windows": (pl.col("kv_dtype") == "bfloat16", HEAD_DIM, True),
}
"""Rows that are priced with the same numbers: which, the size of their heads, whether they have a window."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Sums over the batch of each point, by the names of `timing.step.StepWork`: arrays of equal shape."""

    prefills: Array
    prefill_tokens: Array
    prefill_pairs: Array
    prefill_context_tokens: Array
    decodes: Array
    decode_context_tokens: Array

    def part(self, which: Array) -> Batches:
        """The points of a mask or of indices."""
        return Batches(
            self.prefills[which], self.prefill_tokens[which], self.prefill_pairs[which],
            self.prefill_context_tokens[which], self.decodes[which], self.decode_context_tokens[which],
        )  # fmt: skip


def batches_of(chunk: Array, cached: Array, decodes: Array, context: Array, chunks: Array) -> Batches:
    """`chunks` equal chunks with as many `cached` tokens each, beside `decodes` that read `context` each."""
    tokens = chunks * chunk
    return Batches(
        np.where(tokens > 0, chunks, 0.0),
        tokens,
        tokens * cached + chunks * chunk * (chunk + 1) / 2,
        np.where(tokens > 0, tokens + chunks * cached, 0.0),
        decodes,
        decodes * context,
    )


def attention_s(layers: AttentionLayers, work: Batches) -> Array:
    """Seconds of one layer for each batch: `AttentionLayers.cost`, on arrays."""
    tokens, decodes = work.prefill_tokens, work.decodes
    window = np.inf if layers.window is None else layers.window
    read = np.minimum(work.decode_context_tokens, np.where(decodes > 0, decodes, 1.0) * window)
    pairs = np.minimum(work.prefill_pairs, np.where(tokens > 0, tokens, 1.0) * window)
    context = np.minimum(work.prefill_context_tokens, tokens + np.maximum(work.prefills, 1.0) * (window - 1))
    rows_s = decodes * layers.sequence_s
    alone_s = layers.decode_launch_s + rows_s + read * layers.decode_s
    mixed_s = layers.prefill_launch_s + rows_s + read * layers.mixed_decode_s
    beside_s = np.maximum(mixed_s, alone_s) + decodes * tokens * layers.empty_block_s
    decodes_s = np.where(tokens > 0, beside_s, alone_s)
    chunks_s = pairs * layers.pair_s + tokens * layers.token_s
    chunks_s = chunks_s + (context - tokens) * layers.expand_s + context * layers.read_s
    total_s: Array = np.where(decodes > 0, decodes_s, layers.prefill_launch_s) + np.where(
        tokens > 0, chunks_s, 0.0
    )
    return total_s


def fit_attention(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Iterator[Group | Refused]:
    """Decodes beyond the L2, and prefills without cached tokens, in tables of single kernels.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: op, batch, isl, step, heads, kv_heads, head_dim, kv_dtype, dtype, window, time_s.
    """
    rows = _whole_groups(rows)
    decodes, prefills = _cold_decodes(gpu, rows), _served_prefills(rows)
    plain = (pl.col("kv_dtype") == "bfloat16") & (pl.col("head_dim") == HEAD_DIM) & (pl.col("window") == 0)
    known = dict(parameters_of(gpu, "datasheet").values)  # what decodes with a window take of other groups
    for name, of_op, size in (
        ("attention.prefill", prefills, "tokens"),
        ("attention.decode", decodes, "1,000 context tokens"),
    ):
        if len(of_op):
            points_of = partial(_table_points, gpu, name, NEUTRAL)
            beside = partial(_errors_beside, gpu, name, known, of_op)
            fitted, numbers = of_op.filter(plain), NUMBERS[name]
            found = fit_task(Task(name, gpu, version, fitted, numbers, points_of, size, beside=beside))
            yield found
            known |= _named(found)


def _named(found: Group | Refused) -> dict[str, float]:
    """The numbers by dotted name; none if there are none."""
    values = found.values if isinstance(found, Group) else {}
    return {f"{found.name}.{name}": value for name, value in values.items()}


def _whole_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """Equal groups of at least four query heads, as one GPU of a served model has them."""
    return rows.filter((pl.col("heads") % pl.col("kv_heads") == 0) & (pl.col("heads") >= 4)).with_columns(
        pl.col("window").fill_null(0.0)
    )


def _cold_decodes(gpu: GpuSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """Decodes whose KV does not stay in the L2 cache between two runs of the benchmark."""
    context = pl.col("step") + 1
    context = pl.when(pl.col("window") > 0).then(pl.min_horizontal("window", context)).otherwise(context)
    value_bytes = pl.when(pl.col("kv_dtype") == "fp8").then(1).otherwise(2)
    read = 2 * value_bytes * pl.col("head_dim") * pl.col("batch") * context * pl.col("kv_heads")
    decodes = (pl.col("op") == "generation_attention") & (pl.col("step") >= 127)
    return rows.filter(decodes & (read > COLD_KV * gpu.l2_bytes))


def _served_prefills(rows: pl.DataFrame) -> pl.DataFrame:
    """Prefills as long as chunks are, in 16-bit arithmetic."""
    return rows.filter(
        (pl.col("op") == "context_attention")
        & (pl.col("dtype") == "bfloat16")
        & (pl.col("batch") * pl.col("isl") <= 32768)
        & (pl.col("isl") <= 16384)
    )


def _table_points(gpu: GpuSpec, group: str, known: Mapping[str, float], rows: pl.DataFrame) -> Points:
    batch, isl, step, measured_s = columns(rows, "batch", "isl", "step", "time_s")
    nothing = np.zeros(len(rows))
    if group == "attention.decode":
        work = batches_of(nothing, nothing, batch, step + 1, nothing)
        size = work.decode_context_tokens / THOUSAND
        regimes = {"beyond the L2": np.full(len(rows), fill_value=True)}
    else:
        work = batches_of(isl, nothing, nothing, nothing, batch)
        size = work.prefill_tokens
        regimes = between(size, ("256-2,047 tokens", 256, 2048), ("above", 2048, 2**40))
    shapes = [
        (_attention(shape), _engine(shape), work.part(where), where)
        for shape, where in _shapes(rows, ("heads", "kv_heads", "head_dim", "kv_dtype", "window"))
    ]

    def form(values: Mapping[str, float]) -> Array:
        parameters, total_s = only(group, values, known), np.empty(len(rows))
        for attention, engine, part, where in shapes:
            total_s[where] = attention_s(attention_layers(gpu, parameters, attention, engine, 1), part)
        return total_s

    return Points(form, measured_s, size, regimes)


def _shapes(rows: pl.DataFrame, names: tuple[str, ...]) -> Iterator[tuple[dict[str, object], Array]]:
    """(values of the columns, indices of the rows that have them)."""
    for values, part in rows.with_row_index("row").group_by(*names, maintain_order=True):
        yield dict(zip(names, values, strict=True)), part["row"].to_numpy()


def _attention(shape: Mapping[str, object]) -> Attention:
    heads, kv_heads, head_dim, window = (
        int(str(shape[name]).removesuffix(".0")) for name in ("heads", "kv_heads", "head_dim", "window")
    )
    return Attention("gqa", heads, kv_heads, head_dim, window=window or None)


def _engine(shape: Mapping[str, object]) -> Engine:
    return Engine(kv_cache_dtype="fp8" if shape["kv_dtype"] == "fp8" else "auto")


def _errors_beside(
    gpu: GpuSpec,
    group: str,
    known: Mapping[str, float],
    rows: pl.DataFrame,
    kernel: str,
    values: Mapping[str, float],
) -> list[str]:
    """Errors of the numbers, beside `known` ones, on rows of the same kernel that they were not fitted to."""
    told, rows = [], rows.filter(pl.col("kernel") == kernel)
    for label, (which, head_dim, windowed) in OTHERS.items():
        window = pl.col("window") > 0 if windowed else pl.col("window") == 0
        part = rows.filter(which & (pl.col("head_dim") == head_dim) & window)
        if len(part):
            points = _table_points(gpu, group, known, part)
            told.append(f"{label}: {bias(points.form(values) / points.measured_s - 1.0)}")
    return told


def fit_profiled_attention(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Iterator[Group | Refused]:
    """Decodes, then prefills, then what both in one batch add, of a profiled model on one GPU.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: model, tp, chunk, cached, decodes, context, time_s.
    """
    rows = rows.filter(
        (pl.col("tp") == 1) & (pl.col("decodes") <= 256) & (pl.max_horizontal("cached", "context") <= 8192)
    )
    known = dict(NEUTRAL)
    for group, part in _profiled_parts(gpu, rows):
        points_of = partial(_profiled_points, gpu, group, known)
        size = "tokens" if group == "attention.prefill" else "1,000 context tokens"
        found = fit_task(Task(group, gpu, version, part, NUMBERS[group], points_of, size))
        yield found
        if isinstance(found, Refused):
            return
        known |= _named(found)


def _profiled_parts(gpu: GpuSpec, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """What is alone where memory is cold; what a mixed batch adds, where decodes weigh."""
    models = rows["model"].unique().sort().to_list()
    kv_bytes = {model: attention_work(find_model(model).layers[0].attention, Engine()).kv_bytes
                for model in models}  # fmt: skip
    read = pl.col("decodes") * pl.col("context")
    read_bytes = read * pl.col("model").replace_strict(kv_bytes, return_dtype=pl.Int64)
    yield "attention.decode", rows.filter((pl.col("chunk") == 0) & (read_bytes > COLD_KV * gpu.l2_bytes))
    yield "attention.prefill", rows.filter((pl.col("decodes") == 0) & (pl.col("chunk") >= 16))
    yield "attention.mixed", rows.filter((pl.col("chunk") >= 256) & (pl.col("decodes") > 0) & (read >= 16384))


def _profiled_points(gpu: GpuSpec, group: str, known: Mapping[str, float], rows: pl.DataFrame) -> Points:
    """Of one model: kernels of a profile are told apart by it."""
    chunk, cached, decodes, context, measured_s = columns(
        rows, "chunk", "cached", "decodes", "context", "time_s"
    )
    attention = find_model(rows["model"][0]).layers[0].attention
    work = batches_of(chunk, cached, decodes, context, np.ones(len(rows)))

    def form(values: Mapping[str, float]) -> Array:
        return attention_s(attention_layers(gpu, only(group, values, known), attention, Engine(), 1), work)

    size = work.prefill_tokens if group == "attention.prefill" else work.decode_context_tokens / THOUSAND
    return Points(form, measured_s, size, {"all": np.full(len(rows), fill_value=True)})
