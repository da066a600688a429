"""Collectives of tensor parallelism: latency + bytes / (what the interconnect reaches)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.gemm import ACTIVATION_BYTES, Numbers
from kavier.timing.parameters import Parameters

MEASURED_DEGREES = (2, 4, 8)

LARGE_BYTES = 4 * 2**20
"""Above it vLLM leaves its own all-reduce for NCCL's, or for one of two stages."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective over a tensor-parallel group, by two straight lines over the size of the message.

    Attributes:
        bytes_per_token: Message of a token (all-reduce), or what a GPU receives for a row (all-gather).
        latency_s: Time of an empty message.
        bytes_per_s: Link bandwidth times the measured share of it.
        large_latency_s: Likewise, for messages above `LARGE_BYTES`.
        large_bytes_per_s: Likewise.
    """

    bytes_per_token: float
    latency_s: float
    bytes_per_s: float
    large_latency_s: float
    large_bytes_per_s: float

    @property
    def flops_per_token(self) -> float:
        """None that count."""
        return 0.0

    def time_s(self, tokens: Numbers) -> Numbers:
        """Latency + message / rate."""
        message_bytes = np.asarray(tokens) * self.bytes_per_token
        small_s = self.latency_s + message_bytes / self.bytes_per_s
        large_s = self.large_latency_s + message_bytes / self.large_bytes_per_s
        # A large message never takes less than the largest small one.
        edge_s = self.latency_s + LARGE_BYTES / self.bytes_per_s
        time_s: Numbers = np.where(message_bytes > LARGE_BYTES, np.maximum(large_s, edge_s), small_s)
        return time_s

    def memory_bytes(self, tokens: Numbers) -> Numbers:  # noqa: ARG002
        """None: it is traffic of the link, not of memory."""
        return 0.0


def all_reduce(gpu: GpuSpec, parameters: Parameters, degree: int, hidden_size: int) -> Collective:
    """All-reduce of (tokens x hidden) activations; other degrees cost as the next measured one."""
    nearest = next((d for d in MEASURED_DEGREES if d >= degree), MEASURED_DEGREES[-1])
    p = parameters.of(f"collectives.tp{nearest}")
    return Collective(
        bytes_per_token=hidden_size * ACTIVATION_BYTES,
        latency_s=p["latency_s"],
        bytes_per_s=gpu.interconnect_bytes_per_s * p["efficiency"],
        large_latency_s=p["large_latency_s"],
        large_bytes_per_s=gpu.interconnect_bytes_per_s * p["large_efficiency"],
    )


def all_gather(gpu: GpuSpec, parameters: Parameters, degree: int, part: int) -> Collective:
    """The all-gather of (rows x part) values of each GPU: every GPU receives the parts of the others.

    It is priced with the latencies and the shares of bandwidth of the all-reduce. At 32 to 128 rows of
    128,256 logits that is 0.5 to 1.3 times the public NCCL tables (ai-dynamo/aiconfigurator) on H100 SXM, 0.8
    to 1.7 times on RTX PRO 6000. The copy that puts the parts side by side is not priced.
    """
    received_bytes = (degree - 1) * part * ACTIVATION_BYTES
    return replace(all_reduce(gpu, parameters, degree, part), bytes_per_token=received_bytes)
