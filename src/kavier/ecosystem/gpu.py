"""One GPU as its datasheet and published measurements describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from kavier.ecosystem.catalog import Catalog, Entry, Schema, load_catalog
from kavier.units import gb_to_bytes, mb_to_bytes, mib_to_bytes, tflops_to_flops

_SCHEMA = Schema(
    thing="GPU",
    units={
        "memory": "MiB",
        "sms": "SM",
        "l2_cache": "MB",
        "bandwidth": "GB/s",
        "flops.*": "TFLOP/s",
        "tdp": "W",
        "idle_power": "W",
        "loaded_idle_power": "W",
        "link_bandwidth": "GB/s",
    },
    required=(
        "memory",
        "sms",
        "l2_cache",
        "bandwidth",
        "flops.bf16",
        "tdp",
        "idle_power",
        "loaded_idle_power",
        "link_bandwidth",
    ),
    labels=("vendor", "architecture", "interconnect"),
    optional_labels=("note",),
)


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A GPU model. Throughputs are dense, never sparse.

    Attributes:
        name: Catalog name, e.g. "H100-SXM".
        vendor: "nvidia" or "amd".
        architecture: "ampere", "ada", "hopper", "blackwell", "cdna3".
        memory_bytes: Memory as the driver reports it (total, before any reserve).
        bandwidth_bytes_per_s: Peak memory bandwidth.
        flops_per_s: Dense peak by dtype: "bf16", "fp8", "fp4", "int8"; a dtype that is absent has no tensor
            support.
        tdp_w: Board power limit.
        idle_w: Bare idle, nothing loaded.
        loaded_idle_w: Idle with a CUDA context and a loaded model.
        interconnect: "nvlink", "pcie" or "xgmi".
        interconnect_bytes_per_s: One direction, per GPU.
        sms: Streaming multiprocessors (AMD: compute units).
        l2_bytes: Last cache in front of the memory.
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
    sms: int
    l2_bytes: int


def find_gpu(name: str) -> GpuSpec:
    """The GPU of a catalog name or alias, whatever its case.

    Raises:
        InputError: Unknown GPU; the nearest names are offered.
    """
    return _spec(gpu_entry(name))


def gpu_entry(name: str) -> Entry:
    """All that the catalog says of a GPU, each number with unit, source and date.

    Raises:
        InputError: Unknown GPU; the nearest names are offered.
    """
    return gpu_catalog().find(name)


def gpu_names() -> list[str]:
    """Catalog names, without aliases."""
    return list(gpu_catalog().entries)


@cache
def gpu_catalog() -> Catalog:
    """The GPUs shipped with Kavier."""
    return load_catalog("gpus.toml", _SCHEMA)


def _spec(entry: Entry) -> GpuSpec:
    number = {key: quantity.value for key, quantity in entry.quantities.items()}
    return GpuSpec(
        name=entry.name,
        vendor=entry.labels["vendor"],
        architecture=entry.labels["architecture"],
        memory_bytes=mib_to_bytes(number["memory"]),
        bandwidth_bytes_per_s=float(gb_to_bytes(number["bandwidth"])),
        flops_per_s={
            key.removeprefix("flops."): tflops_to_flops(rate)
            for key, rate in number.items()
            if key.startswith("flops.")
        },
        tdp_w=float(number["tdp"]),
        idle_w=float(number["idle_power"]),
        loaded_idle_w=float(number["loaded_idle_power"]),
        interconnect=entry.labels["interconnect"],
        interconnect_bytes_per_s=float(gb_to_bytes(number["link_bandwidth"])),
        sms=int(number["sms"]),
        l2_bytes=mb_to_bytes(number["l2_cache"]),
    )
