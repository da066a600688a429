"""The reference engine: plain Python, written to be read, and the oracle of every faster one.

The main loop is `Simulation.run`. At one instant things happen in this order: steps end, requests
arrive (and are routed), idle replicas with work schedule their next step. So a router sees what has
finished by then, and a step sees all requests that have arrived by its start, as vLLM's engine loop does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import polars as pl
from numpy.typing import NDArray

from kavier.ecosystem.vllm_versions import is_async, reserves_full_isl, rules_of
from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.kv_cache_manager import KVCacheManager
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.python import PythonRouter
from kavier.simulation.policy.views import arrivals
from kavier.simulation.recompute import RecomputeScheduler
from kavier.simulation.record import Recorder, TableRecorder, requests_table
from kavier.simulation.replica import AsyncReplica, Replica
from kavier.simulation.request import Request, Status, priorities_of
from kavier.simulation.router import Router, make_router
from kavier.simulation.scheduler import Scheduler, SchedulerConfig, StepScheduler
from kavier.simulation.shares import Sharing
from kavier.timing.step import StepTimeModel
from kavier.workload.blocks import BlockKeys


class KeySource(Protocol):
    """Tells which KV blocks hold the same tokens."""

    def keys(self, row: int) -> list[int]:
        """Keys of the leading full blocks of request `row`, as far as its tokens are known."""
        ...


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The tables that everything after is a function of.

    Attributes:
        requests: One row a request, see `record.requests_table`.
        steps: One row a step, see `record.STEP_SCHEMA`.
        token_gaps: Inter-token gaps and how often each occurred.
        truncated: Requests whose answer was cut at max_model_len.
        kv_blocks: Usable KV blocks a replica.
    """

    requests: pl.DataFrame
    steps: pl.DataFrame
    token_gaps: pl.DataFrame
    truncated: int
    kv_blocks: int


def simulate_reference(
    workload: pl.DataFrame,
    engine: Engine,
    timing: StepTimeModel,
    *,
    num_gpu_blocks: int,
    replicas: int = 1,
    router: str | Policy = "round-robin",
    seed: int = 0,
    max_concurrency: int | None = None,
    keys: KeySource | None = None,
    power: NDArray[Any] | None = None,
    as_recorded: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Play a workload through `replicas` engines.

    Args:
        workload: Canonical request table, sorted by arrival.
        engine: Settings with max_model_len, max_num_seqs and max_num_batched_tokens resolved to numbers.
        timing: Prices each step.
        num_gpu_blocks: KV blocks a replica, null block included.
        replicas: Identical engines.
        router: Name in `router.PLANS` or `router.ROUTERS`, or a policy.
        seed: Of the router's random choices.
        max_concurrency: Closed loop: most requests in flight.
        keys: Which blocks hold the same tokens; None = as the workload's hashes say.
        power: One record of `kernel.records.POWER`; None leaves the energies of requests at zero.
        as_recorded: See `AsyncReplica`.
        progress: Called with the number of ended requests, each time one ends.
    """
    recorder = TableRecorder(None if power is None else Sharing(timing, power))
    requests, truncated = make_requests(workload, _resolved(engine.max_model_len))
    fleet = [
        make_replica(index, engine, num_gpu_blocks, timing, recorder, as_recorded=as_recorded)
        for index in range(replicas)
    ]
    keys = (keys or BlockKeys(workload, engine.block_size)) if engine.enable_prefix_caching else None
    clients = Clients(requests, workload, max_concurrency)
    chosen = (
        PythonRouter(router, arrivals(workload, engine.block_size))
        if isinstance(router, Policy)
        else make_router(router, workload, replicas, seed)
    )
    Simulation(fleet, chosen, clients, keys, _resolved(engine.max_model_len), progress).run()
    return SimulationResult(
        requests=requests_table(requests),
        steps=recorder.steps(),
        token_gaps=recorder.token_gaps(),
        truncated=truncated,
        kv_blocks=num_gpu_blocks - 1 if engine.kv_cache else 0,
    )


def make_replica(
    index: int,
    engine: Engine,
    num_gpu_blocks: int,
    timing: StepTimeModel,
    recorder: Recorder,
    *,
    as_recorded: bool = False,
) -> Replica:
    """A fresh engine; as_recorded: see `AsyncReplica`."""
    scheduler = make_scheduler(engine, num_gpu_blocks)
    if not is_async(engine):
        return Replica(index, scheduler, timing, recorder)
    awake = rules_of(engine).finished_keep_awake
    return AsyncReplica(
        index, scheduler, timing, recorder, finished_keep_awake=awake, as_recorded=as_recorded
    )


def make_scheduler(engine: Engine, num_gpu_blocks: int) -> StepScheduler:
    """A fresh scheduler with the engine's settings."""
    config = SchedulerConfig(
        max_num_batched_tokens=_resolved(engine.max_num_batched_tokens),
        max_num_seqs=_resolved(engine.max_num_seqs),
        max_model_len=_resolved(engine.max_model_len),
        policy="fcfs" if engine.scheduling_policy == "fcfs" else "priority",
        enable_chunked_prefill=engine.enable_chunked_prefill,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        scheduler_reserve_full_isl=reserves_full_isl(engine),
        async_scheduling=is_async(engine),
        rules=rules_of(engine),
    )
    if not engine.kv_cache:
        return RecomputeScheduler(config)
    kv = KVCacheManager(
        num_gpu_blocks,
        block_size=engine.block_size,
        enable_caching=engine.enable_prefix_caching,
        watermark=engine.watermark,
        max_model_len=config.max_model_len,
        unhashed_first=config.rules.unhashed_first,
    )
    return Scheduler(config, kv)


def make_requests(workload: pl.DataFrame, max_model_len: int) -> tuple[list[Request], int]:
    """Engine requests of a table; an answer that would pass max_model_len is cut there, and counted."""
    columns = [workload[name].to_list() for name in ("arrival_s", "prompt_tokens", "output_tokens")]
    columns.append(priorities_of(workload).tolist())
    requests, truncated = [], 0
    for row, (arrival_s, prompt, output, priority) in enumerate(zip(*columns, strict=True)):
        room = max_model_len - prompt
        truncated += 0 < room < output
        requests.append(Request(row, arrival_s, prompt, min(output, max(room, 0)), priority))
    return requests, truncated


class Simulation:
    """The event loop: whatever happens next, across clients and replicas."""

    def __init__(
        self,
        fleet: list[Replica],
        router: Router,
        clients: Clients,
        keys: KeySource | None,
        max_model_len: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._fleet = fleet
        self._router = router
        self._clients = clients
        self._keys = keys
        self._max_model_len = max_model_len
        self._progress = progress
        self._ended = 0
        self._agenda: list[tuple[float, int]] = []  # (when, replica); stale where its next_s differs

    def run(self) -> None:
        """Play until nothing is left to happen."""
        clients, agenda = self._clients, self._agenda
        while agenda or clients.next_s < inf:
            now_s = min(clients.next_s, agenda[0][0] if agenda else inf)
            touched = self._finish_steps(now_s)
            while (request := clients.send(now_s)) is not None:
                touched |= self._arrive(request, now_s)
            for index in sorted(touched):
                self._begin_step(self._fleet[index], now_s)

    def _finish_steps(self, now_s: float) -> set[int]:
        touched = set()
        while self._agenda and self._agenda[0][0] == now_s:
            _, index = heapq.heappop(self._agenda)
            replica = self._fleet[index]
            if replica.next_s == now_s and index not in touched:
                touched.add(index)
                for request in replica.finish(now_s):
                    self._end(request, now_s)
        return touched

    def _arrive(self, request: Request, now_s: float) -> set[int]:
        """Route a request; one whose prompt leaves no room for a token is refused by the API server."""
        if request.num_prompt_tokens >= self._max_model_len:
            request.status = Status.REJECTED_CONTEXT
            self._end(request, now_s)
            return set()
        if self._keys is not None:
            request.block_keys = self._keys.keys(request.row)
        request.replica = self._router.route(request, self._fleet)
        self._fleet[request.replica].scheduler.add(request)
        return {request.replica}

    def _begin_step(self, replica: Replica, now_s: float) -> None:
        for request in replica.begin(now_s):
            self._end(request, now_s)
        if replica.next_s < inf:
            heapq.heappush(self._agenda, (replica.next_s, replica.index))

    def _end(self, request: Request, now_s: float) -> None:
        request.block_keys = []
        self._clients.ended(request, now_s)
        self._ended += 1
        if self._progress is not None:
            self._progress(self._ended)


def _resolved(value: int | str | None) -> int:
    assert isinstance(value, int), "engine settings must be resolved before simulating"
    return value
