"""Collectives of tensor parallelism: latency + bytes / (what the interconnect reaches)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.gemm import ACTIVATION_BYTES, Numbers
from kavier.timing.parameters import Parameters

MEASURED_DEGREES = (2, 4, 8)

KNOTS = {
    "64k": 2**16,
    "256k": 2**18,
    "512k": 2**19,
    "1m": 2**20,
    "4m": 2**22,
    "8m": 2**23,
    "32m": 2**25,
    "256m": 2**28,
}
"""Bytes of a message at which the share of the link's bandwidth is known, by name. From 256 to 512 KiB, and
from 4 to 8 MiB, vLLM changes its way of reducing."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective over a tensor-parallel group: latency + message / (share of the link's bandwidth).

    Attributes:
        bytes_per_token: Message of a token (all-reduce), or what a GPU receives for a row (all-gather).
        latency_s: Time of an empty message.
        link_bytes_per_s: Of the link, one direction, per GPU.
        shares: Of it that is reached, at each of `KNOTS`; between them by the logarithm of both.
    """

    bytes_per_token: float
    latency_s: float
    link_bytes_per_s: float
    shares: tuple[float, ...]

    @property
    def flops_per_token(self) -> float:
        """None that count."""
        return 0.0

    def time_s(self, tokens: Numbers) -> Numbers:
        """Latency + message / rate; never less than a smaller message takes at its knot."""
        message_bytes = np.asarray(tokens, np.float64) * self.bytes_per_token
        sizes, shares = np.array(list(KNOTS.values()), np.float64), np.array(self.shares)
        logs = np.log(np.maximum(message_bytes, 1.0))
        share = np.exp(np.interp(logs, np.log(sizes), np.log(shares)))
        time_s = self.latency_s + message_bytes / (self.link_bytes_per_s * share)
        at_knots_s = np.maximum.accumulate(self.latency_s + sizes / (self.link_bytes_per_s * shares))
        least_s = np.concatenate([[0.0], at_knots_s])[np.searchsorted(sizes, message_bytes)]
        longest_s: Numbers = np.maximum(time_s, least_s)
        return longest_s

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
        link_bytes_per_s=gpu.interconnect_bytes_per_s,
        shares=tuple(p[f"share_{knot}"] for knot in KNOTS),
    )


def all_gather(gpu: GpuSpec, parameters: Parameters, degree: int, part: int) -> Collective:
    """The all-gather of (rows x part) values of each GPU: every GPU receives the parts of the others.

    It is priced with the latency and the shares of bandwidth of the all-reduce. At 32 to 128 rows of
    128,256 logits that is 0.5 to 1.3 times the public NCCL tables (ai-dynamo/aiconfigurator) on H100 SXM, 0.8
    to 1.7 times on RTX PRO 6000. The copy that puts the parts side by side is not priced.
    """
    received_bytes = (degree - 1) * part * ACTIVATION_BYTES
    return replace(all_reduce(gpu, parameters, degree, part), bytes_per_token=received_bytes)
