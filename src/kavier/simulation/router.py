"""Which replica gets a request.

Routers that look at nothing are plans: functions of the request table. Those that look at replicas see them
as they are when the request arrives: what has finished by then has, and all who arrived before are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import polars as pl
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from kavier.simulation.replica import Replica
from kavier.simulation.request import Request

Targets = NDArray[np.int32]


class Router(Protocol):
    """Chooses a replica at the moment a request arrives.

    Sees replicas as they are then. May not read `Request.output_length` or `Request.max_tokens`.
    """

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:
        """Index of the replica that serves the request."""
        ...


def make_router(name: str, table: pl.DataFrame, replicas: int, seed: int) -> Router:
    """A fresh router, by its name in PLANS or ROUTERS."""
    if name in PLANS:
        return Planned(PLANS[name](table, replicas, router_rng(seed)))
    return ROUTERS[name](len(table), replicas, router_rng(seed))


def router_rng(seed: int) -> Generator:
    """The random numbers of routers: a stream of their own."""
    return default_rng(SeedSequence([seed, int.from_bytes(b"router", "big")]))


# --- Routers that look at nothing -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas, decided before anything happens.

    Attributes:
        targets: Replica of each request.
        in_turn: By the order in which requests arrive at the router; otherwise by row of the table.
    """

    targets: Targets
    in_turn: bool


class Planned:
    """Follows a plan."""

    def __init__(self, plan: Plan) -> None:
        self._targets, self._in_turn = plan.targets.tolist(), plan.in_turn
        self._turn = 0

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        chosen: int = self._targets[self._turn if self._in_turn else request.row]
        self._turn += 1
        return chosen


def round_robin(table: pl.DataFrame, replicas: int, rng: Generator) -> Plan:  # noqa: ARG001
    """Replica 0, 1, 2, ... in turn."""
    return Plan((np.arange(len(table)) % replicas).astype(np.int32), in_turn=True)


def random(table: pl.DataFrame, replicas: int, rng: Generator) -> Plan:
    """Any, with equal chances."""
    return Plan((rng.random(len(table)) * replicas).astype(np.int32), in_turn=True)


def session_affine(table: pl.DataFrame, replicas: int, rng: Generator) -> Plan:  # noqa: ARG001
    """A session's requests to one replica; sessions take turns."""
    return Plan((session_numbers(table) % replicas).astype(np.int32), in_turn=False)


POINTS = 160
"""Of a replica on the ring of the consistent hash, as in ketama."""


def consistent_hash(table: pl.DataFrame, replicas: int, rng: Generator) -> Plan:  # noqa: ARG001
    """A session's requests to the replica behind its hash on a ring: few move when the fleet grows."""
    owners = np.repeat(np.arange(replicas, dtype=np.int32), POINTS)
    points = np.array([_hash(f"replica {i} {k}") for i in range(replicas) for k in range(POINTS)], np.uint64)
    order = np.argsort(points)
    numbers = session_numbers(table)
    _, first = np.unique(numbers, return_index=True)
    names = _session_names(table, first)
    place = np.searchsorted(points[order], np.array([_hash(name) for name in names], np.uint64))
    return Plan(owners[order][place % len(points)][numbers], in_turn=False)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _session_names(table: pl.DataFrame, rows: NDArray[np.int64]) -> list[str]:
    """What the sessions that begin with these rows are called."""
    if "session_id" not in table.columns:
        return [f"row {row}" for row in rows.tolist()]
    names = table["session_id"].gather(rows).to_list()
    return [f"row {row}" if name is None else name for row, name in zip(rows.tolist(), names, strict=True)]


def session_numbers(table: pl.DataFrame) -> NDArray[np.int64]:
    """Sessions in the order of their first request: by `session_id`, else by the request they go back to."""
    rows = np.arange(len(table))
    if "session_id" in table.columns:
        named = table["session_id"]
        numbered = table.select("session_id").with_row_index("row")
        first = numbered.select(pl.col("row").min().over("session_id")).to_series().to_numpy()
        begins = np.where(named.is_null().to_numpy(), rows, first)
    elif "parent" in table.columns:
        begins = np.array(table["parent"].fill_null(-1).to_numpy(), np.int64)
        begins = np.where(begins < 0, rows, begins)
        for _ in range(len(table).bit_length()):  # doubles the generations passed each time
            begins = begins[begins]
    else:
        return rows
    numbers = np.zeros(len(table), np.int64)
    starts = np.unique(begins)
    numbers[starts] = np.arange(len(starts))
    return numbers[begins]


PLANS: dict[str, Callable[[pl.DataFrame, int, Generator], Plan]] = {
    "round-robin": round_robin,
    "random": random,
    "session-affine": session_affine,
    "consistent-hash": consistent_hash,
}


# --- Routers that look at replicas ------------------------------------------------------------------------


class LeastOutstanding:
    """The replica with the fewest requests waiting or running; the first of equals."""

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        return min(range(len(replicas)), key=lambda index: replicas[index].num_outstanding)


class PowerOfTwoChoices:
    """The one with fewer requests outstanding of two replicas drawn at random; the first drawn of equals."""

    def __init__(self, count: int, replicas: int, rng: Generator) -> None:
        self._pairs = iter(draw_pairs(count, replicas, rng).tolist())

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        first, second = next(self._pairs)
        fewer = replicas[second].num_outstanding < replicas[first].num_outstanding
        chosen: int = second if fewer else first
        return chosen


def draw_pairs(count: int, replicas: int, rng: Generator) -> Targets:
    """Two different replicas (the same twice of one) for each arrival, [count, 2]."""
    drawn = rng.random((count, 2))
    first = (drawn[:, 0] * replicas).astype(np.int32)
    second = (drawn[:, 1] * max(replicas - 1, 1)).astype(np.int32)
    second += (second >= first) & (replicas > 1)
    return np.stack([first, second], axis=1)


class LeastKvUsed:
    """The replica with the fewest KV blocks in use; of equals the one with the fewest outstanding."""

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: ARG002, D102
        return min(
            range(len(replicas)),
            key=lambda i: (replicas[i].scheduler.num_used_blocks, replicas[i].num_outstanding),
        )


class LongestPrefixMatch:
    """The replica whose cache holds most of the prompt; of equals the one with the fewest outstanding."""

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: D102
        return self.best(request, replicas)[0]

    def best(self, request: Request, replicas: Sequence[Replica]) -> tuple[int, int]:
        """(replica, blocks of the prompt that it holds)."""
        matches = [replica.matched_blocks(request) for replica in replicas]
        index = min(range(len(replicas)), key=lambda i: (-matches[i], replicas[i].num_outstanding))
        return index, matches[index]


CACHE_THRESHOLD = 0.3
BALANCE_ABS_THRESHOLD = 64
BALANCE_REL_THRESHOLD = 1.5
"""Defaults of SGLang's Model Gateway: --cache-threshold, --balance-abs-threshold, --balance-rel-threshold
(docs/getting-started/load-balancing.md of lightseekorg/smg, read 2026-11-27)."""


class CacheAware(LongestPrefixMatch):
    """`cache_aware` of SGLang's Model Gateway, with the replicas' real caches in place of its own trees.

    While loads are balanced, the longest prefix match, if it is more than `CACHE_THRESHOLD` of the prompt;
    otherwise the fewest outstanding.
    """

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: D102
        loads = [replica.num_outstanding for replica in replicas]
        least, most = min(loads), max(loads)
        imbalanced = most - least > BALANCE_ABS_THRESHOLD and most > BALANCE_REL_THRESHOLD * least
        if not imbalanced:
            index, matched = self.best(request, replicas)
            block_size = replicas[index].block_size
            if matched * block_size > CACHE_THRESHOLD * request.num_prompt_tokens:
                return index
        return loads.index(least)


PREFIX_WEIGHT = 3.0
QUEUE_WEIGHT = 2.0
KV_WEIGHT = 2.0
"""Of llm-d's guide for precise prefix-cache routing: prefix-cache-scorer, queue-scorer and
kv-cache-utilization-scorer (guides/precise-prefix-cache-routing of llm-d, read 2026-11-27)."""


class LlmD:
    """llm-d's endpoint picker: the highest weighted sum of three scores between 0 and 1.

    Share of the prompt's blocks that are cached; shortness of the waiting queue, between the longest (0) and
    the shortest (1) of the fleet; free share of KV blocks. Of equals the fewest outstanding.
    """

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: D102
        blocks = max(1, request.num_prompt_tokens // replicas[0].block_size)
        queues = [replica.scheduler.num_waiting for replica in replicas]
        least, most = min(queues), max(queues)

        def score(index: int) -> float:
            replica = replicas[index]
            queue = (most - queues[index]) / (most - least) if most > least else 1.0
            total = PREFIX_WEIGHT * (replica.matched_blocks(request) / blocks) + QUEUE_WEIGHT * queue
            total += KV_WEIGHT * (1.0 - replica.scheduler.num_used_blocks / replica.num_blocks)
            return total

        return min(range(len(replicas)), key=lambda i: (-score(i), replicas[i].num_outstanding))


ROUTERS: dict[str, Callable[[int, int, Generator], Router]] = {
    "least-outstanding": lambda _count, _replicas, _rng: LeastOutstanding(),
    "power-of-two-choices": PowerOfTwoChoices,
    "least-kv-used": lambda _count, _replicas, _rng: LeastKvUsed(),
    "longest-prefix-match": lambda _count, _replicas, _rng: LongestPrefixMatch(),
    "cache-aware": lambda _count, _replicas, _rng: CacheAware(),
    "llm-d": lambda _count, _replicas, _rng: LlmD(),
}
"""Name -> router of a run with so many requests and replicas."""
