"""Who sends requests, and when: trace times, think times between turns, a limit on concurrency."""

from __future__ import annotations

import heapq
from collections import deque

import polars as pl

from kavier.simulation.request import Request


class Clients:
    """Releases requests in time order.

    A request arrives at its `arrival_s`; or, with `parent` and `think_s`, that long after its parent has
    ended; and, with `max_concurrency`, not before fewer than that many requests are in flight (the
    semaphore of `vllm bench serve`). `Request.arrival_s` is set to the time it was really sent.
    """

    def __init__(
        self, requests: list[Request], table: pl.DataFrame, max_concurrency: int | None = None
    ) -> None:
        self._requests = requests
        self._free_slots = float("inf") if max_concurrency is None else max_concurrency
        self._held: deque[int] = deque()
        self._last_end_s = 0.0
        self._children, waits = _follow_ups(table)
        self._due = [(r.arrival_s, r.row) for r in requests if r.row not in waits]
        heapq.heapify(self._due)

    @property
    def next_s(self) -> float:
        """When the next request can be sent; infinity when none can."""
        if self._held and self._free_slots:
            return self._last_end_s
        return self._due[0][0] if self._due else float("inf")

    def send(self, now_s: float) -> Request | None:
        """The next request to send at `now_s`, if any: held ones first; ties in table order."""
        if self._held and self._free_slots:
            return self._start(self._held.popleft(), now_s)
        while self._due and self._due[0][0] <= now_s:
            _, row = heapq.heappop(self._due)
            if self._free_slots:
                return self._start(row, now_s)
            self._held.append(row)
        return None

    def ended(self, request: Request, now_s: float) -> None:
        """A request finished or was rejected: its follow-ups and a held request become due."""
        self._free_slots += 1
        self._last_end_s = now_s
        for row, think_s in self._children.get(request.row, ()):
            heapq.heappush(self._due, (now_s + think_s, row))

    def _start(self, row: int, now_s: float) -> Request:
        self._free_slots -= 1
        request = self._requests[row]
        request.arrival_s = now_s
        return request


def _follow_ups(table: pl.DataFrame) -> tuple[dict[int, list[tuple[int, float]]], set[int]]:
    """Parent row -> [(row, think_s)], and all rows that wait for a parent."""
    children: dict[int, list[tuple[int, float]]] = {}
    waits: set[int] = set()
    if {"parent", "think_s"} <= set(table.columns):
        pairs = zip(table["parent"].to_list(), table["think_s"].to_list(), strict=True)
        for row, (parent, think_s) in enumerate(pairs):
            if parent is not None and think_s is not None:
                children.setdefault(parent, []).append((row, think_s))
                waits.add(row)
    return children, waits
