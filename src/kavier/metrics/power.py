"""GPU power from what a GPU does: bytes moved and FLOPs computed per second."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from kavier.ecosystem.gpu import GpuSpec
from kavier.native.library import address
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import POWER, STEP
from kavier.timing.constants import read_constants

Array = npt.NDArray[np.float64]

POWER_CONSTANTS = read_constants("kavier.metrics", "power.toml")


class SaturatingPower:
    """Two utilisations, saturating at the board's limit.

    P = floor + (TDP - floor) (1 - exp(-(alpha MBU + beta MFU))), MBU and MFU relative to the datasheet's
    bandwidth and dense peak. alpha and beta were fitted on H100 SXM. Other GPUs take the geometric mean of
    two ways to carry them over: the same numbers, and the same energy per byte and FLOP.

    Args:
        gpu: The GPU; its floor is its idle power with a loaded model.
        dtype: What most FLOPs are computed in ("bf16", "fp8"); MFU is relative to that peak. A dtype that the
            GPU cannot compute in counts at the bf16 peak.
    """

    name = "saturating"

    def __init__(self, gpu: GpuSpec, dtype: str = "bf16") -> None:
        span_w = gpu.tdp_w - gpu.loaded_idle_w
        self.alpha = POWER_CONSTANTS["alpha"] * _carried(
            gpu.bandwidth_bytes_per_s, span_w, "bandwidth_bytes_per_s"
        )
        self.beta = POWER_CONSTANTS["beta"] * _carried(gpu.flops_per_s["bf16"], span_w, "flops_per_s")
        self._gpu, self._span_w = gpu, span_w
        self._peak_flops_per_s = gpu.flops_per_s.get(dtype, gpu.flops_per_s["bf16"])

    def power_w(self, flops_per_s: npt.ArrayLike, bytes_per_s: npt.ArrayLike) -> Array:
        """Power of ONE GPU in watts, between its floor and its TDP: what a second at these rates takes."""
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
        record["floor_w"], record["span_w"], record["gpus"] = self._gpu.loaded_idle_w, self._span_w, gpus
        record["per_flop_per_s"] = self.beta / self._peak_flops_per_s
        record["per_byte_per_s"] = self.alpha / self._gpu.bandwidth_bytes_per_s
        return record

    def expected_error(self) -> str:
        """How far off the power may be, for the trust notes."""
        known = f"error.{self._gpu.name}"
        sd = POWER_CONSTANTS.get(known, POWER_CONSTANTS["error.unmeasured"])
        return f"GPU power: model {self.name!r}, one standard deviation {sd:.0%} on {self._gpu.name}"


def _carried(rate_per_s: float, span_w: float, reference: str) -> float:
    """Square root of the share of its power span that peak rate takes at equal energy, relative to H100."""
    reference_rate = POWER_CONSTANTS[f"reference.{reference}"] / POWER_CONSTANTS["reference.span_w"]
    return sqrt(rate_per_s / span_w / reference_rate)
