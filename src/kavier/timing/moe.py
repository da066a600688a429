"""Mixture of experts: every distinct expert that a step needs is read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec
from kavier.timing.gemm import ACTIVATION_BYTES, Numbers, gemm_kind
from kavier.timing.parameters import Parameters


def popularity(experts: int, skew: float) -> NDArray[np.float64]:
    """Share of all choices that falls on each expert, most chosen first: a power law, 0 = all alike."""
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def distinct_experts(experts: Any, per_token: Any, tokens: Numbers, skew: float = 0.0) -> Numbers:
    """Expected number of distinct experts that tokens are sent to: sum of 1 - (1 - k p_e)^T.

    Under balanced routing p_e = 1/E: E (1 - (1 - k/E)^T).
    """
    if skew == 0.0:
        balanced: Numbers = experts * (1.0 - (1.0 - per_token / experts) ** tokens)
        return balanced
    chance = np.minimum(per_token * popularity(experts, skew), 1.0)
    missed = np.power(1.0 - chance[:, None], np.atleast_1d(np.asarray(tokens, np.float64))[None, :])
    found: Numbers = (1.0 - missed).sum(axis=0).reshape(np.shape(tokens))
    return found


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """What the fused expert kernels of one kind reach on one GPU: both matrices and the activation.

    Attributes:
        flops_per_s: Datasheet peak times an efficiency.
        bytes_per_s: Datasheet bandwidth times an efficiency.
        launch_s: Fixed time of all kernels.
        expert_s: Added for each distinct expert.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    expert_s: float

    def time_s(
        self, rows: Numbers, distinct: Numbers, hidden: Numbers, inner: Numbers, expert_bytes: Numbers
    ) -> Numbers:
        """Seconds to send `rows` (tokens times experts each) through `distinct` experts.

        Computing and reading add up: an exponent between them, as matrix multiplications have, was fitted
        at or near 1, where they do.

        Args:
            rows: Rows of all experts of this GPU together.
            distinct: Experts of this GPU that get any.
            hidden: Width of the model.
            inner: Width of an expert on this GPU, times its matrices.
            expert_bytes: Weights of one expert on this GPU.
        """
        compute_s = 2.0 * rows * hidden * inner / self.flops_per_s
        moved = distinct * expert_bytes + rows * (2.0 * hidden + inner) * ACTIVATION_BYTES
        return self.launch_s + distinct * self.expert_s + compute_s + moved / self.bytes_per_s


def expert_form(gpu: GpuSpec, parameters: Parameters, kind: str) -> ExpertForm:
    """The form for experts of a kind: "bf16", "fp8", "fp8_block", "mxfp4" or "int4"."""
    p = parameters.of(f"moe.{kind}")
    dtype = "fp8" if kind.startswith("fp8") else "bf16"
    return ExpertForm(
        flops_per_s=gpu.flops_per_s[dtype] * p["compute_efficiency"],
        bytes_per_s=gpu.bandwidth_bytes_per_s * p["memory_efficiency"],
        launch_s=p["launch_s"],
        expert_s=p["expert_s"],
    )


def expert_kind(gpu: GpuSpec, weight_dtype: str, group_size: int) -> str:
    """Which kernels serve experts stored so: 4-bit weights have kernels of their own."""
    if weight_dtype in ("mxfp4", "int4"):
        return weight_dtype
    return gemm_kind(gpu, weight_dtype, group_size)


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of one layer on ONE GPU.

    Under tensor parallelism every GPU holds a part of each expert's width; under expert parallelism whole
    experts, `spread` GPUs together all of them. `peers` engines (data-parallel attention) send their tokens
    through the same experts; each is taken to have as many.

    Attributes:
        expert_bytes: Weights of one expert on this GPU.
        width: Of an expert, on this GPU.
    """

    form: ExpertForm
    hidden: int
    width: int
    matrices: int
    expert_bytes: float
    experts: int
    per_token: int
    spread: int = 1
    peers: int = 1
    skew: float = 0.0

    @property
    def flops_per_token(self) -> float:
        """FLOPs of this GPU for a token of each peer."""
        return 2.0 * self.matrices * self.hidden * self.width * float(self._rows(1))

    def time_s(self, tokens: Numbers) -> Numbers:
        """As the busiest of the GPUs that share the experts."""
        busiest = self._busiest()
        return self.form.time_s(
            self._rows(tokens) * busiest,
            self._distinct(tokens),
            self.hidden,
            self.matrices * self.width,
            self.expert_bytes,
        )

    def memory_bytes(self, tokens: Numbers) -> Numbers:
        """Weights of this GPU's distinct experts."""
        return self._distinct(tokens) * self.expert_bytes

    def _rows(self, tokens: Numbers) -> Numbers:
        rows: Numbers = tokens * self.peers * self.per_token / self.spread
        return rows

    def _distinct(self, tokens: Numbers) -> Numbers:
        everywhere = distinct_experts(self.experts, self.per_token, tokens * self.peers, self.skew)
        share: Numbers = everywhere / self.spread
        return share

    def _busiest(self) -> float:
        """Rows of the busiest GPU relative to the mean, experts dealt out by popularity."""
        if self.spread == 1 or self.skew == 0.0:
            return 1.0
        return float(popularity(self.experts, self.skew)[:: self.spread].sum() * self.spread)
