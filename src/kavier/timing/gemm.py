"""Time of a matrix multiplication: a smooth maximum of compute and memory, plus a launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.constants import CONSTANTS

ACTIVATION_BYTES = 2
"""bf16 or fp16."""
HBM3_BANDWIDTH = 3e12
GDDR6_BANDWIDTH = 0.9e12


Numbers: TypeAlias = float | NDArray[Any]
"""One number, or an array of them: prices are computed for all token counts at once."""


class TokenOp(Protocol):
    """A part of the step whose cost depends on a number of tokens (or sampled rows) alone."""

    @property
    def flops_per_token(self) -> float:
        """Useful FLOPs."""

    def time_s(self, tokens: Numbers) -> Numbers:
        """Seconds of one execution."""

    def memory_bytes(self, tokens: Numbers) -> Numbers:
        """Bytes read and written in GPU memory."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What a GEMM can reach on one GPU with one weight dtype.

    Attributes:
        flops_per_s: Datasheet peak of the dtype that is computed in, times an efficiency.
        bytes_per_s: Datasheet bandwidth, times an efficiency.
        launch_s: Fixed time of one kernel.
        input_bytes: Bytes of one input activation.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    input_bytes: int

    def time_s(self, flops: Numbers, traffic_bytes: Numbers) -> Numbers:
        """Launch + smooth maximum of the compute and the memory time."""
        compute_s, memory_s = flops / self.flops_per_s, traffic_bytes / self.bytes_per_s
        return self.launch_s + smooth_max(compute_s, memory_s)


@dataclass(frozen=True, slots=True)
class Gemm:
    """Multiplication of (tokens x k) activations with a (k x n) weight of `weight_bytes`, on one GPU."""

    n: int
    k: int
    weight_bytes: int
    roof: Roof

    @property
    def flops_per_token(self) -> float:
        """2 n k: a multiplication and an addition per weight."""
        return 2.0 * self.n * self.k

    @property
    def padded_flops(self) -> float:
        """FLOPs of one row as a kernel pays for them: short reductions never reach full throughput."""
        return 2.0 * self.n * (self.k + CONSTANTS["gemm.short_k"])

    @property
    def activation_bytes(self) -> int:
        """Input read and output written of one row; mostly in the L2 cache, so they count for time only."""
        return self.k * self.roof.input_bytes + self.n * ACTIVATION_BYTES

    def time_s(self, tokens: Numbers) -> Numbers:
        """Padded FLOPs against weights and activations."""
        return self.roof.time_s(
            tokens * self.padded_flops, self.weight_bytes + tokens * self.activation_bytes
        )

    def memory_bytes(self, tokens: Numbers) -> Numbers:  # noqa: ARG002
        """The weights, read once whatever the tokens."""
        return self.weight_bytes


def smooth_max(a: Numbers, b: Numbers) -> Numbers:
    """(a^p + b^p)^(1/p): never below the larger, up to 1.39 times it when both are equal."""
    p, high = CONSTANTS["gemm.sharpness"], np.maximum(a, b)
    ratio = np.minimum(a, b) / np.where(high > 0.0, high, 1.0)
    smooth: Numbers = high * np.power(1.0 + np.power(ratio, p), 1.0 / p)
    return smooth


def gemm_roof(gpu: GpuSpec, weight_dtype: str) -> Roof:
    """The roof for weights stored as `weight_dtype`."""
    computed_in = compute_dtype(gpu, weight_dtype)
    return Roof(
        flops_per_s=gpu.flops_per_s[computed_in] * CONSTANTS[f"gemm.{computed_in}.compute_efficiency"],
        bytes_per_s=gpu.bandwidth_bytes_per_s * CONSTANTS[f"memory.{memory_class(gpu)}.gemm_efficiency"],
        launch_s=CONSTANTS[f"gemm.{computed_in}.launch_s"],
        input_bytes=1 if computed_in == "fp8" else ACTIVATION_BYTES,
    )


def compute_dtype(gpu: GpuSpec, weight_dtype: str) -> str:
    """Dtype multiplied in: fp8 weights in fp8 where the GPU can; all others are dequantised to bf16."""
    return "fp8" if weight_dtype == "fp8" and "fp8" in gpu.flops_per_s else "bf16"


def is_datacenter_blackwell(gpu: GpuSpec) -> bool:
    """Compute capability 10.x (B200 and its like); Blackwell cards without NVLink are 12.x."""
    return gpu.architecture == "blackwell" and gpu.interconnect == "nvlink"


def memory_class(gpu: GpuSpec) -> str:
    """Kind of memory, told from bandwidth and architecture (the datasheet entry does not name it).

    Below 0.9 TB/s GDDR6; above 3 TB/s HBM3; Ampere and Hopper between them HBM2e; GDDR6X and GDDR7 remain.
    """
    if gpu.bandwidth_bytes_per_s < GDDR6_BANDWIDTH:
        return "gddr6"
    if gpu.bandwidth_bytes_per_s > HBM3_BANDWIDTH:
        return "hbm3"
    return "hbm2e" if gpu.architecture in ("ampere", "hopper") else "other"
