"""GPU power from what a GPU does: bytes moved and FLOPs computed per second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.ecosystem.model import ModelSpec
from kavier.native.library import address
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import POWER, STEP
from kavier.timing.constants import read_constants
from kavier.timing.gemm import compute_dtype
from kavier.units import PJ_PER_J

Array = npt.NDArray[np.float64]

FITTED = read_constants("kavier.metrics", "power.toml")
"""What `kavier fit-power` found, on `FITTED_ON`."""

DOUBT = read_constants("kavier.metrics", "power_error.toml")
"""Relative standard deviation of the power by GPU, and with experts in few bits."""

FITTED_ON = "H100-SXM"


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Power of ONE GPU: idle_w without work, else floor_w + span_w S(u), u = per_byte B + per_flop F.

    B and F are bytes and FLOPs a second. S(u) = 1 - exp(-u) if the model saturates, else min(u, 1).

    Attributes:
        name: As in `scenario.power`.
        gpu: The GPU's name.
        idle_w: With a loaded model and nothing to do.
        floor_w: What any work draws at least.
        span_w: What work may add.
        per_byte: Seconds a byte.
        per_flop: Seconds a FLOP.
        saturates: Which S.
        error: Relative standard deviation of the power.
        doubt: What that error is of.
    """

    name: str
    gpu: str
    idle_w: float
    floor_w: float
    span_w: float
    per_byte: float
    per_flop: float
    saturates: bool
    error: float
    doubt: str

    def power_w(self, flops_per_s: npt.ArrayLike, bytes_per_s: npt.ArrayLike) -> Array:
        """Watts of one GPU at these rates: what a second takes in the compiled engine."""
        flops, moved = np.broadcast_arrays(
            np.asarray(flops_per_s, np.float64), np.asarray(bytes_per_s, np.float64)
        )
        steps, record = np.zeros(flops.size, STEP), self.record(1)
        steps["flops"], steps["bytes"], steps["duration_s"] = flops.ravel(), moved.ravel(), 1.0
        LIBRARY.call(operations.FILL_ENERGIES, address(record), address(steps), len(steps))
        return np.ascontiguousarray(steps["energy_j"]).reshape(flops.shape)

    def record(self, gpus: int) -> npt.NDArray[Any]:
        """The coefficients as the compiled engine reads them, for a replica of this many GPUs."""
        record = np.zeros(1, POWER)
        record["idle_w"], record["floor_w"], record["span_w"] = self.idle_w, self.floor_w, self.span_w
        record["per_byte_per_s"], record["per_flop_per_s"] = self.per_byte, self.per_flop
        record["linear"], record["gpus"] = not self.saturates, gpus
        return record

    def scaled(self, factor: float) -> PowerModel:
        """With all activity weighed by a factor: see `power_factor`."""
        return replace(self, per_byte=factor * self.per_byte, per_flop=factor * self.per_flop)

    def expected_error(self) -> str:
        """How far off the power may be, for the trust notes."""
        return (
            f"GPU power: model {self.name!r}, one standard deviation {self.error:.0%} "
            f"on {self.gpu} ({self.doubt})"
        )


def power_model(name: str, gpu: GpuSpec, model: ModelSpec) -> PowerModel:
    """The power model of a scenario: one of `POWER_MODELS`, on this GPU, while it serves this model."""
    made = POWER_MODELS[name](gpu, peak_flops_per_s(gpu, model))
    few_bits = any(layer.mlp.experts for layer in model.layers) and model.weight_dtype != "bf16"
    experts = DOUBT["quantized_experts"]
    if few_bits and experts > made.error:
        return replace(made, error=experts, doubt=f"experts in {model.weight_dtype}")
    return made


def peak_flops_per_s(gpu: GpuSpec, model: ModelSpec) -> float:
    """Dense peak of a model's products: FLOPs / (sum over precisions of FLOPs / peak of that precision).

    The shares are those of a token in matrices. Attention over the context, computed in 16 bits, is taken as
    mixed like the matrices.
    """
    few_bits, plain = gpu.flops_per_s[compute_dtype(gpu, model.weight_dtype)], gpu.flops_per_s["bf16"]
    quantized = total = 0
    for weight in model.weights():
        if weight.role != "embedding" or model.tie_word_embeddings:  # tied: it is the head as well
            total += weight.parameters(active=True)
            quantized += weight.parameters(active=True) if model.is_quantized(weight) else 0
    share = quantized / total
    return plain / (1.0 - share + share * plain / few_bits)


def saturating(gpu: GpuSpec, peak_flops_per_s: float) -> PowerModel:
    """P = floor + (TDP - floor) (1 - exp(-(alpha MBU + beta MFU))), the floor being the loaded idle power.

    alpha and beta are of H100 SXM. Another GPU takes the geometric mean of two ways to carry them over: the
    same numbers, and the same energy per byte and FLOP.
    """
    span_w, h100 = gpu.tdp_w - gpu.loaded_idle_w, find_gpu(FITTED_ON)
    reference_w = h100.tdp_w - h100.loaded_idle_w

    def carried(rate: float, reference: float) -> float:
        return sqrt(rate / reference * reference_w / span_w)

    alpha = FITTED["saturating.alpha"] * carried(gpu.bandwidth_bytes_per_s, h100.bandwidth_bytes_per_s)
    beta = FITTED["saturating.beta"] * carried(gpu.flops_per_s["bf16"], h100.flops_per_s["bf16"])
    return _model(
        "saturating",
        gpu,
        floor_w=gpu.loaded_idle_w,
        span_w=span_w,
        per_byte=alpha / gpu.bandwidth_bytes_per_s,
        per_flop=beta / peak_flops_per_s,
    )


def additive(gpu: GpuSpec, peak_flops_per_s: float) -> PowerModel:
    """A floor, a share of the TDP, plus an energy per byte and per FLOP (in 16 bits), capped at the TDP.

    Another GPU has the same energies. FLOPs in fewer bits take as much less as the GPU computes them faster.
    """
    floor_w = FITTED["additive.floor"] * gpu.tdp_w
    span_w = gpu.tdp_w - floor_w
    narrow = gpu.flops_per_s["bf16"] / peak_flops_per_s
    return _model(
        "additive",
        gpu,
        floor_w=floor_w,
        span_w=span_w,
        per_byte=FITTED["additive.byte_energy"] / PJ_PER_J / span_w,
        per_flop=FITTED["additive.flop_energy"] / PJ_PER_J * narrow / span_w,
    )


def constant(gpu: GpuSpec, peak_flops_per_s: float) -> PowerModel:
    """A share of the TDP in any step, whatever is done in it."""
    return _model(
        "constant",
        gpu,
        floor_w=FITTED["constant.share"] * gpu.tdp_w,
        span_w=0.0,
        per_byte=1.0 / gpu.bandwidth_bytes_per_s,
        per_flop=1.0 / peak_flops_per_s,
    )


POWER_MODELS: Mapping[str, Callable[[GpuSpec, float], PowerModel]] = {
    "saturating": saturating,
    "additive": additive,
    "constant": constant,
}


def _model(
    name: str, gpu: GpuSpec, *, floor_w: float, span_w: float, per_byte: float, per_flop: float
) -> PowerModel:
    own = FITTED[f"{name}.sd"]
    gpu_error = own if gpu.name == FITTED_ON else DOUBT.get(f"gpu.{gpu.name}", DOUBT["unmeasured"])
    return PowerModel(
        name=name,
        gpu=gpu.name,
        idle_w=gpu.loaded_idle_w,
        floor_w=floor_w,
        span_w=span_w,
        per_byte=per_byte,
        per_flop=per_flop,
        saturates=name == "saturating",
        error=max(own, gpu_error),
        doubt="of the GPU" if gpu_error > own else f"that of the model on {FITTED_ON}, where it was fitted",
    )
