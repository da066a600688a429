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


class UnitCosts(NamedTuple):
    """What the parts of a step weigh when its energy is shared out, in seconds of one GPU.

    A request weighs an equal part of `shared_s`, which is there as soon as anybody is, and its own tokens,
    rows and context. Own bytes and FLOPs are added, not the larger taken, and times of kernels do not matter:
    weights are for sharing, `StepCost.time_s` is how long the step takes.

    Attributes:
        shared_s: Of the whole step: host work and weights read.
        prefill_s: A prefill token.
        decode_s: The token of a decode.
        row_s: A sampled row.
        decode_context_s: A KV entry read by a decode.
        pair_s: A (query, key) pair of a prefill.
        prefill_context_s: A token of a prefill's context, its own tokens included.
        cached_s: A token of a prefill's context that was computed before.
    """

    shared_s: float
    prefill_s: float
    decode_s: float
    row_s: float
    decode_context_s: float
    pair_s: float
    prefill_context_s: float
    cached_s: float


class StepTimeModel(Protocol):
    """Prices a step. Pure: same work, same cost; reads nothing else."""

    level: str
    """"datasheet", "kernels" or "calibrated": how the prediction was made."""

    def cost(self, work: StepWork) -> StepCost:
        """Time and work of a step with at least one token."""
        ...

    def unit_costs(self, work: StepWork) -> UnitCosts:
        """By what the energy of a step with at least one token is shared out."""
        ...
