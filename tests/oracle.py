"""Replays the recorded behaviour of the real vLLM scheduler (../shared/oracle) on our engine."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.reference import Simulation, make_scheduler
from kavier.simulation.replica import Replica
from kavier.simulation.request import Request
from kavier.simulation.router import RoundRobin
from kavier.simulation.scheduler import Scheduled, Scheduler, Step, StepScheduler
from kavier.timing.step import StepCost, StepWork

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"

_SMALL = {"max_num_batched_tokens": 1024, "max_num_seqs": 64}
_UNCACHED = {"enable_prefix_caching": False}

RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "light_nocache": ("light", 10000, {"max_num_batched_tokens": 2048, "max_num_seqs": 128, **_UNCACHED}),
    "pressure": ("pressure", 500, _SMALL),
    "pressure_nocache": ("pressure", 500, {**_SMALL, **_UNCACHED}),
    "sessions_evict": ("sessions", 420, {"max_num_batched_tokens": 1024, "max_num_seqs": 32}),
    "chunked": ("chunked", 3000, _SMALL),
    "chunked_lpt": ("chunked", 3000, {**_SMALL, "long_prefill_token_threshold": 256}),
    "priority": ("priority", 500, {**_SMALL, "scheduling_policy": "priority"}),
    "mooncake": ("mooncake", 3000, {"max_num_batched_tokens": 4096, "max_num_seqs": 128}),
    "samestep": ("samestep", 64, {"max_num_batched_tokens": 256, "max_num_seqs": 128}),
}
"""Run -> (workload, num_gpu_blocks, engine settings), from the table in ../shared/oracle/README.md."""


class OracleStepTime:
    """t = 0.005 + 2e-5 P + 1e-4 D + 1e-8 C, left to right in doubles."""

    level = "oracle"

    def cost(self, work: StepWork) -> StepCost:
        context = work.prefill_context_tokens + work.decode_context_tokens
        return StepCost(0.005 + 2e-5 * work.prefill_tokens + 1e-4 * work.decodes + 1e-8 * context, 0.0, 0.0)


class TokenKeys:
    """Block identity from token ids: every distinct (parent chain, tokens) has a number."""

    def __init__(self, sequences: list[list[int]], block_size: int = 16) -> None:
        self._sequences = sequences
        self._size = block_size
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def keys(self, row: int) -> list[int]:
        tokens, keys, parent = self._sequences[row], [], -1
        for start in range(0, len(tokens) - self._size + 1, self._size):
            content = (parent, tuple(tokens[start : start + self._size]))
            parent = self._numbers.setdefault(content, len(self._numbers))
            keys.append(parent)
        return keys


class StepLog:
    """A recorder that writes steps as the oracle logs them."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self.rows: list[dict[str, Any]] = []
        self._running: set[int] = set()
        self._evictions = 0

    def begin(
        self, replica: int, start_s: float, cost: StepCost, step: Step, scheduler: StepScheduler
    ) -> None:
        assert isinstance(scheduler, Scheduler)
        pool = scheduler.kv.pool
        self.rows.append(
            {
                "t": start_s,
                "dt": cost.time_s,
                "sched": [self._entry(s) for s in step.scheduled],
                "preempted": [self.ids[r.row] for r in step.preempted],
                "free": pool.num_free,
                "evicted": pool.num_evictions - self._evictions,
                "running": scheduler.num_running,
                "waiting": scheduler.num_waiting,
            }
        )
        self._evictions = pool.num_evictions
        self._running = {request.row for request in scheduler.running}

    def _entry(self, scheduled: Scheduled) -> list[Any]:
        request, num_tokens, num_computed = scheduled
        entry = [self.ids[request.row], num_tokens, num_computed]
        admitted_with_hits = request.row not in self._running and num_computed > 0
        return [*entry, num_computed] if admitted_with_hits else entry

    def tokens(self, step: Step, end_s: float) -> None:
        pass


@dataclass(frozen=True)
class Replay:
    steps: list[dict[str, Any]]
    requests: list[dict[str, Any]]


def replay(run: str) -> Replay:
    """Our engine on the workload of a recorded run, logged as the oracle logs."""
    workload, num_gpu_blocks, settings = RUNS[run]
    rows = read_jsonl(ORACLE / "workloads" / f"{workload}.jsonl.gz")
    recorded = read_jsonl(ORACLE / "vllm-0.33.0" / f"{run}.steps.jsonl.gz")
    if "arrival_step" in rows[0]:  # arrivals given by step number: take the time at which that step started
        starts = {row["step"]: row["t"] for row in recorded}
        for row in rows:
            row["arrival_s"] = starts[row["arrival_step"]]
    return play(rows, num_gpu_blocks, settings)


def play(rows: list[dict[str, Any]], num_gpu_blocks: int, settings: dict[str, Any]) -> Replay:
    """Play oracle-style workload rows through one replica of the reference engine."""
    rows = sorted(rows, key=lambda row: row["arrival_s"])
    sequences = [oracle_tokens(row) for row in rows]
    requests = [_request(row, index) for index, row in enumerate(rows)]
    engine = Engine(max_model_len=2**30, **settings)
    ids = [row["id"] for row in rows]
    log = StepLog(ids)
    replica = Replica(0, make_scheduler(engine, num_gpu_blocks), OracleStepTime(), log)
    table = pl.DataFrame({"arrival_s": [row["arrival_s"] for row in rows]})
    keys = TokenKeys(sequences) if engine.enable_prefix_caching else None
    Simulation([replica], RoundRobin(), Clients(requests, table), keys, 2**30, None).run()
    scheduler = replica.scheduler
    assert isinstance(scheduler, Scheduler)
    scheduler.kv.pool.check_integrity()
    assert scheduler.kv.pool.num_free == num_gpu_blocks - 1
    return Replay(log.rows, [_summary(request, ids) for request in requests])


def _request(row: dict[str, Any], index: int) -> Request:
    prompt_tokens = row["input_length"] if "hash_ids" in row else len(row["prompt_token_ids"])
    return Request(index, row["arrival_s"], prompt_tokens, row["output_len"], row.get("priority", 0))


def oracle_tokens(row: dict[str, Any]) -> list[int]:
    """Prompt and, where it is given, output; unknown output tokens are unlike any other."""
    if "prompt_token_ids" in row:
        prompt = row["prompt_token_ids"]
    else:
        size = row["hash_block_size"]
        prompt = [t for h in row["hash_ids"] for t in range(h * size, (h + 1) * size)][: row["input_length"]]
    known = row.get("output_token_ids", [])[: row["output_len"]]
    return [*prompt, *known]


def _summary(request: Request, ids: list[str]) -> dict[str, Any]:
    return {
        "id": ids[request.row],
        "first_sched_s": request.first_scheduled_s,
        "cached_tokens": request.num_cached_tokens,
        "first_token_s": request.first_token_s,
        "finish_s": request.last_token_s,
        "preemptions": request.num_preemptions,
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]
