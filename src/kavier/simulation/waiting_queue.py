"""The queue of requests that wait for admission, one class per --scheduling-policy."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Protocol

from kavier.simulation.request import Request


class WaitingQueue(Protocol):
    """Requests in the order they are to be admitted."""

    def __len__(self) -> int:
        """How many wait."""
        ...

    def head(self) -> Request:
        """The next to be admitted. Nothing behind it passes it."""
        ...

    def pop(self) -> Request:
        """Take the head out."""
        ...

    def add(self, request: Request) -> None:
        """A request arrived."""
        ...

    def put_back(self, request: Request) -> None:
        """A request was preempted."""
        ...

    def remove(self, request: Request) -> None:
        """A preempted request turns out to have finished."""
        ...


class FcfsQueue:
    """First come, first served; a preempted request goes back to the front."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def head(self) -> Request:  # noqa: D102 - WaitingQueue says it
        return self._queue[0]

    def pop(self) -> Request:  # noqa: D102
        return self._queue.popleft()

    def add(self, request: Request) -> None:  # noqa: D102
        self._queue.append(request)

    def put_back(self, request: Request) -> None:  # noqa: D102
        self._queue.appendleft(request)

    def remove(self, request: Request) -> None:  # noqa: D102
        self._queue.remove(request)


class PriorityQueue:
    """Smallest (priority, arrival, row) first, preempted or not."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def head(self) -> Request:  # noqa: D102
        return self._heap[0][-1]

    def pop(self) -> Request:  # noqa: D102
        return heapq.heappop(self._heap)[-1]

    def add(self, request: Request) -> None:  # noqa: D102
        heapq.heappush(self._heap, (request.priority, request.arrival_s, request.row, request))

    put_back = add

    def remove(self, request: Request) -> None:  # noqa: D102
        self._heap = [entry for entry in self._heap if entry[-1] is not request]
        heapq.heapify(self._heap)


WAITING_QUEUES: dict[str, Callable[[], WaitingQueue]] = {"fcfs": FcfsQueue, "priority": PriorityQueue}
