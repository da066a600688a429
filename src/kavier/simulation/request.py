"""One request inside the engine."""

from __future__ import annotations

from enum import StrEnum

from kavier.workload.blocks import unknown_key


class Status(StrEnum):
    """How a request ended, or that it has not."""

    UNFINISHED = "unfinished"
    FINISHED = "finished"
    REJECTED_CONTEXT = "rejected_context"
    """The prompt leaves no room for a token within max_model_len; vLLM refuses it on arrival."""
    REJECTED_KV = "rejected_kv"
    """It needs more KV blocks than exist. vLLM would block its queue for ever behind it."""


class Request:
    """State of a request, in vLLM's words.

    `output_length` is the oracle's: only the model stand-in (`Scheduler.complete`) may read it, never a
    router or scheduling decision.
    """

    __slots__ = (
        "arrival_s",
        "block_keys",
        "blocks",
        "first_scheduled_s",
        "first_token_s",
        "last_token_s",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_hashed_blocks",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
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
        self.priority = priority
        self.block_keys: list[int] = []
        self.status = Status.UNFINISHED
        self.replica: int | None = None
        self.num_tokens = prompt_tokens
        self.num_output_tokens = 0
        self.num_computed_tokens = 0
        self.blocks: list[int] = []
        self.num_hashed_blocks = 0
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    def block_key(self, index: int) -> int:
        """Identity of the content of this request's block `index`."""
        keys = self.block_keys
        return keys[index] if index < len(keys) else unknown_key(self.row, index)

    def append_token(self, now_s: float) -> None:
        """A token was sampled; its KV is computed in the request's next step."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.num_output_tokens += 1
        self.num_tokens += 1
