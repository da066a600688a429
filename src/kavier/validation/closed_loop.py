"""A closed loop: so many clients, each of which sends its next request when it has its answer."""

from __future__ import annotations

from math import inf
from typing import Any

from pydantic import model_validator

from kavier.scenario import Count, CountOrZero, Positive, Section


class ClosedLoop(Section):
    """Requests that `concurrency` clients keep in flight.

    Lengths are drawn uniformly from `range` times the nominal ones: of equal lengths the whole cohort
    would be prefilled and end in lock step for ever, which multiplies TTFT and happens on no machine.
    The first `warmup_requests` are left out of comparisons; not given: one of every client's.
    """

    concurrency: Count
    input_len: Count
    output_len: Count
    range: tuple[Positive, Positive] = (0.95, 1.05)
    requests_per_client: Count = 9
    warmup_requests: CountOrZero | None = None

    @model_validator(mode="after")
    def _rising(self) -> ClosedLoop:
        if self.range[1] < self.range[0]:
            raise ValueError("a range goes from the shortest to the longest")
        if self.warmup_requests is not None and self.warmup_requests >= self.requests:
            raise ValueError("all requests are warm-up")
        return self

    @property
    def requests(self) -> int:
        """How many are sent in all."""
        return self.concurrency * self.requests_per_client

    @property
    def warmup(self) -> int:
        """How many of the first are left out."""
        if self.warmup_requests is not None:
            return self.warmup_requests
        return self.concurrency if self.requests_per_client > 1 else 0

    def workload(self) -> dict[str, Any]:
        """The workload of a scenario: all wait at the door, as many are let in as may be in flight."""
        return {
            "synthetic": {
                "num_prompts": self.requests,
                "arrivals": {"request_rate": inf},
                "prompt_tokens": self._lengths(self.input_len),
                "output_tokens": self._lengths(self.output_len),
            },
            "max_concurrency": self.concurrency,
        }

    def note(self) -> str:
        """What was made up."""
        low, high = self.range
        text = (
            f"closed loop of {self.concurrency:,}: {self.requests:,} requests, lengths drawn uniformly from "
        )
        return text + f"{low:g} to {high:g} times {self.input_len:,} in and {self.output_len:,} out"

    def _lengths(self, nominal: int) -> dict[str, Any]:
        shortest, longest = (max(round(nominal * share), 1) for share in self.range)
        return {"kind": "quantiles", "quantiles": [[0, shortest], [1, longest]]}
