"""Step-time models as data: what the compiled engine reads instead of calling Python.

A model that has `compiled()` runs in the compiled engine; it promises that the engine, evaluating these
tables with the same operations in the same order as `cost`, gets the same floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kavier.timing.step import StepCost, StepWork, UnitCosts

NO_WINDOW = 1 << 40
"""More tokens than any context, for layers without a sliding window."""

PRICE = np.dtype([("time_s", "f8"), ("bytes", "f8")], align=True)
"""Time and GPU-memory traffic of a number of tokens (or sampled rows); the number is the index."""

PRICE_BYTES = PRICE.itemsize

HOST = np.dtype([("least_s", "f8")], align=True)
"""What the host takes for a step of so many sampled rows; the number is the index."""

ATTENTION = np.dtype(
    [
        ("layers", "i8"),
        ("window", "i8"),
        ("kv_bytes", "i8"),
        ("decode_launch_s", "f8"),
        ("prefill_launch_s", "f8"),
        ("sequence_s", "f8"),
        ("decode_s", "f8"),
        ("mixed_decode_s", "f8"),
        ("empty_block_s", "f8"),
        ("pair_s", "f8"),
        ("token_s", "f8"),
        ("expand_s", "f8"),
        ("read_s", "f8"),
        ("decode_flops", "f8"),
        ("pair_flops", "f8"),
        ("expand_flops", "f8"),
    ],
    align=True,
)
"""Fields of `attention.AttentionLayers` and of its `AttentionWork`."""


class Shares(NamedTuple):
    """Coefficients of `step.UnitCosts`.

    Attributes:
        step_s: Shared by all in the step, besides the bytes of weights.
        byte_s: A byte read or written: of weights, those that `StepTables` prices the step with.
        flop_s: A FLOP of attention.
        token_bytes_s: Of a token's activations, which are among the bytes of `StepTables.body`.
        row_bytes_s: Of a row's, among those of `StepTables.head`.
        context_s: A token of context, besides the bytes and FLOPs of attention.
        prefill_s: As in `UnitCosts`.
        decode_s: Likewise.
        row_s: Likewise.
        decode_context_s: Likewise, but without layers that have a window.
        pair_s: Likewise.
        prefill_context_s: Likewise.
        cached_s: Likewise.
    """

    step_s: float
    byte_s: float
    flop_s: float
    token_bytes_s: float
    row_bytes_s: float
    context_s: float
    prefill_s: float
    decode_s: float
    row_s: float
    decode_context_s: float
    pair_s: float
    prefill_context_s: float
    cached_s: float


SHARES = np.dtype([(name, "f8") for name in Shares._fields], align=True)
"""One `Shares`."""


@dataclass(frozen=True, slots=True)
class StepTables:
    """The datasheet form: tables over tokens and sampled rows, and attention layers.

    Attributes:
        body: PRICE of 0 .. max_num_batched_tokens tokens.
        head: PRICE of 0 .. max_num_seqs sampled rows.
        host: HOST of 0 .. rows, the last one for all more.
        body_flops: FLOPs of a token.
        head_flops: FLOPs of a row.
        attention: ATTENTION, one row per kind of layer.
        shares: How the energy of a step is shared out.
        function: Address of a C function (address of StepWork's numbers, 0) that tells the time instead;
            0 = none.
    """

    body: NDArray[Any]
    head: NDArray[Any]
    host: NDArray[Any]
    body_flops: float
    head_flops: float
    attention: NDArray[Any]
    shares: Shares
    function: int = 0


@dataclass(frozen=True, slots=True)
class AffineTiming:
    """A step-time model of four numbers, for replays and tests.

    time = base_s + prefill_s P + decode_s D + context_s C, left to right: P prefill tokens, D decodes, C
    tokens of context of all. FLOPs and bytes are proportional to prefill pairs and to decode context.
    """

    base_s: float
    prefill_s: float
    decode_s: float
    context_s: float
    pair_flops: float = 0.0
    context_bytes: float = 0.0

    level = "affine"

    def cost(self, work: StepWork) -> StepCost:
        """Time and work of a step."""
        context = work.prefill_context_tokens + work.decode_context_tokens
        time_s = (
            self.base_s
            + self.prefill_s * work.prefill_tokens
            + self.decode_s * work.decodes
            + self.context_s * context
        )
        return StepCost(
            time_s, self.pair_flops * work.prefill_pairs, self.context_bytes * work.decode_context_tokens
        )

    @property
    def shares(self) -> Shares:
        """Its own coefficients: a step's weight is its time."""
        _, *own_s = self.unit_costs(StepWork())
        return Shares(self.base_s, 0.0, 0.0, 0.0, 0.0, self.context_s, *own_s)

    def unit_costs(self, work: StepWork) -> UnitCosts:  # noqa: ARG002
        """`base_s` is shared; the rest is everybody's own."""
        return UnitCosts(
            shared_s=self.base_s, prefill_s=self.prefill_s, decode_s=self.decode_s, row_s=0.0,
            decode_context_s=self.context_s, pair_s=0.0, prefill_context_s=self.context_s, cached_s=0.0,
        )  # fmt: skip

    def compiled(self) -> AffineTiming:
        """Itself: it is data already."""
        return self


@runtime_checkable
class Compilable(Protocol):
    """A step-time model that the compiled engine can evaluate."""

    def compiled(self) -> StepTables | AffineTiming:
        """Its tables or coefficients."""
        ...
