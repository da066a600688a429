"""Replays a recorded run of the real vLLM scheduler, and compares every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.compiled import simulate_compiled
from kavier.simulation.record import requests_table
from kavier.simulation.reference import Simulation, make_replica, make_requests
from kavier.simulation.router import make_router
from kavier.simulation.sampling import Sampling
from kavier.simulation.scheduler import Scheduled, Scheduler, Step, StepScheduler
from kavier.timing.compiled import AffineTiming
from kavier.timing.step import StepCost
from kavier.validation.recording import REQUEST_FIELDS, STEP_FIELDS, Recording, Row, TokenKeys

EngineName = Literal["reference", "kernel"]

OURS = {
    "first_sched_s": "first_scheduled_s",
    "first_token_s": "first_token_s",
    "finish_s": "finish_s",
    "cached_tokens": "cached_tokens",
    "preemptions": "preemptions",
}
"""Name in a recording -> column of the requests table."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two logs part; None where one of them ends."""

    index: int
    mine: Row | None
    recorded: Row | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our replay against the recording.

    Attributes:
        steps: Steps recorded.
        identical_steps: How many of them are ours, up to the last bit.
        first_step: The first that is not.
        requests: Requests recorded.
        identical_requests: How many of them are ours.
        first_request: The first that is not.
        fields: What of a step was compared.
    """

    steps: int
    identical_steps: int
    first_step: Difference | None
    requests: int
    identical_requests: int
    first_request: Difference | None
    fields: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        """Nothing differs."""
        return self.first_step is None and self.first_request is None


@dataclass(frozen=True, slots=True)
class Replay:
    """What our engine did, in the words of a recording."""

    steps: list[Row]
    requests: list[Row]


def conform(
    recording: Recording,
    engine: Engine,
    timing: AffineTiming,
    *,
    num_gpu_blocks: int,
    name: EngineName = "reference",
    as_recorded: bool = True,
) -> Comparison:
    """Play the recorded workload in our engine and compare.

    Args:
        recording: What the real scheduler did.
        engine: Settings that it ran with.
        timing: Its clock.
        num_gpu_blocks: KV blocks, null block included.
        name: Which of our engines. The kernel keeps no batch of a step: of that only the sizes are compared.
        as_recorded: Asynchronous: sleep where the oracle's emulated loop does, see `AsyncReplica`.
    """
    replay, fields = REPLAYS[name]
    ours = replay(recording, engine, timing, num_gpu_blocks, as_recorded)
    steps = [{name: step[name] for name in fields} for step in map(_with_sizes, ours.steps)]
    recorded = [{name: step[name] for name in fields} for step in map(_with_sizes, recording.steps)]
    theirs = [{"id": name, **recording.requests[name]} for name in recording.ids]
    _without_idle_durations(steps, recorded)
    same_steps, first_step = _compare(steps, recorded)
    same_requests, first_request = _compare(ours.requests, theirs)
    return Comparison(
        len(recorded), same_steps, first_step, len(theirs), same_requests, first_request, fields
    )


def _without_idle_durations(*logs: list[Row]) -> None:
    """An asynchronous step without tokens takes no time; the oracle logs its sleep, whenever that was."""
    for log in logs:
        for step in log:
            if step["tokens"] == 0:
                step["dt"] = None


def _with_sizes(step: Row) -> Row:
    """Counts that follow from a step's lists, where it has them."""
    if "sched" not in step:
        return step
    return {
        **step,
        "tokens": sum(part[1] for part in step["sched"]),
        "num_preempted": len(step["preempted"]),
    }


def _compare(mine: Sequence[Row], recorded: Sequence[Row]) -> tuple[int, Difference | None]:
    same = [i for i, (one, other) in enumerate(zip(mine, recorded, strict=False)) if one == other]
    if len(same) == len(mine) == len(recorded):
        return len(same), None
    first = next((n for n, i in enumerate(same) if n != i), len(same))
    sides = [log[first] if first < len(log) else None for log in (mine, recorded)]
    return len(same), Difference(first, *sides)


# --- The reference engine -------------------------------------------------------------------------------


class StepLog:
    """A recorder that writes steps as a recording has them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.rows: list[Row] = []
        self._ids = ids
        self._running: set[int] = set()
        self._evictions = 0

    def begin(  # noqa: D102 - Recorder says it
        self,
        replica: int,  # noqa: ARG002
        scheduled_s: float,
        start_s: float,  # noqa: ARG002
        cost: StepCost,
        step: Step,
        scheduler: StepScheduler,
    ) -> None:
        assert isinstance(scheduler, Scheduler)
        pool = scheduler.kv.pool
        self.rows.append(
            {
                "t": scheduled_s,
                "dt": cost.time_s,
                "sched": [self._part(entry) for entry in step.scheduled],
                "preempted": [self._ids[request.row] for request in step.preempted],
                "free": pool.num_free,
                "evicted": pool.num_evictions - self._evictions,
                "running": scheduler.num_running,
                "waiting": scheduler.num_waiting,
            }
        )
        self._evictions = pool.num_evictions
        self._running = {request.row for request in scheduler.running}

    def tokens(self, step: Step, end_s: float) -> None:
        """A recording does not have them."""

    def _part(self, entry: Scheduled) -> list[Any]:
        request, num_tokens, num_computed, _ = entry
        part = [self._ids[request.row], num_tokens, num_computed]
        admitted_with_hits = request.row not in self._running and num_computed > 0
        return [*part, num_computed] if admitted_with_hits else part


def replay_reference(
    recording: Recording, engine: Engine, timing: AffineTiming, num_gpu_blocks: int, as_recorded: bool
) -> Replay:
    """Every step with its batch."""
    longest = engine.max_model_len
    assert isinstance(longest, int)
    log = StepLog(recording.ids)
    replica = make_replica(0, engine, num_gpu_blocks, timing, log, as_recorded=as_recorded)
    requests, _ = make_requests(recording.table, longest)
    keys = TokenKeys(recording.tokens, engine.block_size) if engine.enable_prefix_caching else None
    router = make_router("round-robin", recording.table, 1, 0)
    Simulation([replica], router, Clients(requests, recording.table), keys, longest, None).run()
    return Replay(log.rows, _ends(recording, requests_table(requests)))


def _ends(recording: Recording, requests: pl.DataFrame) -> list[Row]:
    return [
        {"id": name, **{theirs: row[ours] for theirs, ours in OURS.items()}}
        for name, row in zip(recording.ids, requests.iter_rows(named=True), strict=True)
    ]


# --- The compiled engine ----------------------------------------------------------------------------------

KERNEL_FIELDS = ("t", "dt", "free", "evicted", "running", "waiting", "tokens", "num_preempted")


def replay_kernel(
    recording: Recording, engine: Engine, timing: AffineTiming, num_gpu_blocks: int, as_recorded: bool
) -> Replay:
    """Every step with its sums."""
    played = simulate_compiled(
        recording.table, engine, timing, num_gpu_blocks=num_gpu_blocks, as_recorded=as_recorded,
        sampling=Sampling(interval_s=60.0, steps=True),
        keys=TokenKeys(recording.tokens, engine.block_size).flat if engine.enable_prefix_caching else None,
    )  # fmt: skip
    assert played.steps is not None
    steps = [
        {
            "t": step["scheduled_s"],
            "dt": step["duration_s"],
            "free": num_gpu_blocks - 1 - step["used_blocks"],
            "evicted": step["evicted_blocks"],
            "running": step["running"],
            "waiting": step["waiting"],
            "tokens": step["prefill_tokens"] + step["decodes"],
            "num_preempted": step["preempted"],
        }
        for step in played.steps.iter_rows(named=True)
    ]
    return Replay(steps, _ends(recording, played.requests))


Play = Callable[[Recording, Engine, AffineTiming, int, bool], Replay]

REPLAYS: dict[EngineName, tuple[Play, tuple[str, ...]]] = {
    "reference": (replay_reference, (*STEP_FIELDS, "tokens")),
    "kernel": (replay_kernel, KERNEL_FIELDS),
}
"""How each engine replays, and what of a step it can tell."""

assert set(OURS) == set(REQUEST_FIELDS)
