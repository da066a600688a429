"""All-reduce of tensor parallelism: latency + bytes / (what the interconnect reaches)."""

from __future__ import annotations

from dataclasses import dataclass

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.constants import CONSTANTS
from kavier.timing.gemm import ACTIVATION_BYTES

MEASURED_DEGREES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class AllReduce:
    """One all-reduce of (tokens x hidden) activations over a tensor-parallel group."""

    bytes_per_token: int
    latency_s: float
    bytes_per_s: float
    two_stage_s: float
    two_stage_bytes: float

    @property
    def flops_per_token(self) -> float:
        """None that count."""
        return 0.0

    def time_s(self, tokens: int) -> float:
        """Latency + message / rate, and a step where the algorithm changes."""
        message_bytes = tokens * self.bytes_per_token
        stage_s = self.two_stage_s if message_bytes > self.two_stage_bytes else 0.0
        return self.latency_s + stage_s + message_bytes / self.bytes_per_s

    def memory_bytes(self, tokens: int) -> float:  # noqa: ARG002
        """None: it is traffic of the link, not of memory."""
        return 0.0


def all_reduce(gpu: GpuSpec, degree: int, hidden_size: int) -> AllReduce:
    """The all-reduce of a group of `degree` GPUs; others cost as the next measured degree."""
    nearest = next((d for d in MEASURED_DEGREES if d >= degree), MEASURED_DEGREES[-1])
    key = f"collectives.{'pcie' if gpu.interconnect == 'pcie' else 'nvlink'}.tp{nearest}"
    return AllReduce(
        bytes_per_token=hidden_size * ACTIVATION_BYTES,
        latency_s=CONSTANTS[f"{key}.latency_s"],
        bytes_per_s=gpu.interconnect_bytes_per_s * CONSTANTS[f"{key}.efficiency"],
        two_stage_s=CONSTANTS.get(f"{key}.two_stage_s", 0.0),
        two_stage_bytes=CONSTANTS.get(f"{key}.two_stage_bytes", 0.0),
    )
