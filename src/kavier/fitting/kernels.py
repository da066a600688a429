"""The numbers of the step-time model, each group fitted to measured kernels of one GPU.

The forms are the very functions that price a step. What is known not to hold in serving is left out: points
whose data stay in the L2 cache because a benchmark repeats them, and tables of launches outside of a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.models import find_model
from kavier.fitting.robust import Array, Fit, Number, fit, spread
from kavier.fitting.tables import KernelTable, kernels_of
from kavier.scenario import Engine
from kavier.timing.attention import BLOCK_ROWS, AttentionWork, attention_work
from kavier.timing.collectives import KNOTS, Collective
from kavier.timing.datasheet import graph_sizes
from kavier.timing.gemm import gemm_roof
from kavier.timing.moe import distinct_experts, expert_form
from kavier.timing.parameters import Parameters

L2_BYTES = {
    "A10": 6e6, "A100-80GB-SXM": 40e6, "H100-SXM": 50e6, "H200-SXM": 50e6, "L40S": 96e6, "B200-SXM": 126e6,
    "RTX-4090": 72e6, "RTX-PRO-6000": 128e6,
}  # fmt: skip
"""Datasheets and architecture papers."""

COLD_WEIGHTS = 0.25
"""Weights above this share of the L2 come from memory: the benchmark takes turns with several of them."""

COLD_KV = 1.5
"""KV above this multiple of the L2 comes from memory: the attention benchmark repeats one call."""

GRAPHS = graph_sizes(512, 8192)
"""Rows that a step has after padding, up to the largest graph; no others are served."""

MOST_LAUNCH_S = {"bf16": 30e-6, "fp8": 10e-6, "fp8_block": 30e-6}
"""A multiplication that seems to take longer to start was measured outside of a CUDA graph, or together with
kernels that quantise its input: with one scale a row vLLM's compiler fuses these into the op before."""

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "mxfp4": 4.25 / 8, "int4": 4.125 / 8}
THEIR_GEMM = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block"}
THEIR_EXPERTS = {**THEIR_GEMM, "mxfp4": "w4a16_mxfp4", "int4": "int4_wo"}


@dataclass(frozen=True, slots=True)
class Group:
    """One group of numbers as fitted.

    Attributes:
        name: `gemm.bf16`.
        version: Of vLLM.
        values: By name, with their units.
        units: By name.
        source: Files, GPU, versions and points.
        error: In words, by regime.
        predicted_s: Of each point, for plots.
        measured_s: Likewise.
    """

    name: str
    version: str
    values: Mapping[str, float]
    units: Mapping[str, str]
    source: str
    error: str
    predicted_s: Array
    measured_s: Array


@dataclass(frozen=True, slots=True)
class Refused:
    """A group that the tables do not tell, and why."""

    name: str
    version: str
    why: str


_GEMM = {
    "compute_efficiency": Number(0.7, 0.1, 1.0),
    "memory_efficiency": Number(0.85, 0.3, 1.0),
    "launch_s": Number(4e-6, 1e-6, 1e-3, "s"),
    "sharpness": Number(2.5, 1.0, 8.0),
    "short_k": Number(80.0, 1.0, 1000.0),
}
_TILES = {"tail": Number(1.1, 0.5, 3.0), "small_rate": Number(2.0, 0.5, 6.0)}
_EXPERTS = {
    "compute_efficiency": Number(0.5, 0.05, 1.0),
    "memory_efficiency": Number(0.85, 0.3, 1.0),
    "launch_s": Number(30e-6, 1e-6, 3e-4, "s"),
    "expert_s": Number(1e-7, 1e-8, 5e-6, "s"),
    "sharpness": Number(1.5, 1.0, 8.0),
}
_DECODE = {
    "launch_s": Number(15e-6, 5e-6, 1e-4, "s"),
    "sequence_head_s": Number(1e-8, 1e-10, 1e-6, "s"),
    "memory_efficiency": Number(0.9, 0.3, 1.0),
}
_PREFILL = {
    "launch_s": Number(10e-6, 1e-6, 1e-4, "s"),
    "compute_efficiency": Number(0.6, 0.1, 1.0),
    "query_efficiency": Number(0.4, 0.02, 1.0),
    "context_efficiency": Number(0.3, 0.02, 1.0),
}
_MIXED = {"mixed_rows": Number(64.0, 1.0, 256.0, "rows"), "empty_block_s": Number(5e-9, 1e-10, 1e-7, "s")}
_COLLECTIVE = {
    "latency_s": Number(5e-6, 1e-6, 1e-3, "s"),
    **{f"share_{knot}": Number(0.3, 0.001, 1.0) for knot in KNOTS},
}


def fit_groups(gpu: GpuSpec, tables: list[KernelTable]) -> Iterator[Group | Refused]:
    """Every group that the tables tell of a GPU, for each version of vLLM.

    Tables of single kernels, of many shapes, come before the profile of one served model.
    """
    own = [replace(table, rows=table.rows.filter(pl.col("gpu") == gpu.name)) for table in tables]
    everywhere = {table.kind for table in own if len(table.rows)}
    for version in sorted({v for table in own for v in table.rows["version"].unique().to_list()}):
        now = [replace(table, rows=table.rows.filter(pl.col("version") == version)) for table in own]
        yield from _version(gpu, {table.kind: table for table in now if len(table.rows)}, everywhere)


def _version(
    gpu: GpuSpec, held: Mapping[str, KernelTable], everywhere: set[str]
) -> Iterator[Group | Refused]:
    if "gemm" in held:
        kinds = [kind for kind in THEIR_GEMM if _has(held["gemm"], THEIR_GEMM[kind])]
        yield from (fit_gemm(gpu, held["gemm"], kind) for kind in kinds)
    elif "profile_dense" in held and "gemm" not in everywhere:
        yield fit_profile_gemm(gpu, held["profile_dense"], held.get("profile_per_sequence"))
    if "moe" in held:
        kinds = [kind for kind in THEIR_EXPERTS if _has(held["moe"], THEIR_EXPERTS[kind])]
        yield from (fit_experts(gpu, held["moe"], kind) for kind in kinds)
    if "attention" in held:
        yield from fit_attention(gpu, held["attention"])
    if "profile_attention" in held:
        only_mixed = "attention" in everywhere
        for group in fit_profile_attention(gpu, held["profile_attention"]):
            if group.name == "attention.mixed" or not only_mixed:
                yield group
    if "all_reduce" in held:
        yield from fit_all_reduce(gpu, held["all_reduce"])


def _has(table: KernelTable, dtype: str) -> bool:
    return bool((table.rows["dtype"] == dtype).any())


COVERAGE = 0.11
"""Of the most points of a kernel, that another must have to be chosen: few may be of one odd model."""

LEAST_POINTS = 60
"""Of one kernel, for a group to be fitted to it."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """A fit to the points of one kernel."""

    label: str
    found: Fit
    rows: pl.DataFrame

    @property
    def miss(self) -> float:
        """Median of absolute errors."""
        return float(np.median(np.abs(self.found.errors)))


def _best(
    rows: pl.DataFrame, one: Callable[[pl.DataFrame], Fit], least: int, most_launch_s: float = math.inf
) -> tuple[_Tried, str] | str:
    """Of the kernels with many points the one that the form follows best, and the others' errors in words.

    If there is none, why: too few points, or launches that are not served (`MOST_LAUNCH_S`).
    """
    tried = [_Tried(label, one(part), part) for label, part in kernels_of(rows) if len(part) >= least]
    if not tried:
        return f"{len(rows)} points, of no kernel as many as {least}"
    tried = [each for each in tried if each.found.values.get("launch_s", 0.0) <= most_launch_s]
    if not tried:
        return f"all kernels seem to take over {most_launch_s:.0e} s to start: no such launch is served"
    many = COVERAGE * max(len(each.rows) for each in tried)
    best = min((each for each in tried if len(each.rows) >= many), key=lambda each: each.miss)
    others = ", ".join(f"{each.label} {100 * each.miss:.1f} %" for each in tried if each is not best)
    return best, f" (median errors of others: {others})" if others else ""


def fit_gemm(gpu: GpuSpec, table: KernelTable, kind: str) -> Group | Refused:
    """The form of `timing.gemm.Roof`, to plain matrix multiplications of one dtype."""
    weight_bytes, name = WEIGHT_BYTES[kind], f"gemm.{kind}"
    rows = table.rows.filter(
        (pl.col("dtype") == THEIR_GEMM[kind])
        & pl.col("n").is_between(1024, 65536)
        & pl.col("k").is_between(1024, 51200)
        & (pl.col("m").is_in(GRAPHS) | pl.col("m").is_between(513, 8192))
        & (pl.col("n") * pl.col("k") * weight_bytes > COLD_WEIGHTS * L2_BYTES[gpu.name])
    )
    numbers = {**_GEMM, **(_TILES if kind == "fp8" else {})}

    def one(part: pl.DataFrame) -> Fit:
        m, n, k, measured = _columns(part, "m", "n", "k", "time_s")
        return fit(
            lambda values: gemm_roof(gpu, _only(name, values), kind).time_s(m, n, k, n * k * weight_bytes),
            measured, numbers,
        )  # fmt: skip

    chosen = _best(rows, one, LEAST_POINTS, MOST_LAUNCH_S[kind])
    if isinstance(chosen, str):
        return Refused(name, _version_of(table), chosen)
    best, others = chosen
    m, measured = _columns(best.rows, "m", "time_s")
    regimes = {"1-64 rows": m <= 64, "65-256": (m > 64) & (m <= 256), "257-4,352": (m > 256) & (m < 8192)}
    return _group(
        name, _version_of(table), best.found, numbers, _source(table, gpu, best) + others, measured, regimes
    )


def _columns(rows: pl.DataFrame, *names: str) -> list[Array]:
    return [rows[name].to_numpy().astype(np.float64) for name in names]


def fit_profile_gemm(gpu: GpuSpec, dense: KernelTable, heads: KernelTable | None) -> Group | Refused:
    """The same, to the layers of a profiled model."""
    points: list[tuple[float, float, float, float]] = []
    for table in (dense, *([heads] if heads else [])):
        points += [
            (row["tokens"], *shape, row["time_s"])
            for row in table.rows.filter(pl.col("tp") == 1).iter_rows(named=True)
            if (shape := _shape(row["model"], row["layer"]))
        ]
    m, n, k, measured = np.array(points, np.float64).T

    def form(values: Mapping[str, float]) -> Any:
        return gemm_roof(gpu, _only("gemm.bf16", values), "bf16").time_s(m, n, k, 2.0 * n * k)

    regimes = {"1-256 rows": m <= 256, "512-2,048": m >= 512}
    found = fit(form, measured, _GEMM)
    return _group(
        "gemm.bf16",
        _version_of(dense),
        found,
        _GEMM,
        f"{dense.source}, {gpu.name}, {len(m):,} points",
        measured,
        regimes,
    )


def _shape(model: str, layer: str) -> tuple[int, int] | None:
    spec = find_model(model)
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    hidden, heads = spec.hidden_size, attention.heads * attention.head_dim
    return {
        "qkv_proj": (heads + 2 * attention.kv_heads * attention.head_dim, hidden),
        "o_proj": (hidden, heads),
        "gate_up_proj": ((mlp.matrices - 1) * mlp.intermediate_size, hidden),
        "down_proj": (hidden, mlp.intermediate_size),
        "lm_head": (spec.vocab_size, hidden),
    }.get(layer)


def fit_experts(gpu: GpuSpec, table: KernelTable, kind: str) -> Group | Refused:
    """The form of `timing.moe.ExpertForm`, to balanced routing where it was measured."""
    name = f"moe.{kind}"
    rows = table.rows.filter(
        (pl.col("dtype") == THEIR_EXPERTS[kind]) & (pl.col("tokens") <= 8192) & (pl.col("ep") <= 8)
    )
    if kind == "mxfp4" and (served := rows.filter(pl.col("kernel").str.contains("gptoss"))).height:
        rows = served  # the models that store experts so; others' activations have kernels of their own
    balanced = bool((rows["distribution"] == "balanced").any())
    rows = rows.filter(pl.col("distribution") == ("balanced" if balanced else "power_law_1.01"))

    def one(part: pl.DataFrame) -> Fit:
        tokens, hidden, width, per_token, experts, tp, ep, measured = _columns(
            part, "tokens", "hidden", "width", "per_token", "experts", "tp", "ep", "time_s"
        )
        chosen, here, inner = tokens * per_token / ep, experts / ep, 3.0 * width / tp
        drawn = distinct_experts(experts, per_token, tokens) / ep
        # Balanced in their tables is dealt out evenly, not drawn.
        distinct = np.minimum(here, np.maximum(chosen, 1.0)) if balanced else drawn
        expert_bytes = hidden * inner * WEIGHT_BYTES[kind]
        return fit(
            lambda values: expert_form(gpu, _only(name, values), kind).time_s(
                chosen, distinct, hidden, inner, expert_bytes
            ),
            measured, _EXPERTS,
        )  # fmt: skip

    chosen = _best(rows, one, LEAST_POINTS)
    if isinstance(chosen, str):
        return Refused(name, _version_of(table), chosen)
    best, others = chosen
    tokens, measured = _columns(best.rows, "tokens", "time_s")
    regimes = {"1-16 tokens": tokens <= 16, "17-512": (tokens > 16) & (tokens <= 512), "above": tokens > 512}
    return _group(
        name, _version_of(table), best.found, _EXPERTS, _source(table, gpu, best) + others, measured, regimes
    )


def fit_attention(gpu: GpuSpec, table: KernelTable) -> Iterator[Group | Refused]:
    """Decodes beyond the L2 and prefills without cached tokens, 16-bit KV, heads of 128 values."""
    rows = table.rows.filter(
        (pl.col("kv_dtype") == "bfloat16")
        & (pl.col("head_dim") == 128)
        & (pl.col("window").fill_null(0) == 0)
        & (pl.col("heads") % pl.col("kv_heads") == 0)
        & (pl.col("heads") >= 4)
    )
    read = 4 * 128 * pl.col("batch") * (pl.col("step") + 1) * pl.col("kv_heads")
    cold = (pl.col("step") >= 127) & (read > COLD_KV * L2_BYTES[gpu.name])
    decodes = rows.filter((pl.col("op") == "generation_attention") & cold)
    prefills = rows.filter(
        (pl.col("op") == "context_attention")
        & (pl.col("dtype") == "bfloat16")
        & (pl.col("batch") * pl.col("isl") <= 32768)
        & (pl.col("isl") <= 16384)
    )
    yield _part(gpu, table, "attention.decode", decodes, _fit_decodes, _DECODE)
    yield _part(gpu, table, "attention.prefill", prefills, _fit_prefills, _PREFILL)


def _part(
    gpu: GpuSpec, table: KernelTable, name: str, rows: pl.DataFrame,
    one: Callable[[GpuSpec, pl.DataFrame], Fit], numbers: Mapping[str, Number],
) -> Group | Refused:  # fmt: skip
    chosen = _best(rows, partial(one, gpu), LEAST_POINTS)
    if isinstance(chosen, str):
        return Refused(name, _version_of(table), chosen)
    best, others = chosen
    (measured,), tokens = _columns(best.rows, "time_s"), (best.rows["batch"] * best.rows["isl"]).to_numpy()
    decodes = np.full(len(tokens), numbers is _DECODE)
    regimes = {
        "decodes beyond the L2": decodes,
        "256-2,047 tokens": ~decodes & (tokens >= 256) & (tokens < 2048),
        "above": ~decodes & (tokens >= 2048),
    }
    source = _source(table, gpu, best) + others
    return _group(name, _version_of(table), best.found, numbers, source, measured, regimes)


def _fit_decodes(gpu: GpuSpec, rows: pl.DataFrame) -> Fit:
    batch, step, heads, measured = (
        rows[c].to_numpy().astype(np.float64) for c in ("batch", "step", "kv_heads", "time_s")
    )
    read_bytes = 4 * 128 * batch * (step + 1) * heads

    def form(values: Mapping[str, float]) -> Any:
        rate = gpu.bandwidth_bytes_per_s * values["memory_efficiency"]
        return values["launch_s"] + batch * heads * values["sequence_head_s"] + read_bytes / rate

    return fit(form, measured, _DECODE)


def _fit_prefills(gpu: GpuSpec, rows: pl.DataFrame) -> Fit:
    batch, isl, heads, kv_heads, measured = (
        rows[c].to_numpy().astype(np.float64) for c in ("batch", "isl", "heads", "kv_heads", "time_s")
    )
    pairs, tokens = batch * isl * (isl + 1) / 2, batch * isl

    def form(values: Mapping[str, float]) -> Any:
        compute_s = 4 * 128 * heads * pairs / (gpu.flops_per_s["bf16"] * values["compute_efficiency"])
        bandwidth, per_head = gpu.bandwidth_bytes_per_s, 4 * 128 * tokens
        queries_s = per_head * heads / (bandwidth * values["query_efficiency"])
        context_s = per_head * kv_heads / (bandwidth * values["context_efficiency"])
        return values["launch_s"] + compute_s + queries_s + context_s

    return fit(form, measured, _PREFILL)


def fit_profile_attention(gpu: GpuSpec, table: KernelTable) -> Iterator[Group]:
    """Decodes, then prefills, then what both in one batch add, of a profiled model on one GPU."""
    rows = table.rows.filter(
        (pl.col("tp") == 1) & (pl.col("decodes") <= 256) & (pl.max_horizontal("cached", "context") <= 8192)
    )
    work = attention_work(find_model(rows["model"][0]).layers[0].attention, Engine())
    read_bytes = pl.col("decodes") * pl.col("context") * work.kv_bytes
    parts = {
        # Whoever is alone is fitted where memory is cold; what a mixed batch adds, where decodes weigh.
        "decode": (_DECODE, (pl.col("chunk") == 0) & (read_bytes > COLD_KV * L2_BYTES[gpu.name])),
        "prefill": (_PREFILL, (pl.col("decodes") == 0) & (pl.col("chunk") >= 16)),
        "mixed": (
            _MIXED,
            (pl.col("chunk") >= 256)
            & (pl.col("decodes") > 0)
            & (pl.col("decodes") * pl.col("context") >= 16384),
        ),
    }
    known = dict.fromkeys((*_DECODE, *_PREFILL, *_MIXED, "decode_launch_s", "prefill_launch_s"), 1.0)
    for name, (numbers, which) in parts.items():
        part = rows.filter(which)
        columns = _columns(part, "chunk", "cached", "decodes", "context", "time_s")
        found = fit(partial(_attention_s, gpu, work, known, name, columns), columns[-1], numbers)
        known |= {_own(name, key): value for key, value in found.values.items()}
        every = {"all": np.full(len(part), fill_value=True)}
        source = f"{table.source}, {gpu.name}, {rows['model'][0]}, {len(part):,} points"
        yield _group(f"attention.{name}", _version_of(table), found, numbers, source, columns[-1], every)


def _own(part: str, key: str) -> str:
    """Both decodes and prefills have a launch time."""
    return f"{part}_launch_s" if key == "launch_s" else key


def _attention_s(
    gpu: GpuSpec, work: AttentionWork, known: Mapping[str, float], part: str, columns: Sequence[Array],
    values: Mapping[str, float],
) -> Array:  # fmt: skip
    """Seconds of one layer for one chunk and equal decodes: `timing.attention.AttentionLayers`, on arrays.

    Args:
        gpu: Of the measurement.
        work: Of one layer.
        known: Numbers fitted before.
        part: What is being fitted: "decode", "prefill" or "mixed".
        columns: chunk, cached, decodes and context of each point.
        values: Numbers being fitted.
    """
    values = {**known, **{_own(part, key): value for key, value in values.items()}}
    chunk, cached, decodes, context, _ = columns
    read, mixed = decodes * context, (chunk > 0) & (decodes > 0)
    bandwidth = gpu.bandwidth_bytes_per_s
    pair_s = work.pair_flops / (gpu.flops_per_s["bf16"] * values["compute_efficiency"])
    decode_s = work.kv_bytes / (bandwidth * values["memory_efficiency"])
    mixed_s = max(decode_s, values["mixed_rows"] * pair_s)
    block_s = values["empty_block_s"] * work.heads / BLOCK_ROWS
    rows_s = decodes * work.kv_heads * values["sequence_head_s"]
    decoding_s = np.where(decodes > 0, values["decode_launch_s"] + rows_s + read * decode_s, 0.0)
    apart_s = values["prefill_launch_s"] + rows_s + read * mixed_s
    time_s = np.where(mixed, np.maximum(decoding_s, apart_s) + decodes * chunk * block_s, decoding_s)
    time_s = np.where(mixed | (decodes > 0), time_s, values["prefill_launch_s"])
    pairs = chunk * cached + chunk * (chunk + 1) / 2
    query_s = work.query_bytes / (bandwidth * values["query_efficiency"])
    context_s = work.kv_bytes / (bandwidth * values["context_efficiency"])
    total: Array = (
        time_s + pairs * pair_s + chunk * query_s + np.where(chunk > 0, cached + chunk, 0.0) * context_s
    )
    return total


def fit_all_reduce(gpu: GpuSpec, table: KernelTable) -> Iterator[Group | Refused]:
    """The form of `timing.collectives.Collective` for each number of GPUs, to vLLM's in a CUDA graph."""
    graphs = (pl.col("kernel") == "vLLM_custom_graph") & pl.col("elements").is_between(512, 2**27)
    rows = table.rows.filter(graphs)
    for degree in sorted(rows["gpus"].unique().to_list()):
        chosen = _best(rows.filter(pl.col("gpus") == degree), partial(_fit_messages, gpu), 12)
        if isinstance(chosen, str):
            yield Refused(f"collectives.tp{degree}", _version_of(table), chosen)
            continue
        best, others = chosen
        message, measured = _columns(best.rows.sort("elements"), "elements", "time_s")
        regimes = {"to 4 MiB": 2 * message <= 2**22, "above": 2 * message > 2**22}
        source = _source(table, gpu, best) + others
        yield _group(
            f"collectives.tp{degree}", _version_of(table), best.found, _COLLECTIVE, source, measured, regimes
        )


def _fit_messages(gpu: GpuSpec, rows: pl.DataFrame) -> Fit:
    elements, measured = _columns(rows.sort("elements"), "elements", "time_s")

    def form(values: Mapping[str, float]) -> Any:
        shares = tuple(values[f"share_{knot}"] for knot in KNOTS)
        # Sizes are counted in elements of two bytes.
        return Collective(2.0, values["latency_s"], gpu.interconnect_bytes_per_s, shares).time_s(elements)

    return fit(form, measured, _COLLECTIVE)


def _version_of(table: KernelTable) -> str:
    version: str = table.rows["version"][0]
    return version


def _only(group: str, values: Mapping[str, float]) -> Parameters:
    return Parameters("kernels", {f"{group}.{name}": value for name, value in values.items()})


def _source(table: KernelTable, gpu: GpuSpec, best: _Tried) -> str:
    return f"{table.source}, {gpu.name}, vLLM {_version_of(table)}, {best.label}, {len(best.rows):,} points"


def _group(
    name: str,
    version: str,
    found: Fit,
    numbers: Mapping[str, Number],
    source: str,
    measured: Array,
    regimes: Mapping[str, Any],
) -> Group:
    error = "; ".join(
        f"{label}: {spread(found.errors[part])}" for label, part in regimes.items() if part.any()
    )
    units = {key: number.unit for key, number in numbers.items()}
    return Group(name, version, found.values, units, source, error, (1.0 + found.errors) * measured, measured)
