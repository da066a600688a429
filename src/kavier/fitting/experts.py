"""Fused experts: `timing.moe.ExpertForm`, fitted to tables of single kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting.groups import Group, Points, Refused, Task, between, columns, fit_task, only
from kavier.fitting.robust import Number
from kavier.timing.moe import distinct_experts, expert_form

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "mxfp4": 4.25 / 8, "int4": 4.125 / 8}
THEIRS = {
    "bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "mxfp4": "w4a16_mxfp4", "int4": "int4_wo",
}  # fmt: skip
"""Kinds of weights, as the tables name them."""

NUMBERS = {
    "compute_efficiency": Number(0.5, 0.05, 1.0),
    "memory_efficiency": Number(0.85, 0.3, 1.0),
    "launch_s": Number(30e-6, 1e-6, 3e-4, "s"),
    "expert_s": Number(1e-7, 1e-8, 5e-6, "s"),
}


def fit_experts(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Iterator[Group | Refused]:
    """Each kind of weights.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: tokens, hidden, width, per_token, experts, tp, ep, distribution, dtype, time_s.
    """
    rows = rows.filter((pl.col("tokens") <= 8192) & (pl.col("ep") <= 8))
    for kind, theirs in THEIRS.items():
        of_kind = rows.filter(pl.col("dtype") == theirs)
        if len(of_kind):
            yield _fit(gpu, version, kind, _of_served_kernels(kind, of_kind))


def _of_served_kernels(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The models that store experts in mxfp4; others' activations have kernels of their own."""
    gpt_oss = rows.filter(pl.col("kernel").str.contains("gptoss"))
    return gpt_oss if kind == "mxfp4" and len(gpt_oss) else rows


def _fit(gpu: GpuSpec, version: str, kind: str, rows: pl.DataFrame) -> Group | Refused:
    """To balanced routing where it was measured, which in these tables is dealt out evenly, not drawn."""
    name = f"moe.{kind}"
    balanced = bool((rows["distribution"] == "balanced").any())
    rows = rows.filter(pl.col("distribution") == ("balanced" if balanced else "power_law_1.01"))

    def points_of(part: pl.DataFrame) -> Points:
        tokens, hidden, width, per_token, experts, tp, ep, measured_s = columns(
            part, "tokens", "hidden", "width", "per_token", "experts", "tp", "ep", "time_s"
        )
        sent, here, inner = tokens * per_token / ep, experts / ep, 3.0 * width / tp
        drawn = distinct_experts(experts, per_token, tokens) / ep
        distinct = np.minimum(here, np.maximum(sent, 1.0)) if balanced else drawn
        expert_bytes = hidden * inner * WEIGHT_BYTES[kind]
        return Points(
            lambda values: expert_form(gpu, only(name, values), kind).time_s(
                sent, distinct, hidden, inner, expert_bytes
            ),
            measured_s,
            tokens,
            between(tokens, ("1-16 tokens", 0, 17), ("17-512", 17, 513), ("above", 513, 8193)),
        )

    return fit_task(Task(name, gpu, version, rows, NUMBERS, points_of, "tokens"))
