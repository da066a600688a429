"""Which replica gets a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kavier.simulation.replica import Replica
from kavier.simulation.request import Request


class Router(Protocol):
    """Chooses a replica at the moment a request arrives.

    Sees replicas as they are then. May not read `Request.output_length`.
    """

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:
        """Index of the replica that serves the request."""
        ...


class RoundRobin:
    """Replica 0, 1, 2, ... in turn."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        chosen = self._next
        self._next = (chosen + 1) % len(replicas)
        return chosen


class LeastOutstanding:
    """The replica with the fewest requests waiting or running; the first of equals."""

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        return min(range(len(replicas)), key=lambda index: replicas[index].num_outstanding)


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
}
