"""One request inside the engine."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.workload.blocks import unknown_key


class Status(StrEnum):
    """How a request ended, or that it has not."""

    UNFINISHED = "unfinished"
    FINISHED = "finished"
    REJECTED_CONTEXT = "rejected_context"
    """The prompt leaves no room for a token within max_model_len; vLLM refuses it on arrival."""
    REJECTED_KV = "rejected_kv"
    """It needs more KV blocks than exist. vLLM would block its queue for ever behind it."""


STATUSES = pl.Enum([str(status) for status in Status])
"""Type of the column `status`; in the order of the compiled records' numbers."""


RANK = "rank"
"""Column of a workload with the ranks of an admission order of the user's own."""


def priorities_of(workload: pl.DataFrame) -> NDArray[np.int64]:
    """The `priority` that vLLM is given for each request: ranks, else priorities of the trace, else zeros."""
    for name in (RANK, "priority"):
        if name in workload.columns:
            return workload[name].fill_null(0).to_numpy()
    return np.zeros(len(workload), np.int64)


class Request:
    """State of a request, in vLLM's words.

    `output_length` is the oracle's: only the model stand-in (`Scheduler.complete`) may read it, never a
    router or a scheduling decision. `max_tokens` is the client's: answers are taken to end there, as with
    `ignore_eos` in vLLM's benchmark, so that the asynchronous scheduler knows one step ahead which do.
    """

    __slots__ = (
        "arrival_s",
        "block_keys",
        "blocks",
        "energy_j",
        "first_scheduled_s",
        "first_token_s",
        "last_token_s",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_hashed_blocks",
        "num_in_flight_tokens",
        "num_output_placeholders",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_stale_output_tokens",
        "num_tokens",
        "output_length",
        "priority",
        "replica",
        "row",
        "status",
    )

    def __init__(
        self, row: int, arrival_s: float, prompt_tokens: int, output_length: int, priority: int = 0
    ) -> None:
        self.row = row
        self.arrival_s = arrival_s
        self.num_prompt_tokens = prompt_tokens
        self.output_length = output_length
        self.max_tokens = output_length
        self.priority = priority
        self.block_keys: list[int] = []
        self.status = Status.UNFINISHED
        self.replica: int | None = None
        self.num_tokens = prompt_tokens
        self.num_output_tokens = 0
        self.num_computed_tokens = 0
        # Asynchronous scheduling: what steps that have not ended yet will bring.
        self.num_output_placeholders = 0  # tokens not known yet, which a step may compute all the same
        self.num_in_flight_tokens = 0  # tokens being computed
        self.num_stale_output_tokens = 0  # of these, those from before a preemption
        self.blocks: list[int] = []
        self.num_hashed_blocks = 0
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.energy_j = 0.0  # its share of the steps so far

    def block_key(self, index: int) -> int:
        """Identity of the content of this request's block `index`."""
        keys = self.block_keys
        return keys[index] if index < len(keys) else unknown_key(self.row, index)

    @property
    def ends_in_flight(self) -> bool:
        """A step that has not ended yet brings the last token: there is nothing more to schedule."""
        placeholders = self.num_output_placeholders
        known = self.num_computed_tokens + 2 - placeholders
        return placeholders > 0 and known >= self.num_prompt_tokens + self.max_tokens

    def append_token(self, now_s: float) -> None:
        """A token was sampled; its KV is computed in the request's next step."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.num_output_tokens += 1
        self.num_tokens += 1
