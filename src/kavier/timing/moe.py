"""Mixture of experts: every distinct expert that a step needs is read once."""

from __future__ import annotations

from dataclasses import dataclass

from kavier.timing.gemm import Gemm, Numbers


def distinct_experts(experts: int, per_token: int, tokens: Numbers) -> Numbers:
    """Expected number of distinct experts under balanced routing: E (1 - (1 - k/E)^T)."""
    return experts * (1.0 - (1.0 - per_token / experts) ** tokens)


@dataclass(frozen=True, slots=True)
class GroupedGemm:
    """One matrix of all routed experts, computed for each token's `per_token` experts in one launch.

    `expert` is the matrix of ONE expert; tensor parallelism has split its width, every GPU holds all experts.
    """

    expert: Gemm
    experts: int
    per_token: int

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the experts a token is sent to."""
        return self.per_token * self.expert.flops_per_token

    def time_s(self, tokens: Numbers) -> Numbers:
        """As one GEMM with all rows, reading every distinct expert."""
        rows = tokens * self.per_token
        traffic_bytes = self.memory_bytes(tokens) + rows * self.expert.activation_bytes
        return self.expert.roof.time_s(rows * self.expert.padded_flops, traffic_bytes)

    def memory_bytes(self, tokens: Numbers) -> Numbers:
        """Weights of the distinct experts."""
        return distinct_experts(self.experts, self.per_token, tokens) * self.expert.weight_bytes
