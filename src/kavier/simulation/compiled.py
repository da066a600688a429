"""The compiled engine as one call: packs tables into arrays, runs `kernel.py`, unpacks what it leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.scenario import Engine
from kavier.simulation import kernel as k
from kavier.simulation.record import STEP_SCHEMA, count_gaps
from kavier.simulation.request import Status
from kavier.simulation.sampling import Sampling, count_intervals
from kavier.timing.compiled import AffineTiming, Compilable
from kavier.timing.step import StepTimeModel
from kavier.workload.blocks import BlockKeys

Array = NDArray[Any]

ROUTERS = ("round-robin", "least-outstanding")
ARRIVALS_A_CALL = 100_000
"""Between calls of the kernel, progress is told and an interrupt is heard."""
GAPS_A_CALL = 1 << 16
STEPS_A_CALL = 1 << 14
FIRST_CELLS = 64
END = 2**62
MOST_TOKENS = 2**30
"""The kernel's request records count tokens in 32 bits, prompt and answer together."""

_LOG = logging.getLogger(__name__)


def covers(
    workload: pl.DataFrame,
    engine: Engine,
    timing: StepTimeModel,
    *,
    router: str,
    max_concurrency: int | None = None,
) -> str | None:
    """Why the compiled engine cannot play this, or None if it can."""
    thinking = {"parent", "think_s"} <= set(workload.columns) and bool(
        (workload["parent"].is_not_null() & workload["think_s"].is_not_null()).any()
    )
    budget, longest = _resolved(engine.max_num_batched_tokens), _resolved(engine.max_model_len)
    longest_request = max(int(workload[name].to_numpy().max()) for name in ("prompt_tokens", "output_tokens"))
    reasons = {
        "a request has more tokens than 32 bits count": longest_request > MOST_TOKENS,
        "requests wait for others to end (think_s)": thinking,
        "max_concurrency": max_concurrency is not None,
        "scheduling_policy is priority": engine.scheduling_policy != "fcfs",
        "kv_cache is off": not engine.kv_cache,
        "without chunked prefill a prompt can be longer than max_num_batched_tokens": (
            not engine.enable_chunked_prefill and budget < longest
        ),
        f"block_size is above {k.MAX_BLOCK_SIZE}": engine.block_size > k.MAX_BLOCK_SIZE,
        f"max_num_seqs is above {1 << k.SLOT_BITS}": _resolved(engine.max_num_seqs) > 1 << k.SLOT_BITS,
        "the step-time model is Python only": not isinstance(timing, Compilable),
        f"router {router} is Python only": router not in ROUTERS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True, slots=True)
class CompiledResult:
    """What `SimulationResult` holds, and the timeline's sums instead of steps.

    Attributes:
        requests: One row a request, see `record.requests_table`.
        steps: One row a step, see `record.STEP_SCHEMA`, and energy_j; None unless asked for.
        token_gaps: Inter-token gaps and how often each occurred.
        truncated: Requests whose answer was cut at max_model_len.
        kv_blocks: Usable KV blocks a replica.
        cells: `kernel.CELL` sums, [replica, interval].
        end_s: End of the last step; None if there was none.
        peak_used_blocks: Most KV blocks that one replica used.
    """

    requests: pl.DataFrame
    steps: pl.DataFrame | None
    token_gaps: pl.DataFrame
    truncated: int
    kv_blocks: int
    cells: Array
    end_s: float | None
    peak_used_blocks: int


def is_compiled(entry: str) -> bool:
    """Whether an earlier run left this entry point of the kernel in Numba's cache on this machine."""
    cache: str = cast(Any, k.run_replica).stats.cache_path
    return any(Path(cache).glob(f"kernel.{entry}*.nbc"))


def simulate_compiled(
    workload: pl.DataFrame,
    engine: Engine,
    timing: Compilable,
    *,
    num_gpu_blocks: int,
    replicas: int = 1,
    router: str = "round-robin",
    sampling: Sampling | None = None,
    keys: tuple[Array, Array] | None = None,
    progress: Callable[[int], None] | None = None,
) -> CompiledResult:
    """Play a workload through `replicas` engines: what `simulate_reference` gives, to the last bit.

    Args:
        workload: Canonical request table, sorted by arrival.
        engine: Settings with max_model_len, max_num_seqs and max_num_batched_tokens resolved to numbers.
        timing: Prices each step.
        num_gpu_blocks: KV blocks a replica, null block included.
        replicas: Identical engines.
        router: Name in `ROUTERS`.
        sampling: What to add up on the way.
        keys: Block keys of all requests and where each one's begin; None = from the workload's hashes.
        progress: Called with the number of ended requests, now and then.
    """
    routed = router == "least-outstanding" and replicas > 1
    if not is_compiled("run_fleet" if routed else "run_replica"):
        _LOG.info("compiling the engine, once on this machine: about 20 s")
    sampling = sampling or Sampling()
    requests, truncated = _pack_requests(workload, _resolved(engine.max_model_len))
    run = _Run(engine, timing, num_gpu_blocks, sampling, requests)
    if keys is None and engine.enable_prefix_caching:
        keys = BlockKeys(workload, engine.block_size).flat
    if keys is not None:
        run.set_keys(*keys)
    run.progress = progress
    play = run.play_fleet if routed else run.play_apart
    play(replicas)
    return CompiledResult(
        requests=_requests_table(requests, run.replica),
        steps=run.steps_table() if sampling.steps else None,
        token_gaps=count_gaps(*run.gaps.columns("gap_s", "count")),
        truncated=truncated,
        kv_blocks=num_gpu_blocks - 1,
        cells=_stack(run.cells),
        end_s=run.end_s,
        peak_used_blocks=run.peak_used_blocks,
    )


class _Pieces:
    """Arrays drained from a full buffer, one after the other."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._pieces: list[Array] = []

    def add(self, piece: Array) -> None:
        self._pieces.append(piece.copy())

    def columns(self, *names: str) -> list[Array]:
        joined = np.concatenate([np.zeros(0, self._dtype), *self._pieces])
        return [joined[name] for name in names]


@dataclass(slots=True)
class _Memory:
    """The arrays of one replica, kept alive while its record points at them."""

    arrays: dict[str, Array] = field(default_factory=dict)

    def give(self, record: Any, name: str, size: int, dtype: Any) -> Array:
        array = np.zeros(size, dtype)
        self.arrays[name] = array
        record[name] = array.ctypes.data
        return array


class _Run:
    """Arrays of a simulation, and the calls of the kernel over them."""

    def __init__(
        self, engine: Engine, timing: Compilable, num_gpu_blocks: int, sampling: Sampling, requests: Array
    ) -> None:
        self._requests = requests
        self.settings = _pack_engine(engine, num_gpu_blocks, sampling)
        self._kept = [requests, *_pack_timing(self.settings, timing)]
        self._c = self.settings[0]
        self._c["requests"], self._c["num_requests"] = requests.ctypes.data, len(requests)
        self.replica = np.full(len(requests), -1, np.int32)
        self.gaps, self.log = _Pieces(k.GAP), _Pieces(k.STEP)
        self.log_replica: list[tuple[int, int]] = []
        self.cells: list[Array] = []
        self.peak_used_blocks = 0
        self.end_s: float | None = None
        self.progress: Callable[[int], None] | None = None
        self._told = 0
        self._ended = int((requests["status"] != k.UNFINISHED).sum())

    def set_keys(self, keys: Array, starts: Array) -> None:
        """Give requests their block keys: keys[starts[i]:starts[i + 1]] are those of request i."""
        held = np.zeros(len(keys), np.int32)
        self._kept += [keys, held]
        self._requests["first_key"], self._requests["num_keys"] = starts[:-1], np.diff(starts)
        self._c["keys"], self._c["held"], self._c["num_keys"] = keys.ctypes.data, held.ctypes.data, len(keys)

    def play_apart(self, replicas: int) -> None:
        """Routers that look at nothing: one replica after the other."""
        served = np.flatnonzero(self._requests["status"] == k.UNFINISHED)
        target = (np.arange(len(served)) % replicas).astype(np.int32)
        self.replica[served] = target
        arrivals = served[np.argsort(target, kind="stable")]
        ends = np.cumsum(np.bincount(target, minlength=replicas))
        self._set_arrivals(arrivals)
        for index in range(replicas):
            records, memory = self._replica(ends[index - 1] if index else 0, ends[index])
            self._play(records, memory, index)
            self._drain(records[0], memory, index)
            self._close(records[0], memory)

    def play_fleet(self, replicas: int) -> None:
        """Routers that look at replicas: all in the order of time."""
        served = np.flatnonzero(self._requests["status"] == k.UNFINISHED)
        self._set_arrivals(served)
        records = np.zeros(replicas, k.REPLICA)
        memories = [self._prepare(records[i], small=True) for i in range(replicas)]
        leaves = 1 << (replicas - 1).bit_length()
        tree, outstanding = np.full(2 * leaves, np.inf), np.zeros(replicas, np.int32)
        position = np.zeros(1, np.int64)
        done = False
        while not done:
            until = min(position[0] + ARRIVALS_A_CALL, len(served))
            full = k.run_fleet(records, self.settings, tree, outstanding, self.replica, position, until)
            if full >= 0:
                self._make_room(records[full], memories[full], full)
            else:
                done = until == len(served)
            self._tell(int(records["num_ended"].sum()))
        for index in range(replicas):
            while not k.run_replica(records, self.settings, index, END):
                self._make_room(records[index], memories[index], index)
            self._drain(records[index], memories[index], index)
            self._close(records[index], memories[index])

    def steps_table(self) -> pl.DataFrame:
        """All steps, in order of (start, replica)."""
        names = k.STEP.names or ()
        columns: dict[str, Array] = dict(zip(names, self.log.columns(*names), strict=True))
        replica = np.concatenate(
            [np.full(n, i, np.int32) for i, n in self.log_replica] or [np.zeros(0, np.int32)]
        )
        frame = pl.DataFrame({"replica": replica, **columns}).select(*STEP_SCHEMA, "energy_j")
        return frame.sort("start_s", "replica", maintain_order=True)

    def _set_arrivals(self, arrivals: Array) -> None:
        self._kept.append(arrivals)
        self._c["arrivals"], self._c["num_arrivals"] = arrivals.ctypes.data, len(arrivals)

    def _replica(self, first: int, end: int) -> tuple[Array, _Memory]:
        records = np.zeros(1, k.REPLICA)
        memory = self._prepare(records[0], small=False)
        records["next_arrival"], records["end_arrival"] = first, end
        return records, memory

    def _prepare(self, record: Any, *, small: bool) -> _Memory:
        """An idle replica with empty memory."""
        memory, c = _Memory(), self._c
        seats, usable = int(c["max_num_seqs"]), int(c["num_usable"])
        record["end_s"], record["num_free"], record["num_plain"] = np.inf, usable, usable
        for name in ("first_waiting", "last_waiting", "first_running", "last_running"):
            record[name] = -1
        slots = memory.give(record, "slots", seats, k.SLOT)
        slots["next"] = np.arange(1, seats + 1)
        for name in ("finishing", "prefilling", "sampling", "scratch"):
            memory.give(record, name, seats, np.int64)
        bits = max(3, (2 * usable).bit_length())
        if c["caching"]:
            memory.give(record, "nodes", usable, k.NODE)
            memory.give(record, "map", 1 << bits, k.ENTRY)
            memory.give(record, "queue", 1 << bits, np.int64)
        record["num_nodes"], record["map_bits"], record["queue_mask"] = usable, bits, (1 << bits) - 1
        record["gap_room"] = 2 * seats + 2 if small else GAPS_A_CALL + 2 * seats
        memory.give(record, "gaps", int(record["gap_room"]), k.GAP)
        # Without a log its room only has to be above its length.
        record["log_room"] = (64 if small else STEPS_A_CALL) if c["logging"] else 1
        memory.give(record, "log", int(record["log_room"]), k.STEP)
        record["num_cells"] = FIRST_CELLS
        memory.give(record, "cells", FIRST_CELLS, k.CELL)
        return memory

    def _play(self, records: Array, memory: _Memory, index: int) -> None:
        until = int(records[0]["next_arrival"])
        while until < records[0]["end_arrival"]:
            until = min(until + ARRIVALS_A_CALL, int(records[0]["end_arrival"]))
            while not k.run_replica(records, self.settings, 0, until):
                self._make_room(records[0], memory, index)
            self._tell(int(records[0]["num_ended"]))

    def _make_room(self, record: Any, memory: _Memory, index: int) -> None:
        if record["mode"] == k.STALLED:
            self._extend_cells(record, memory)
        else:
            self._drain(record, memory, index)

    def _extend_cells(self, record: Any, memory: _Memory) -> None:
        """Up to the end of the step that found no room, and twice as many at least."""
        grid, step, old = self._c["grid"], record["step"], memory.arrays["cells"]
        end_s = step["start_s"] + step["duration_s"]
        wanted = count_intervals(float(end_s - grid["start_s"]), float(grid["interval_s"]), 1) + 4
        size = max(2 * len(old), wanted)
        memory.give(record, "cells", size, k.CELL)[: len(old)] = old
        record["num_cells"] = size

    def _drain(self, record: Any, memory: _Memory, index: int) -> None:
        self.gaps.add(memory.arrays["gaps"][: record["num_gaps"]])
        if self._c["logging"]:
            self.log.add(memory.arrays["log"][: record["num_log"]])
            self.log_replica.append((index, int(record["num_log"])))
        record["num_gaps"] = record["num_log"] = 0

    def _close(self, record: Any, memory: _Memory) -> None:
        used = int(record["cursor"]["bin"]) + 1
        cells = memory.arrays["cells"]
        while used < len(cells) and cells["busy_s"][used] > 0:
            used += 1
        self.cells.append(cells[:used])
        self.peak_used_blocks = max(self.peak_used_blocks, int(record["peak_used_blocks"]))
        if used > 1 or cells["steps"][0]:
            self.end_s = max(self.end_s or 0.0, float(record["last_end_s"]))
        self._ended += int(record["num_ended"])
        self._tell(0)

    def _tell(self, running: int) -> None:
        """Progress hears the number of ended requests when it has risen."""
        if self.progress is not None and self._ended + running > self._told:
            self._told = self._ended + running
            self.progress(self._told)


def _pack_requests(workload: pl.DataFrame, max_model_len: int) -> tuple[Array, int]:
    """Engine requests of a table; an answer that would pass max_model_len is cut there, and counted."""
    prompt, output = (workload[name].to_numpy() for name in ("prompt_tokens", "output_tokens"))
    room = max_model_len - prompt
    requests = np.zeros(len(workload), k.REQUEST)
    requests["arrival_s"] = workload["arrival_s"].to_numpy()
    requests["prompt_tokens"] = prompt
    requests["output_length"] = np.minimum(output, np.maximum(room, 0))
    requests["cached_tokens"] = -1
    for name in ("first_scheduled_s", "first_token_s", "last_token_s"):
        requests[name] = np.nan
    requests["status"] = np.where(room <= 0, k.REJECTED_CONTEXT, k.UNFINISHED)
    return requests, int(((room > 0) & (room < output)).sum())


def _pack_engine(engine: Engine, num_gpu_blocks: int, sampling: Sampling) -> Array:
    settings = np.zeros(1, k.SETTINGS)
    c = settings[0]
    c["max_num_batched_tokens"] = _resolved(engine.max_num_batched_tokens)
    c["max_num_seqs"] = _resolved(engine.max_num_seqs)
    c["block_size"] = engine.block_size
    c["num_usable"] = num_gpu_blocks - 1
    c["watermark_blocks"] = int(engine.watermark * num_gpu_blocks)
    c["long_prefill_token_threshold"] = engine.long_prefill_token_threshold
    c["chunked_prefill"] = engine.enable_chunked_prefill
    c["reserve_full_isl"] = engine.scheduler_reserve_full_isl
    c["caching"] = engine.enable_prefix_caching
    c["logging"] = sampling.steps
    c["grid"]["start_s"], c["grid"]["interval_s"] = sampling.start_s, sampling.interval_s
    if sampling.power is None:
        c["power"]["peak_flops_per_s"] = c["power"]["peak_bytes_per_s"] = 1.0
    else:
        c["power"] = sampling.power[0]
    return settings


def _pack_timing(settings: Array, timing: Compilable) -> list[Array]:
    """Fill in the step-time model; returns the arrays that the settings now point at."""
    c, data = settings[0], timing.compiled()
    if isinstance(data, AffineTiming):
        c["timing"] = k.AFFINE
        c["affine"] = (
            data.base_s, data.prefill_s, data.decode_s, data.context_s, data.pair_flops, data.context_bytes,
        )  # fmt: skip
        return []
    c["timing"] = k.DATASHEET
    c["body_flops"], c["head_flops"] = data.body_flops, data.head_flops
    for name in ("body", "head", "attention"):
        array = getattr(data, name)
        c[name], c[f"num_{name}"] = array.ctypes.data, len(array)
    return [data.body, data.head, data.attention]


def _requests_table(requests: Array, replica: Array) -> pl.DataFrame:
    """As `record.requests_table`."""
    finished = requests["status"] == k.FINISHED
    statuses = pl.Series(
        [Status.UNFINISHED, Status.FINISHED, Status.REJECTED_CONTEXT, Status.REJECTED_KV], dtype=pl.String
    )
    times = {
        "first_scheduled_s": requests["first_scheduled_s"],
        "first_token_s": requests["first_token_s"],
        "finish_s": np.where(finished, requests["last_token_s"], np.nan),
    }
    counts = {
        name: requests[name].astype(np.int64) for name in ("prompt_tokens", "output_tokens", "cached_tokens")
    }
    return pl.DataFrame(
        {
            "request": np.arange(len(requests)),
            "arrival_s": requests["arrival_s"],
            "replica": replica,
            **times,
            **counts,
            "preemptions": requests["preemptions"].astype(np.int64),
            "status": statuses.gather(requests["status"]),
        }
    ).with_columns(
        pl.when(pl.col("replica") >= 0).then(pl.col("replica")),
        pl.when(pl.col("cached_tokens") >= 0).then(pl.col("cached_tokens")),
        *(pl.col(name).fill_nan(None) for name in times),
    )


def _stack(cells: list[Array]) -> Array:
    """Replicas' sums as one table, as long as the longest."""
    table = np.zeros((len(cells), max(len(row) for row in cells)), k.CELL)
    for i, row in enumerate(cells):
        table[i, : len(row)] = row
    return table


def _resolved(value: int | str | None) -> int:
    assert isinstance(value, int), "engine settings must be resolved before simulating"
    return value
