"""Time of a matrix multiplication: a smooth maximum of compute and memory, plus a launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.parameters import Parameters

ACTIVATION_BYTES = 2
"""bf16 or fp16."""

TILE_ROWS, SMALL_TILE = 128, 64
"""Rows and columns of a block of a tiled kernel: small ones up to as many rows of activations."""

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
    """What the matrix multiplications of one kind reach on one GPU.

    Attributes:
        flops_per_s: Datasheet peak of the dtype that is multiplied in, times an efficiency.
        bytes_per_s: Datasheet bandwidth, times an efficiency.
        launch_s: Fixed time of one kernel.
        sharpness: Exponent p of the smooth maximum.
        short_k: A sum over k products costs like one over k + short_k.
        input_bytes: Bytes of one input activation.
        tiles: How the kernel cuts its output into blocks; None where its time does not show them.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    sharpness: float
    short_k: float
    input_bytes: float = ACTIVATION_BYTES
    tiles: Tiles | None = None

    def time_s(self, rows: Numbers, n: Numbers, k: Numbers, weight_bytes: Numbers) -> Numbers:
        """Seconds to multiply (rows x k) activations with a (k x n) weight of `weight_bytes`."""
        work, rate = self._blocks(rows, n)
        compute_s = 2.0 * work * (k + self.short_k) / (self.flops_per_s * rate)
        activation_bytes = rows * (k * self.input_bytes + n * ACTIVATION_BYTES)
        memory_s = (weight_bytes + activation_bytes) / self.bytes_per_s
        return self.launch_s + smooth_max(compute_s, memory_s, self.sharpness)

    def _blocks(self, rows: Numbers, n: Numbers) -> tuple[Numbers, Numbers]:
        """(outputs computed, relative rate): with tiles, as many as the blocks of full waves hold."""
        return (rows * n, 1.0) if self.tiles is None else self.tiles.outputs(rows, n)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Output blocks of kernels that do not split sums over k (CUTLASS fp8): few blocks leave GPUs idle.

    Attributes:
        processors: Streaming multiprocessors.
        quantum: Rows that are computed together, however many of them are there.
        small_rate: Rate of one row of blocks, relative to more: it may be cut along k as well.
    """

    processors: int
    quantum: int
    small_rate: float

    def outputs(self, rows: Numbers, n: Numbers) -> tuple[Numbers, Numbers]:
        """(outputs that the waves of blocks could hold, rate)."""
        rows = np.asarray(rows, np.float64)
        small = rows <= SMALL_TILE
        side = np.where(small, SMALL_TILE, TILE_ROWS)
        computed = np.where(rows > TILE_ROWS, np.ceil(rows / self.quantum) * self.quantum, side)
        waves = computed / side * np.ceil(np.asarray(n) / side) / self.processors
        full = np.where(waves > 0.0, 0.5 * np.maximum(waves, 1.0) + 0.5 * np.ceil(waves - 1e-9), 0.0)
        return full * self.processors * side * side, np.where(rows <= TILE_ROWS, self.small_rate, 1.0)


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

    def time_s(self, tokens: Numbers) -> Numbers:
        """See `Roof.time_s`."""
        return self.roof.time_s(tokens, self.n, self.k, self.weight_bytes)

    def memory_bytes(self, tokens: Numbers) -> Numbers:  # noqa: ARG002
        """The weights, read once whatever the tokens: activations are mostly in the L2 cache."""
        return self.weight_bytes


def smooth_max(a: Numbers, b: Numbers, sharpness: float) -> Numbers:
    """(a^p + b^p)^(1/p): never below the larger, never above the sum for p >= 1."""
    high = np.maximum(a, b)
    ratio = np.minimum(a, b) / np.where(high > 0.0, high, 1.0)
    smooth: Numbers = high * np.power(1.0 + np.power(ratio, sharpness), 1.0 / sharpness)
    return smooth


def gemm_roof(gpu: GpuSpec, parameters: Parameters, kind: str) -> Roof:
    """The roof for weights of a kind: "bf16", "fp8" (a scale a tensor or row) or "fp8_block"."""
    p = parameters.of(f"gemm.{kind}")
    tiles = Tiles(gpu.sms, _quantum(gpu), p["small_rate"]) if "small_rate" in p else None
    return Roof(
        flops_per_s=gpu.flops_per_s["bf16" if kind == "bf16" else "fp8"] * p["compute_efficiency"],
        bytes_per_s=gpu.bandwidth_bytes_per_s * p["memory_efficiency"],
        launch_s=p["launch_s"],
        sharpness=parameters["gemm.tiled_sharpness"] if tiles else p["sharpness"],
        short_k=parameters["gemm.short_k"],
        input_bytes=ACTIVATION_BYTES if kind == "bf16" else 1,
        tiles=tiles,
    )


def _quantum(gpu: GpuSpec) -> int:
    """Hopper's fp8 kernels compute two blocks of rows together (vLLM: cutlass, sm90, clusters of two)."""
    return 2 * TILE_ROWS if gpu.architecture == "hopper" else TILE_ROWS


def gemm_kind(gpu: GpuSpec, weight_dtype: str, group_size: int) -> str:
    """What is multiplied: fp8 weights in fp8 where the GPU can; all others are dequantised to bf16."""
    if compute_dtype(gpu, weight_dtype) != "fp8":
        return "bf16"
    return "fp8_block" if group_size else "fp8"


def compute_dtype(gpu: GpuSpec, weight_dtype: str) -> str:
    """Dtype multiplied in: fp8 weights in fp8 where the GPU can; all others are dequantised to bf16."""
    return "fp8" if weight_dtype == "fp8" and "fp8" in gpu.flops_per_s else "bf16"
