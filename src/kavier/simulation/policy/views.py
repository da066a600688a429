"""What policies see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.simulation.kernel.records import ARRIVAL, VIEW
from kavier.simulation.replica import Replica
from kavier.simulation.request import Request
from kavier.simulation.router import session_numbers


@dataclass(frozen=True, slots=True)
class RequestView:
    """What a policy sees of a request. How long its answer will be, nobody knows.

    Attributes:
        row: Its place among all requests, from 0.
        arrival_s: When it arrives; the clock starts in the second of the first arrival.
        prompt_tokens: Length of its prompt.
        prompt_blocks: Full KV blocks of its prompt.
        priority: Of the trace; 0 without.
        session: Number of its session; a session of its own without.
    """

    row: int
    arrival_s: float
    prompt_tokens: int
    prompt_blocks: int
    priority: int
    session: int


class ReplicaView(Protocol):
    """What a router sees of a replica at the moment a request arrives."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be scheduled."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        ...

    @property
    def num_outstanding(self) -> int:
        """Both together."""
        ...

    @property
    def used_blocks(self) -> int:
        """KV blocks in use."""
        ...

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        ...

    @property
    def matched_blocks(self) -> int:
        """Leading blocks of the request's prompt that its prefix cache holds."""
        ...


class LiveView:
    """A replica of the reference engine as a policy sees it."""

    def __init__(self, replica: Replica, request: Request) -> None:
        self._replica, self._request = replica, request
        scheduler = replica.scheduler
        self.num_waiting, self.num_running = scheduler.num_waiting, scheduler.num_running
        self.num_outstanding = replica.num_outstanding
        self.used_blocks, self.num_blocks = scheduler.num_used_blocks, replica.num_blocks

    @property
    def matched_blocks(self) -> int:
        """Looked up only when asked for."""
        return self._replica.matched_blocks(self._request)


@dataclass(frozen=True, slots=True)
class FixedView:
    """A replica as a policy sees it, as plain numbers."""

    num_waiting: int
    num_running: int
    num_outstanding: int
    used_blocks: int
    num_blocks: int
    matched_blocks: int


# Errors of policies name these; both are what is documented as ReplicaView.
LiveView.__name__ = LiveView.__qualname__ = FixedView.__name__ = FixedView.__qualname__ = "ReplicaView"


def arrivals(table: pl.DataFrame, block_size: int) -> NDArray[Any]:
    """ARRIVAL of every request of a table."""
    seen = np.zeros(len(table), ARRIVAL)
    seen["row"] = np.arange(len(table))
    seen["arrival_s"] = table["arrival_s"].to_numpy()
    seen["prompt_tokens"] = table["prompt_tokens"].to_numpy()
    seen["prompt_blocks"] = seen["prompt_tokens"] // block_size
    if "priority" in table.columns:
        seen["priority"] = table["priority"].fill_null(0).to_numpy()
    seen["session"] = session_numbers(table)
    return seen


assert tuple(RequestView.__slots__) == ARRIVAL.names
assert tuple(FixedView.__slots__) == VIEW.names
