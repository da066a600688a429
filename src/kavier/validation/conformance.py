"""Replays a recorded run of the real vLLM scheduler, and compares every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from kavier.ecosystem.vllm_versions import is_async
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.compiled import covers, simulate_compiled
from kavier.simulation.record import requests_table
from kavier.simulation.reference import Simulation, make_replica, make_requests
from kavier.simulation.router import make_router
from kavier.simulation.sampling import Sampling
from kavier.simulation.scheduler import Scheduled, Scheduler, Step, StepScheduler
from kavier.timing.compiled import AffineTiming
from kavier.timing.step import StepCost
from kavier.validation.hint import hint
from kavier.validation.recording import LARGEST, REQUEST_FIELDS, STEP_FIELDS, Recording, Row, TokenKeys

EngineName = Literal["reference", "kernel"]

OURS = {
    "first_sched_s": "first_scheduled_s",
    "first_token_s": "first_token_s",
    "finish_s": "finish_s",
    "cached_tokens": "cached_tokens",
    "preemptions": "preemptions",
}
"""Name in a recording -> column of the requests table."""

assert tuple(OURS) == REQUEST_FIELDS


ENGINE_SETTINGS = (
    "block_size", "max_num_batched_tokens", "max_num_seqs", "max_model_len", "enable_prefix_caching",
    "enable_chunked_prefill", "long_prefill_token_threshold", "scheduling_policy",
    "scheduler_reserve_full_isl", "watermark",
)  # fmt: skip
"""Of `Engine`, besides the release and its loop."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the recorded scheduler ran with.

    Attributes:
        engine: Its settings, with all that depends on the release resolved.
        timing: Its clock.
        num_gpu_blocks: KV blocks, null block included.
        as_recorded: Asynchronous: sleep where the recorded scheduler's loop does, see `AsyncReplica`.
    """

    engine: Engine
    timing: AffineTiming
    num_gpu_blocks: int
    as_recorded: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """Those that `kavier conformance` has flags for, by their names."""
        timing, engine = self.timing, self.engine
        numbers = (timing.base_s, timing.prefill_s, timing.decode_s, timing.context_s)
        return {
            "num_gpu_blocks": self.num_gpu_blocks,
            **{name: getattr(engine, name) for name in ENGINE_SETTINGS},
            "step_time": ",".join(map(str, numbers)),
        }

    @property
    def longest(self) -> int:
        """max_model_len."""
        assert isinstance(self.engine.max_model_len, int), "max_model_len must be resolved"
        return self.engine.max_model_len


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two logs part.

    Attributes:
        name: Number of the step, or id of the request; None behind the recording's end.
        place: How many rows come before it.
        replayed: Our row; None behind the end of ours.
        recorded: The recorded row; None behind the recording's end.
        fields: Which of its fields differ.
    """

    name: int | str | None
    place: int
    replayed: Row | None
    recorded: Row | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """Our steps, or requests, against the recorded ones.

    Attributes:
        recorded: How many were recorded.
        replayed: How many we have.
        identical: How many are the same up to the last bit, each compared with that in its place.
        fields: What was compared.
        first_difference: Where they part; None if they do not.
    """

    recorded: int
    replayed: int
    identical: int
    fields: tuple[str, ...]
    first_difference: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our replay against the recording.

    Attributes:
        steps: Of its steps.
        requests: Of its requests.
        truncated: Requests whose answer is cut at max_model_len.
    """

    steps: Log
    requests: Log
    truncated: int

    @property
    def is_identical(self) -> bool:
        """Nothing differs."""
        return self.steps.first_difference is None and self.requests.first_difference is None

    def as_dict(self, name: EngineName, setup: Setup) -> dict[str, Any]:
        """Everything as plain data, with what was replayed how."""
        asynchronous = is_async(setup.engine)
        return {
            "engine": name,
            "vllm_version": setup.engine.vllm_version,
            "async_scheduling": asynchronous,
            "engine_loop": ("oracle" if setup.as_recorded else "vllm") if asynchronous else None,
            "max_model_len": setup.longest,
            "settings": setup.settings,
            "truncated_requests": self.truncated,
            "identical": self.is_identical,
            "hint": self._hint(setup),
            "steps": asdict(self.steps),
            "requests": asdict(self.requests),
        }

    def _hint(self, setup: Setup) -> str | None:
        first = self.steps.first_difference
        if first is None or first.place > 0 or first.replayed is None or first.recorded is None:
            return None
        return hint(first.replayed, first.recorded, first.fields, setup.num_gpu_blocks)


@dataclass(frozen=True, slots=True)
class Replay:
    """What our engine did, in the words of a recording."""

    steps: list[Row]
    requests: list[Row]


def conform(recording: Recording, setup: Setup, name: EngineName = "reference") -> Comparison:
    """Play the recorded workload in our engine and compare.

    Args:
        recording: What the real scheduler did.
        setup: What it ran with.
        name: Which of our engines. The kernel keeps no batch of a step: of that only the sums are compared.

    Raises:
        InputError: A prompt that is too long, or a setting that the kernel does not cover.
    """
    truncated = _check_lengths(recording, setup.longest)
    replay, fields = REPLAYS[name]
    ours = replay(recording, setup)
    logs = ours.steps, recording.steps if name == "reference" else _with_sums(recording)
    if is_async(setup.engine):
        logs = _timeless(logs[0]), _timeless(logs[1])
    requests = [recording.requests[name] for name in recording.ids]
    return Comparison(
        steps=_compare(*logs, fields, [step["step"] for step in recording.steps]),
        requests=_compare(ours.requests, requests, REQUEST_FIELDS, recording.ids),
        truncated=truncated,
    )


def _check_lengths(recording: Recording, longest: int) -> int:
    """How many answers max_model_len cuts."""
    prompts, answers = recording.table["prompt_tokens"], recording.table["output_tokens"]
    row = prompts.arg_max()
    if row is not None and prompts[row] >= longest:
        raise InputError(
            f"the prompt of request {recording.ids[row]!r} leaves no room for a token",
            where=str(recording.workload), value=prompts[row], expected=f"less than max_model_len, {longest}",
        )  # fmt: skip
    return int((prompts + answers > longest).sum())


def _timeless(steps: list[Row]) -> list[Row]:
    """An asynchronous step without tokens takes no time; the recording has a sleep that may not come."""
    return [{**step, "dt": None} if _is_empty(step) else step for step in steps]


def _is_empty(step: Row) -> bool:
    return not step["sched"] if "sched" in step else step["prefill_tokens"] + step["decodes"] == 0


def _with_sums(recording: Recording) -> list[Row]:
    """The recorded steps with the sums that the kernel keeps of a batch."""
    prompts = dict(zip(recording.ids, recording.table["prompt_tokens"], strict=True))
    steps = []
    for step in recording.steps:
        decodes = sum(part[1] == 1 and part[2] >= prompts[part[0]] for part in step["sched"])
        prefill_tokens = sum(part[1] for part in step["sched"]) - decodes
        sums = {"decodes": decodes, "prefill_tokens": prefill_tokens, "num_preempted": len(step["preempted"])}
        steps.append({**step, **sums})
    return steps


def _compare(
    mine: Sequence[Row], recorded: Sequence[Row], fields: tuple[str, ...], names: Sequence[int | str]
) -> Log:
    ours, theirs = ([{name: row[name] for name in fields} for row in rows] for rows in (mine, recorded))
    same = [one == other for one, other in zip(ours, theirs, strict=False)]
    first = None
    if not all(same) or len(ours) != len(theirs):
        place = same.index(False) if False in same else len(same)
        one, other = (log[place] if place < len(log) else None for log in (ours, theirs))
        parted = tuple(name for name in fields if one and other and one[name] != other[name])
        first = Difference(names[place] if other else None, place, one, other, parted)
    return Log(len(theirs), len(ours), sum(same), fields, first)


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


def replay_reference(recording: Recording, setup: Setup) -> Replay:
    """Every step with its batch."""
    engine = setup.engine
    log = StepLog(recording.ids)
    replica = make_replica(0, engine, setup.num_gpu_blocks, setup.timing, log, as_recorded=setup.as_recorded)
    requests, _ = make_requests(recording.table, setup.longest)
    keys = TokenKeys(recording.tokens, engine.block_size) if engine.enable_prefix_caching else None
    router = make_router("round-robin", recording.table, 1, 0)
    Simulation([replica], router, Clients(requests, recording.table), keys, setup.longest, None).run()
    return Replay(log.rows, _ends(requests_table(requests)))


def _ends(requests: pl.DataFrame) -> list[Row]:
    return [{theirs: row[ours] for theirs, ours in OURS.items()} for row in requests.iter_rows(named=True)]


# --- The compiled engine ----------------------------------------------------------------------------------

KERNEL_FIELDS = (
    "t", "dt", "prefill_tokens", "decodes", "num_preempted", "free", "evicted", "running", "waiting",
)  # fmt: skip


def replay_kernel(recording: Recording, setup: Setup) -> Replay:
    """Every step with its sums.

    Raises:
        InputError: A setting that the kernel does not cover.
    """
    engine, table, blocks = setup.engine, recording.table, setup.num_gpu_blocks
    if why := covers(table, engine, setup.timing, num_gpu_blocks=blocks):
        raise InputError(f"the kernel does not play this: {why}", expected="--engine reference")
    played = simulate_compiled(
        table, engine, setup.timing, num_gpu_blocks=blocks, as_recorded=setup.as_recorded,
        sampling=Sampling(interval_s=float(LARGEST), steps=True),
        keys=TokenKeys(recording.tokens, engine.block_size).flat if engine.enable_prefix_caching else None,
    )  # fmt: skip
    assert played.steps is not None
    steps = [
        {
            "t": step["scheduled_s"],
            "dt": step["duration_s"],
            "prefill_tokens": step["prefill_tokens"],
            "decodes": step["decodes"],
            "num_preempted": step["preempted"],
            "free": blocks - 1 - step["used_blocks"],
            "evicted": step["evicted_blocks"],
            "running": step["running"],
            "waiting": step["waiting"],
        }
        for step in played.steps.iter_rows(named=True)
    ]
    return Replay(steps, _ends(played.requests))


REPLAYS: dict[EngineName, tuple[Callable[[Recording, Setup], Replay], tuple[str, ...]]] = {
    "reference": (replay_reference, STEP_FIELDS),
    "kernel": (replay_kernel, KERNEL_FIELDS),
}
"""How each engine replays, and what of a step it can tell."""
