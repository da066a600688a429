"""One GPU as its datasheet and published measurements describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A GPU model. Throughputs are dense, never sparse.

    Attributes:
        name: Catalog name, e.g. "H100-SXM".
        vendor: "nvidia" or "amd".
        architecture: "ampere", "ada", "hopper", "blackwell", "cdna3".
        memory_bytes: Memory as the driver reports it (total, before any reserve).
        bandwidth_bytes_per_s: Peak memory bandwidth.
        flops_per_s: Dense peak by dtype: "bf16", "fp8", "fp4", "int8"; a dtype that is absent has no tensor support.
        tdp_w: Board power limit.
        idle_w: Bare idle, nothing loaded.
        loaded_idle_w: Idle with a CUDA context and a loaded model.
        interconnect: "nvlink", "pcie" or "xgmi".
        interconnect_bytes_per_s: One direction, per GPU.
    """

    name: str
    vendor: str
    architecture: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    tdp_w: float
    idle_w: float
    loaded_idle_w: float
    interconnect: str
    interconnect_bytes_per_s: float
