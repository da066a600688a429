"""All-reduces: `timing.collectives.Collective`, fitted for each number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting.groups import Group, Points, Refused, Task, between, columns, fit_task
from kavier.fitting.robust import Array, Number
from kavier.timing.collectives import KNOTS, Collective
from kavier.timing.gemm import ACTIVATION_BYTES
from kavier.units import BYTES_PER_MB

NUMBERS = {
    "latency_s": Number(5e-6, 1e-6, 1e-3, "s"),
    **{f"share_{knot}": Number(0.3, 0.001, 1.0) for knot in KNOTS},
}
KERNEL = "vLLM_custom_graph"
"""vLLM's all-reduce inside a CUDA graph, as the tables name it."""


def fit_all_reduce(gpu: GpuSpec, version: str, rows: pl.DataFrame) -> Iterator[Group | Refused]:
    """Each number of GPUs.

    Args:
        gpu: Of all rows.
        version: Likewise.
        rows: gpus, elements, time_s. Sizes are counted in elements, not bytes.
    """
    graphs = rows.filter((pl.col("kernel") == KERNEL) & pl.col("elements").is_between(512, 2**27))
    for degree in rows["gpus"].unique().sort().to_list():
        of_degree, points_of = graphs.filter(pl.col("gpus") == degree), partial(_points, gpu)
        name = f"collectives.tp{degree}"
        yield fit_task(Task(name, gpu, version, of_degree, NUMBERS, points_of, "MB", points_a_number=2))


def _points(gpu: GpuSpec, rows: pl.DataFrame) -> Points:
    elements, measured_s = columns(rows.sort("elements"), "elements", "time_s")
    message_bytes, link = elements * ACTIVATION_BYTES, gpu.interconnect_bytes_per_s

    def form(values: Mapping[str, float]) -> object:
        shares = tuple(values[f"share_{knot}"] for knot in KNOTS)
        return Collective(ACTIVATION_BYTES, values["latency_s"], link, shares).time_s(elements)

    regimes = between(message_bytes, ("to 4 MiB", 0, 2**22 + 1), ("above", 2**22 + 1, 2**40))
    return Points(
        form, measured_s, message_bytes / BYTES_PER_MB, regimes, _starts(link, message_bytes, measured_s)
    )


def _starts(link_bytes_per_s: float, message_bytes: Array, measured_s: Array) -> dict[str, float]:
    """The smallest message tells the latency, then each knot its share.

    Without them the search ends where it began: a share is not seen at all while a smaller message takes
    longer (`Collective.time_s`).
    """
    latency_s = 0.95 * float(measured_s.min())
    sizes = np.array(list(KNOTS.values()), np.float64)
    at_knots_s = np.exp(np.interp(np.log(sizes), np.log(message_bytes), np.log(measured_s)))
    shares = sizes / (link_bytes_per_s * (at_knots_s - latency_s))
    told = dict(zip((f"share_{knot}" for knot in KNOTS), shares.tolist(), strict=True))
    return {"latency_s": latency_s, **told}
