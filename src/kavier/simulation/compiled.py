"""The compiled engine as one call: packs tables into records, plays them, unpacks what they hold then."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.ecosystem.vllm_versions import rules_of
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.simulation.arena import Arena, Output
from kavier.simulation.kernel import operations
from kavier.simulation.kernel import records as k
from kavier.simulation.kernel.engine import LIBRARY, address
from kavier.simulation.packing import Packed, requests_table
from kavier.simulation.record import STEP_SCHEMA, gaps_table
from kavier.simulation.router import PLANS, ROUTERS, Plan, draw_pairs, router_rng
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import Compilable
from kavier.timing.step import StepTimeModel
from kavier.workload.blocks import BlockKeys

Array = NDArray[Any]
Progress = Callable[[int], None]

ARRIVALS_A_CALL = 100_000
"""Between calls of the kernel, progress is told and an interrupt is heard."""

END = 2**62

KERNEL_ROUTERS = {
    "least-outstanding": k.LEAST_OUTSTANDING,
    "power-of-two-choices": k.POWER_OF_TWO,
    "least-kv-used": k.LEAST_KV_USED,
    "longest-prefix-match": k.LONGEST_PREFIX,
    "cache-aware": k.CACHE_AWARE,
    "llm-d": k.LLM_D,
}
SEE_CONTENTS = ("longest-prefix-match", "cache-aware", "llm-d")
"""Routers that ask which replica holds what."""

assert set(KERNEL_ROUTERS) == set(ROUTERS)


def covers(
    workload: pl.DataFrame,
    engine: Engine,
    timing: StepTimeModel,
    *,
    num_gpu_blocks: int,
    max_concurrency: int | None = None,
) -> str | None:
    """Why the compiled engine cannot play this, or None if it can."""
    thinking = {"parent", "think_s"} <= set(workload.columns) and bool(
        (workload["parent"].is_not_null() & workload["think_s"].is_not_null()).any()
    )
    budget, longest = _number(engine.max_num_batched_tokens), _number(engine.max_model_len)
    totals = {name: workload[name].to_numpy() for name in ("prompt_tokens", "output_tokens")}
    blocks = sum(int(tokens.sum()) for tokens in totals.values()) // engine.block_size + 2 * len(workload)
    rules = rules_of(engine)
    reasons = {
        "a request has more tokens than 32 bits count": max(int(t.max()) for t in totals.values())
        > k.MAX_TOKENS,
        "requests wait for others to end (think_s)": thinking,
        "max_concurrency": max_concurrency is not None,
        f"scheduling_policy priority by the rules of vLLM {engine.vllm_version}": (
            engine.scheduling_policy != "fcfs" and not rules.self_preemption_goes_on
        ),
        "kv_cache is off": not engine.kv_cache,
        "without chunked prefill a prompt can be longer than max_num_batched_tokens": (
            not engine.enable_chunked_prefill and budget < longest
        ),
        "more blocks are cached than 31 bits number": engine.enable_prefix_caching and blocks > k.MAX_KEYS,
        "more KV blocks than 29 bits number": num_gpu_blocks > k.MAX_BLOCKS,
        "the step-time model is Python only": not isinstance(timing, Compilable),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True, slots=True)
class CompiledResult:
    """What `SimulationResult` holds, and the timeline's sums instead of steps.

    Attributes:
        requests: One row a request, see `record.requests_table`.
        steps: One row a step, see `record.STEP_SCHEMA`, and energy_j; None unless asked for.
        token_gaps: Inter-token gaps, see `record.gaps_table`.
        truncated: Requests whose answer was cut at max_model_len.
        kv_blocks: Usable KV blocks a replica.
        cells: Of each replica, pieces of its timeline: `kernel.records.CELL`.
        end_s: End of the last step; None if there was none.
        peak_used_blocks: Most KV blocks that one replica used.
    """

    requests: pl.DataFrame
    steps: pl.DataFrame | None
    token_gaps: pl.DataFrame
    truncated: int
    kv_blocks: int
    cells: list[list[Array]]
    end_s: float | None
    peak_used_blocks: int


def simulate_compiled(
    workload: pl.DataFrame,
    engine: Engine,
    timing: Compilable,
    *,
    num_gpu_blocks: int,
    replicas: int = 1,
    router: str = "round-robin",
    seed: int = 0,
    sampling: Sampling | None = None,
    keys: tuple[Array, Array] | None = None,
    as_recorded: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CompiledResult:
    """Play a workload through `replicas` engines: what `simulate_reference` gives, to the last bit.

    Args:
        workload: Canonical request table, sorted by arrival.
        engine: Settings with max_model_len, max_num_seqs and max_num_batched_tokens resolved to numbers.
        timing: Prices each step.
        num_gpu_blocks: KV blocks a replica, null block included.
        replicas: Identical engines.
        router: Name in `router.PLANS` or `router.ROUTERS`.
        seed: Of the router's random choices.
        sampling: What to add up on the way.
        keys: Block keys of all requests and where each one's begin; None = from the workload's hashes. Numbers
            from 0 on, at best those of new blocks in succession.
        as_recorded: See `replica.AsyncReplica`.
        workers: Threads for replicas that do not depend on each other; None = one a processor. Results do not
            depend on it.
        progress: Called with the number of ended requests, now and then.
    """
    sampling = sampling or Sampling()
    packed = Packed(engine, num_gpu_blocks)
    packed.set_timing(timing)
    packed.set_power(sampling.power)
    packed.c["as_recorded"], packed.c["logging"] = as_recorded, sampling.steps
    requests, truncated = packed.set_requests(workload, _number(engine.max_model_len))
    if packed.c["by_priority"]:
        packed.set_ranks(requests, _priorities(workload))
    if engine.enable_prefix_caching:
        flat = keys if keys is not None else BlockKeys(workload, engine.block_size).flat
        packed.set_keys(*flat, contents=int(flat[0].max()) + 1 if len(flat[0]) else 0)
    run = _Run(packed, requests, sampling, replicas, progress)
    if router in PLANS:
        run.play_apart(PLANS[router](workload, replicas, router_rng(seed)), workers or os.cpu_count() or 1)
    else:
        run.play_fleet(router, draw_pairs(len(workload), replicas, router_rng(seed)))
    return CompiledResult(
        requests=requests_table(packed, workload, run.replica),
        steps=run.steps_table() if sampling.steps else None,
        token_gaps=run.gaps.table(),
        truncated=truncated,
        kv_blocks=num_gpu_blocks - 1,
        cells=run.cells,
        end_s=run.end_s,
        peak_used_blocks=run.peak_used_blocks,
    )


def _priorities(workload: pl.DataFrame) -> Array:
    if "priority" not in workload.columns:
        return np.zeros(len(workload), np.int64)
    return workload["priority"].fill_null(0).to_numpy()


class _Gaps:
    """Gaps between tokens, counted by replicas that take turns."""

    def __init__(self) -> None:
        self.bins = np.zeros(k.GAP_BINS, k.GAP)
        self.least, self.most = k.GAP_BINS, 0

    def watch(self, records: Array) -> None:
        """Let these replicas count here."""
        records["gaps"] = address(self.bins)

    def note(self, records: Array) -> None:
        """Between which bins they have counted."""
        self.least = min(self.least, int(records["least_gap"].min()))
        self.most = max(self.most, int(records["most_gap"].max()))

    def add(self, other: _Gaps) -> None:
        """Take over what another has counted."""
        found = slice(other.least, other.most + 1)
        mine, theirs = self.bins[found], other.bins[found]
        fresh = mine["count"] == 0
        least = np.where(theirs["count"] == 0, mine["least_s"], theirs["least_s"])
        mine["least_s"] = np.where(fresh, least, np.minimum(mine["least_s"], least))
        mine["count"] += theirs["count"]
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def table(self) -> pl.DataFrame:
        """Distinct gaps, ascending."""
        found = self.bins[self.least : self.most + 1]
        found = found[found["count"] > 0]
        return gaps_table(found["least_s"], found["count"])


class _Run:
    """The calls of the kernel, and what they leave."""

    def __init__(
        self, packed: Packed, requests: Array, sampling: Sampling, replicas: int, progress: Progress | None
    ) -> None:
        self._packed, self._sampling, self._replicas = packed, sampling, replicas
        self._settings = address(packed.settings)
        self._served = np.flatnonzero(requests["status"] == k.UNFINISHED)
        self.replica = np.full(len(requests), -1, np.int32)
        self.gaps = _Gaps()
        self.cells: list[list[Array]] = [[] for _ in range(replicas)]
        self.steps: list[list[Array]] = [[] for _ in range(replicas)]
        self.peak_used_blocks = 0
        self.end_s: float | None = None
        self._progress = progress
        self._ended, self._told = len(requests) - len(self._served), 0
        self._lock = threading.Lock()
        self._stopped = False

    # --- Routers that look at nothing: one replica after the other, on all processors

    def play_apart(self, plan: Plan, workers: int) -> None:
        served = self._served
        targets = plan.targets[: len(served)] if plan.in_turn else plan.targets[served]
        self.replica[served] = targets
        self._packed.set_arrivals(served[np.argsort(targets, kind="stable")])
        ends = np.cumsum(np.bincount(targets, minlength=self._replicas))
        spans = [(int(ends[i - 1]) if i else 0, int(ends[i])) for i in range(self._replicas)]
        workers = min(workers, self._replicas)
        LIBRARY.load()
        shares = [range(first, self._replicas, workers) for first in range(workers)]
        if workers == 1:
            self._play_share(shares[0], spans, self.gaps)
            return
        counted = [_Gaps() for _ in shares]
        with ThreadPoolExecutor(workers) as pool:
            tasks = [
                pool.submit(self._play_share, share, spans, gaps)
                for share, gaps in zip(shares, counted, strict=True)
            ]
            try:
                for task in tasks:
                    task.result()
            finally:
                self._stopped = True
        for gaps in counted:
            self.gaps.add(gaps)

    def _play_share(self, share: range, spans: list[tuple[int, int]], gaps: _Gaps) -> None:
        arena = Arena(self._packed.c, 1)
        for turn, index in enumerate(share):
            if turn:
                arena.reset()
            record = arena.records[0]
            gaps.watch(arena.records)
            record["next_arrival"], record["end_arrival"] = spans[index]
            output = self._output(record, index)
            until = spans[index][0]
            while True:
                until = min(until + ARRIVALS_A_CALL, spans[index][1])
                while not self._call(operations.PLAY_REPLICA, address(arena.records), until):
                    output.make_room()
                self._tell(int(record["num_ended"]))
                if until == spans[index][1]:
                    break
            self._close(record, index, output)
            gaps.note(arena.records)

    def _call(self, operation: int, record: int, until: int) -> int:
        if self._stopped:
            raise KeyboardInterrupt
        return LIBRARY.call(operation, record, self._settings, until)

    # --- Routers that look at replicas: all in the order of time

    def play_fleet(self, router: str, draws: Array) -> None:
        """Arrivals in their order; then every replica to its end."""
        self._packed.set_arrivals(self._served)
        arena = Arena(self._packed.c, self._replicas)
        self.gaps.watch(arena.records)
        outputs = [self._output(arena.records[i], i) for i in range(self._replicas)]
        self._play_arrivals(_Fleet(self._packed, arena, self.replica, router, draws), outputs)
        self._packed.c["holders"] = 0
        size = arena.records.itemsize
        for index, output in enumerate(outputs):
            place = address(arena.records) + index * size
            while not self._call(operations.PLAY_REPLICA, place, END):
                output.make_room()
            self._close(arena.records[index], index, output)
        self.gaps.note(arena.records)

    def _play_arrivals(self, fleet: _Fleet, outputs: list[Output]) -> None:
        until = 0
        while until < len(self._served):
            until = min(until + ARRIVALS_A_CALL, len(self._served))
            while (answer := LIBRARY.call(operations.PLAY_FLEET, fleet.address, until)) != k.DONE:
                if answer == k.NEEDS_SETS:
                    fleet.more_sets()
                elif answer == k.BAD_CHOICE:
                    fleet.refuse_choice()
                else:
                    outputs[answer].make_room()
            self._tell(int(fleet.arena.records["num_ended"].sum()))

    # --- What replicas leave

    def _output(self, record: Any, index: int) -> Output:
        sampling = self._sampling
        return Output(record, index, sampling.start_s, sampling.interval_s, logging=sampling.steps)

    def _close(self, record: Any, index: int, output: Output) -> None:
        self.cells[index], self.steps[index] = output.cells(), output.steps()
        with self._lock:
            self.peak_used_blocks = max(self.peak_used_blocks, int(record["peak_used_blocks"]))
            if record["timeline"]["num_cells"]:
                self.end_s = max(self.end_s or 0.0, float(record["end_s"]))
            self._ended += int(record["num_ended"])
        self._tell(0)

    def _tell(self, running: int) -> None:
        """Progress hears the number of ended requests when it has risen."""
        with self._lock:
            if self._progress is not None and self._ended + running > self._told:
                self._told = self._ended + running
                self._progress(self._told)

    def steps_table(self) -> pl.DataFrame:
        """All steps, in order of (start, replica)."""
        pieces = [(i, piece) for i, pieces in enumerate(self.steps) for piece in pieces]
        joined = np.concatenate([np.zeros(0, k.STEP), *(piece for _, piece in pieces)])
        replica = np.repeat([i for i, _ in pieces], [len(piece) for _, piece in pieces]).astype(np.int32)
        columns = {name: np.ascontiguousarray(joined[name]) for name in k.STEP.names or ()}
        frame = pl.DataFrame({"replica": replica, **columns}).select(*STEP_SCHEMA, "energy_j")
        return frame.sort("start_s", "replica", maintain_order=True)


class _Fleet:
    """The record of a fleet, and its arrays."""

    def __init__(self, packed: Packed, arena: Arena, chosen: Array, router: str, draws: Array) -> None:
        self.arena, self._packed = arena, packed
        replicas = len(arena.records)
        leaves = 1 << (replicas - 1).bit_length()
        views = np.zeros(replicas, k.VIEW)
        views["num_blocks"] = packed.c["num_usable"]
        loads = np.full(2 * leaves, END, np.int64)
        loads[leaves : leaves + replicas] = 0
        for i in range(leaves - 1, 0, -1):
            loads[i] = min(loads[2 * i], loads[2 * i + 1])
        self._kept = {
            "settings": packed.settings, "replicas": arena.records, "agenda": np.full(2 * leaves, np.inf),
            "loads": loads, "views": views, "chosen": chosen, "draws": np.ascontiguousarray(draws),
        }  # fmt: skip
        self._record = np.zeros(1, k.FLEET)
        for name, array in self._kept.items():
            self._record[name] = address(array)
        self._record["num_replicas"], self._record["num_leaves"] = replicas, leaves
        self._record["router"] = KERNEL_ROUTERS[router]
        self.address = address(self._record)
        contents = int(packed.c["num_contents"])
        if packed.c["caching"] and contents and router in SEE_CONTENTS:
            packed.point("holders", np.zeros(contents, k.HOLDER))
            packed.c["set_words"] = -(-replicas // 64)
            self._sets = np.zeros(0, np.int64)
            self.more_sets()

    def more_sets(self) -> None:
        """Twice as many sets of holders."""
        words, number = int(self._packed.c["set_words"]), 2 * int(self._packed.c["num_sets"]) + 4 * k.SPARE_SETS
        sets = np.zeros(words * number, np.int64)
        sets[: len(self._sets)] = self._sets
        self._sets = self._packed.point("sets", sets)
        self._packed.c["num_sets"] = number

    def refuse_choice(self) -> None:
        """A router in Python named no replica."""
        raise InputError(
            f"the router answered {int(self._record['bad_choice'][0])}",
            expected=f"a replica, 0 to {int(self._record['num_replicas'][0]) - 1}",
        )


def _number(value: int | str | None) -> int:
    assert isinstance(value, int), "engine settings must be resolved before simulating"
    return value
