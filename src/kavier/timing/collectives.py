"""Collectives of tensor parallelism: latency + bytes / (what the interconnect reaches)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.constants import CONSTANTS
from kavier.timing.gemm import ACTIVATION_BYTES, Numbers

MEASURED_DEGREES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective over a tensor-parallel group.

    Attributes:
        bytes_per_token: Message of a token (all-reduce), or what a GPU receives for a row (all-gather).
        latency_s: Time of an empty message.
        bytes_per_s: Link bandwidth times the measured share of it.
        two_stage_s: Added above `two_stage_bytes`, where the algorithm changes.
        two_stage_bytes: See `two_stage_s`.
    """

    bytes_per_token: int
    latency_s: float
    bytes_per_s: float
    two_stage_s: float
    two_stage_bytes: float

    @property
    def flops_per_token(self) -> float:
        """None that count."""
        return 0.0

    def time_s(self, tokens: Numbers) -> Numbers:
        """Latency + message / rate, and a step where the algorithm changes."""
        message_bytes = tokens * self.bytes_per_token
        stage_s = np.where(message_bytes > self.two_stage_bytes, self.two_stage_s, 0.0)
        return self.latency_s + stage_s + message_bytes / self.bytes_per_s

    def memory_bytes(self, tokens: Numbers) -> Numbers:  # noqa: ARG002
        """None: it is traffic of the link, not of memory."""
        return 0.0


def all_reduce(gpu: GpuSpec, degree: int, hidden_size: int) -> Collective:
    """All-reduce of (tokens x hidden) activations; other degrees cost as the next measured one."""
    nearest = next((d for d in MEASURED_DEGREES if d >= degree), MEASURED_DEGREES[-1])
    key = f"collectives.{'pcie' if gpu.interconnect == 'pcie' else 'nvlink'}.tp{nearest}"
    return Collective(
        bytes_per_token=hidden_size * ACTIVATION_BYTES,
        latency_s=CONSTANTS[f"{key}.latency_s"],
        bytes_per_s=gpu.interconnect_bytes_per_s * CONSTANTS[f"{key}.efficiency"],
        two_stage_s=CONSTANTS.get(f"{key}.two_stage_s", 0.0),
        two_stage_bytes=CONSTANTS.get(f"{key}.two_stage_bytes", 0.0),
    )


def all_gather(gpu: GpuSpec, degree: int, part: int) -> Collective:
    """The all-gather of (rows x part) values of each GPU: every GPU receives the parts of the others.

    It is priced with the latency and the share of bandwidth of the all-reduce. At 32 to 128 rows of 128,256
    logits that is 0.5 to 1.3 times the public NCCL tables (ai-dynamo/aiconfigurator) on H100 SXM, 0.8 to 1.7
    times on RTX PRO 6000. The copy that puts the parts side by side is not priced.
    """
    received_bytes = (degree - 1) * part * ACTIVATION_BYTES
    return replace(all_reduce(gpu, degree, part), bytes_per_token=received_bytes, two_stage_s=0.0)
