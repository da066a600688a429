"""The calls of the compiled engine, on as many processors as there are, and what they leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial, reduce
from itertools import repeat
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.native.library import address
from kavier.simulation.arena import Arena
from kavier.simulation.fleet import Fleet
from kavier.simulation.kernel import operations
from kavier.simulation.kernel import records as k
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.output import Give, Output, Turns, cells_a_piece, give_anew
from kavier.simulation.packing import Packed
from kavier.simulation.policy.policy import Policy
from kavier.simulation.record import STEP_SCHEMA, gaps_table
from kavier.simulation.replica import SLEEP_S
from kavier.simulation.router import Plan
from kavier.simulation.sampling import Sampling
from kavier.simulation.split import Part, can_split, find_cuts, join, join_cells

Array = NDArray[Any]
Progress = Callable[[int], None]

ARRIVALS_A_CALL = 100_000
"""Between calls of the kernel, progress is told and an interrupt is heard."""

END = 2**62

LONG = 1 << 20
"""Sample intervals of a timeline that is not to be whole in memory: up to 120 bytes each."""


class Gaps:
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

    def add(self, other: Gaps) -> None:
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


class Run:
    """The calls of the kernel, and what they leave."""

    def __init__(
        self, packed: Packed, requests: Array, sampling: Sampling, replicas: int, progress: Progress | None
    ) -> None:
        self.packed, self._sampling, self._replicas = packed, sampling, replicas
        self._piece = cells_a_piece(replicas)
        self._settings = address(packed.settings)
        self._requests = requests
        self._served = np.flatnonzero(requests["status"] == k.UNFINISHED)
        self._unplayed = requests[self._served[:1]].copy()  # but for its lengths and arrival, like any other
        self.replica = np.full(len(requests), -1, np.int32)
        self.gaps = Gaps()
        self.cells: list[list[Array]] = [[] for _ in range(replicas)]
        self.steps: list[list[Array]] = [[] for _ in range(replicas)]
        self.peak_used_blocks = 0
        self._num_asleep = 0
        self.end_s: float | None = None
        self._progress = progress
        self._ended, self._told = len(requests) - len(self._served), 0
        self._lock = threading.Lock()
        self._stopped = False
        self._turns = Turns(())

    # --- Routers that look at nothing: one replica after the other, on all processors

    def play_apart(self, plan: Plan, workers: int) -> None:
        """Each replica plays its part of the plan, on so many threads."""
        served = self._served
        targets = self._follow(plan)
        self.packed.set_arrivals(served[np.argsort(targets, kind="stable")])
        ends = np.cumsum(np.bincount(targets, minlength=self._replicas))
        spans = [(int(ends[i - 1]) if i else 0, int(ends[i])) for i in range(self._replicas)]
        LIBRARY.load()
        if workers >= 2 * self._replicas and can_split(self.packed.c) and self._is_soon_told(served):
            self._play_parts(spans, workers)
        else:
            self._play_shares(spans, min(workers, self._replicas))

    def _follow(self, plan: Plan) -> Array:
        """Note the replica of each request that is served; returns them."""
        served = self._served
        self.replica[served] = plan.targets[: len(served)] if plan.in_turn else plan.targets[served]
        return self.replica[served]

    def _is_soon_told(self, served: Array) -> bool:
        """Whether the timeline of a replica is short: that of parts played at once is kept until the end."""
        arrivals_s = self._requests["arrival_s"][served]
        intervals = np.ptp(arrivals_s) / self._sampling.interval_s if len(served) else 0.0
        return self._sampling.sink is None or bool(intervals < LONG)

    def _play_shares(self, spans: list[tuple[int, int]], workers: int) -> None:
        shares = [range(first, self._replicas, workers) for first in range(workers)]
        self._turns = Turns([index for index, (first, end) in enumerate(spans) if first == end])
        if workers == 1:
            self._play_share(shares[0], spans, self.gaps)
            return
        counted = [Gaps() for _ in shares]
        self._at_once(
            [partial(self._play_share, *task) for task in zip(shares, repeat(spans), counted)], workers
        )
        for gaps in counted:
            self.gaps.add(gaps)

    def _at_once(self, calls: Sequence[Callable[[], None]], workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for task in as_completed([pool.submit(call) for call in calls]):
                    task.result()
            except BaseException:
                self._stopped = True
                self._turns.stop()
                raise

    def _play_share(self, share: range, spans: list[tuple[int, int]], gaps: Gaps) -> None:
        arena = Arena(self.packed.c, 1)
        busy = [index for index in share if spans[index][0] < spans[index][1]]
        for turn, index in enumerate(busy):
            if turn:
                arena.reset()
            record = arena.records[0]
            gaps.watch(arena.records)
            record["next_arrival"], record["end_arrival"] = spans[index]
            output = self.output(record, partial(self._give_in_turn, index))
            self.play_until(arena, output, spans[index][1])
            self._close(index, record, output.rest(), output.steps())
            self._turns.end(index)
            gaps.note(arena.records)

    def _play_parts(self, spans: list[tuple[int, int]], workers: int) -> None:
        """Fewer replicas than threads: several threads a replica."""
        trial, pieces = Gaps(), workers // self._replicas
        cuts = [[first, *find_cuts(self, first, end, pieces, trial), end] for first, end in spans]
        parts = [[Part(self, first, cut[-1], Gaps()) for first in cut[:-1]] for cut in cuts]
        calls = [
            partial(part.play, until)
            for own, cut in zip(parts, cuts, strict=True)
            for part, until in zip(own, cut[1:], strict=True)
        ]
        self._at_once(calls, min(workers, len(calls)))
        for index, (own, cut) in enumerate(zip(parts, cuts, strict=True)):
            joined = join(self, own, cut)
            self._close_parts(index, joined)
            for part in joined:
                self.gaps.add(part.gaps)

    def _close_parts(self, index: int, parts: Sequence[Part]) -> None:
        """One after the other, as if they had never been played apart."""
        cells = reduce(join_cells, (part.cells() for part in parts))
        end_s, timeline = max(part.record["end_s"] for part in parts), parts[-1].record["timeline"]
        rest = give_anew(cells, self._piece, timeline, end_s, partial(self._give, index))
        for part in parts:
            self._close(index, part.record, rest if part is parts[-1] else rest[:0], part.output.steps())

    def play_until(self, arena: Arena, output: Output, end: int) -> None:
        """Play one replica up to an arrival, or to its end."""
        record = arena.records[0]
        until = int(record["next_arrival"])
        while True:
            until = min(until + ARRIVALS_A_CALL, end)
            while not self._call(operations.PLAY_REPLICA, address(arena.records), until):
                output.make_room()
            self._tell(int(record["num_ended"]))
            if until == end:
                break

    def arrivals_s(self, first: int, end: int) -> Array:
        """When these arrive, by their places in the order in which replicas get them."""
        times: Array = self._requests["arrival_s"][self.packed.arrivals[first:end]]
        return times

    def forget(self, first: int, end: int) -> None:
        """These requests were played in vain."""
        rows = self.packed.arrivals[first:end]
        for name in k.PLAYED:
            self._requests[name][rows] = self._unplayed[name]
        self.packed.energies_j[rows] = 0.0

    def _call(self, operation: int, record: int, until: int) -> int:
        if self._stopped:
            raise KeyboardInterrupt
        answer = LIBRARY.call(operation, record, self._settings, until)
        self.packed.check_timing()
        return answer

    # --- Routers that look at replicas, and closed loops: all in the order of time

    def play_fleet(self, router: str | Policy | Plan, draws: Array, max_concurrency: int | None) -> None:
        """Arrivals in their order; then every replica to its end."""
        if isinstance(router, Plan):
            self._follow(router)
        # In a closed loop those whom the API server refuses wait for a place too.
        self.packed.set_arrivals(self._served if max_concurrency is None else np.arange(len(self._requests)))
        arena = Arena(self.packed.c, self._replicas)
        self.gaps.watch(arena.records)
        outputs = [
            self.output(record, partial(self._give, index)) for index, record in enumerate(arena.records)
        ]
        self._play_arrivals(Fleet(self.packed, arena, self.replica, router, draws, max_concurrency), outputs)
        self.packed.c["holders"] = 0
        size = arena.records.itemsize
        for index, output in enumerate(outputs):
            place = address(arena.records) + index * size
            while not self._call(operations.PLAY_REPLICA, place, END):
                output.make_room()
            self._close(index, arena.records[index], output.rest(), output.steps())
        self.gaps.note(arena.records)

    def _play_arrivals(self, fleet: Fleet, outputs: list[Output]) -> None:
        until, end = 0, len(self.packed.arrivals)
        while until < end:
            until = min(until + ARRIVALS_A_CALL, end)
            while (answer := LIBRARY.call(operations.PLAY_FLEET, fleet.address, until)) != k.DONE:
                if answer == k.NEEDS_SETS:
                    fleet.more_sets()
                elif answer == k.BAD_CHOICE:
                    fleet.refuse_choice()
                else:
                    outputs[answer].make_room()
            self.packed.check_timing()
            self._tell(int(fleet.arena.records["num_ended"].sum()))

    # --- What replicas leave

    def output(self, record: Any, give: Give) -> Output:
        """What a replica fills."""
        sampling = self._sampling
        return Output(
            record, sampling.start_s, sampling.interval_s, self._piece, give, logging=sampling.steps
        )

    def _give(self, index: int, cells: Array, end: int) -> None:
        """A piece of a replica's timeline is final."""
        self._sampling.take(index, self.cells[index], cells, end)()

    def _give_in_turn(self, index: int, cells: Array, end: int) -> None:
        """Likewise, while other replicas play."""
        self._turns.hand_over(index, self._sampling.take(index, self.cells[index], cells, end))

    def _close(self, index: int, record: Any, rest: Array, steps: list[Array]) -> None:
        """A replica, or a part of its run, has come to its end."""
        self.cells[index].append(rest)
        self.steps[index] += steps
        with self._lock:
            self.peak_used_blocks = max(self.peak_used_blocks, int(record["peak_used_blocks"]))
            self._num_asleep += int(record["num_asleep"])
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

    @property
    def asleep_s(self) -> float:
        """Time of empty steps, of all replicas."""
        return self._num_asleep * SLEEP_S

    def steps_table(self) -> pl.DataFrame:
        """All steps, in order of (start, replica)."""
        pieces = [(i, piece) for i, pieces in enumerate(self.steps) for piece in pieces]
        joined = np.concatenate([np.zeros(0, k.STEP), *(piece for _, piece in pieces)])
        replica = np.repeat([i for i, _ in pieces], [len(piece) for _, piece in pieces]).astype(np.int32)
        columns = {name: np.ascontiguousarray(joined[name]) for name in k.STEP.names or ()}
        frame = pl.DataFrame({"replica": replica, **columns}).select(*STEP_SCHEMA, "energy_j")
        return frame.sort("start_s", "replica", maintain_order=True)
