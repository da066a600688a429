"""What one engine step computes, and what a step-time model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

LEAST_STEP_S, MOST_STEP_S = 1e-6, 1e6
"""What a step may take: the clock does not tell less apart, and nothing takes more."""


@dataclass(slots=True)
class StepWork:
    """The tokens of one step, as sums over its batch.

    A decode is a request that computes one token behind its prompt; everything else is prefill.

    Attributes:
        prefills: Number of prefill chunks.
        prefill_tokens: Sum of chunk lengths q.
        prefill_pairs: Sum of q*c + q*(q+1)/2: (query, key) pairs attended, c = tokens computed before.
        prefill_context_tokens: Sum of c + q.
        decodes: Number of decodes.
        decode_context_tokens: Sum of c + 1 over decodes: KV entries read.
        sampled: Requests that sample a token in this step.
    """

    prefills: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    prefill_context_tokens: int = 0
    decodes: int = 0
    decode_context_tokens: int = 0
    sampled: int = 0


class StepCost(NamedTuple):
    """Time of a step, and the work behind it on ONE of the replica's GPUs.

    Attributes:
        time_s: From the start of the step to its tokens being known.
        flops: Floating-point operations per GPU.
        bytes: Bytes read and written in GPU memory, per GPU.
    """

    time_s: float
    flops: float
    bytes: float


class StepTimeModel(Protocol):
    """Prices a step. Pure: same work, same cost; reads nothing else."""

    level: str
    """"datasheet", "kernels" or "calibrated": how the prediction was made."""

    def cost(self, work: StepWork) -> StepCost:
        """Time and work of a step with at least one token."""
        ...
