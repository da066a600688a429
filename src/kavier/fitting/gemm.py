"""Matrix multiplications: `timing.gemm.Roof`, fitted to tables of kernels or to a profiled model."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.models import find_model
from kavier.fitting.groups import Group, Points, Refused, Task, between, columns, fit_task, only
from kavier.fitting.robust import Number
from kavier.timing.datasheet import graph_sizes
from kavier.timing.gemm import gemm_roof

COLD_WEIGHTS = 0.25
"""Weights above this share of the L2 come from memory: the benchmark takes turns with several of them."""

GRAPHS = graph_sizes(512, 8192)
"""Rows that a step has after padding, up to the largest graph; no others are served."""

MOST_LAUNCH_S = {"bf16": 30e-6, "fp8": 10e-6, "fp8_block": 30e-6}
"""A multiplication that seems to take longer to start was measured outside of a CUDA graph, or together with
kernels that quantise its input: with one scale a row vLLM's compiler fuses these into the op before."""

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0}
THEIRS = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block"}
"""Kinds of weights, as the tables name them."""

_ROOF = {
    "compute_efficiency": Number(0.7, 0.1, 1.0),
    "memory_efficiency": Number(0.85, 0.3, 1.0),
    "launch_s": Number(4e-6, 1e-6, 1e-3, "s"),
}
_SMOOTH = {"sharpness": Number(2.5, 1.0, 8.0)}
_TILED = {"small_rate": Number(2.0, 0.5, 6.0)}


def numbers_of(kind: str) -> dict[str, Number]:
    """What is fitted for weights of a kind: fp8 kernels show how they cut their output into blocks."""
    return _ROOF | (_TILED if kind == "fp8" else _SMOOTH)


def fit_gemm(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Iterator[Group | Refused]:
    """Each kind of weights in a table of single multiplications.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: m, n, k, dtype, time_s.
    """
    served = pl.col("m").is_in(GRAPHS) | pl.col("m").is_between(513, 8192)
    rows = rows.filter(pl.col("n").is_between(1024, 65536) & pl.col("k").is_between(1024, 51200) & served)
    for kind, theirs in THEIRS.items():
        of_kind = rows.filter(pl.col("dtype") == theirs)
        if len(of_kind):
            weights = pl.col("n") * pl.col("k") * WEIGHT_BYTES[kind]
            yield _fit(gpu, version, kind, of_kind.filter(weights > COLD_WEIGHTS * gpu.l2_bytes))


def fit_profiled_gemm(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Group | Refused:
    """The layers of a profiled model on one GPU, 16-bit weights.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: model, tp, layer, tokens, time_s; layers that multiply by no matrix are left out.
    """
    alone = rows.filter(pl.col("tp") == 1)
    shapes = pl.DataFrame(
        [
            {"model": model, "layer": layer, "n": n, "k": k}
            for model in alone["model"].unique().sort().to_list()
            for layer, (n, k) in _matrices(model).items()
        ],
        schema={"model": pl.String, "layer": pl.String, "n": pl.Int64, "k": pl.Int64},
    )
    return _fit(gpu, version, "bf16", alone.join(shapes, on=["model", "layer"]).rename({"tokens": "m"}))


def _matrices(model: str) -> dict[str, tuple[int, int]]:
    """(columns, rows) of the weights of each layer that the profiles name."""
    spec = find_model(model)
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    hidden, heads = spec.hidden_size, attention.heads * attention.head_dim
    return {
        "qkv_proj": (heads + 2 * attention.kv_heads * attention.head_dim, hidden),
        "o_proj": (hidden, heads),
        "gate_up_proj": ((mlp.matrices - 1) * mlp.intermediate_size, hidden),
        "down_proj": (hidden, mlp.intermediate_size),
        "lm_head": (spec.vocab_size, hidden),
    }


def _fit(gpu: GpuSpec, version: str, kind: str, rows: pl.DataFrame) -> Group | Refused:
    name, numbers = f"gemm.{kind}", numbers_of(kind)

    def points_of(part: pl.DataFrame) -> Points:
        m, n, k, measured_s = columns(part, "m", "n", "k", "time_s")
        weight_bytes = n * k * WEIGHT_BYTES[kind]
        return Points(
            lambda values: gemm_roof(gpu, only(name, values), kind).time_s(m, n, k, weight_bytes),
            measured_s,
            m,
            between(m, ("1-64 rows", 0, 65), ("65-256", 65, 257), ("above", 257, 8193)),
        )

    most_s = MOST_LAUNCH_S[kind]
    return fit_task(Task(name, gpu, version, rows, numbers, points_of, "rows", most_launch_s=most_s))
