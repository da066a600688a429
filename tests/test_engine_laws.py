"""Laws of the reference engine: on random small scenarios, every step is what a naive second engine decides,
and whole runs conserve requests and tokens, respect causality and repeat exactly."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kavier.ecosystem.vllm_versions import RULES, is_async
from kavier.scenario import Engine
from kavier.simulation.block_pool import BlockPool
from kavier.simulation.clients import Clients
from kavier.simulation.kv_cache_manager import KVCacheManager
from kavier.simulation.record import TableRecorder
from kavier.simulation.reference import (
    Simulation,
    SimulationResult,
    make_replica,
    make_requests,
    simulate_reference,
)
from kavier.simulation.request import Request, Status
from kavier.simulation.router import PLANS, ROUTERS, make_router
from kavier.simulation.scheduler import Scheduled, Scheduler, SchedulerConfig, Step, StepScheduler
from kavier.timing.compiled import AffineTiming
from kavier.timing.step import StepCost, StepWork, UnitCosts
from kavier.validation.recording import TokenKeys
from kavier.workload.blocks import BlockKeys
from kavier.workload.table import SCHEMA
from tests.naive_scheduler import Decisions, Job, NaiveScheduler, Settings

# --- Every step equals that of the naive scheduler ------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """A request of the lockstep test: it arrives before step `step`."""

    step: int
    prompt: list[int]
    answer: list[int]
    priority: int


@st.composite
def arrivals(draw, max_size=9):
    """Few distinct tokens, so that prompts share prefixes and extend one another's answers."""
    run = st.tuples(st.integers(0, 2), st.integers(0, 9)).map(lambda pair: [pair[0]] * pair[1])
    prompt = st.tuples(st.integers(0, 1), run, run).map(lambda parts: [parts[0], *parts[1], *parts[2]])
    count = draw(st.integers(2, max_size))
    step, rows = 0, []
    for row in range(count):
        step += draw(st.sampled_from([0, 0, 0, 1, 4]))
        length = draw(st.integers(1, 9))
        known = draw(st.booleans())
        answer = [1] * length if known else [1000 * (row + 1) + i for i in range(length)]
        rows.append(Arrival(step, draw(prompt), answer, draw(st.integers(0, 2))))
    return rows


@st.composite
def naive_settings(draw):
    chunked = draw(st.sampled_from([True, True, True, False]))
    return Settings(
        num_blocks=draw(st.integers(3, 16)),
        block_size=draw(st.integers(1, 4)),
        # Without chunked prefill vLLM demands a budget that holds the longest sequence.
        budget=draw(st.sampled_from([1, 2, 3, 5, 8, 13, 40])) if chunked else draw(st.integers(30, 45)),
        seats=draw(st.sampled_from([1, 2, 3, 6])),
        caching=draw(st.sampled_from([True, True, False])),
        priority=draw(st.booleans()),
        threshold=draw(st.sampled_from([0, 0, 1, 2, 5])),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4])),
        reserve_full=draw(st.booleans()),
        chunked=chunked,
        unhashed_first=draw(st.sampled_from([True, True, False])),
        lone_unlimited=draw(st.sampled_from([True, True, False])),
        cursor_moves=draw(st.booleans()),
        goes_on=draw(st.booleans()),
    )


def ours(s: Settings, *, asynchronous: bool = False) -> Scheduler:
    rules = replace(
        RULES["0.33"],
        unhashed_first=s.unhashed_first,
        lone_request_unlimited=s.lone_unlimited,
        victim_moves_cursor=s.cursor_moves,
        self_preemption_goes_on=s.goes_on,
    )
    config = SchedulerConfig(
        max_num_batched_tokens=s.budget,
        max_num_seqs=s.seats,
        policy="priority" if s.priority else "fcfs",
        enable_chunked_prefill=s.chunked,
        long_prefill_token_threshold=s.threshold,
        scheduler_reserve_full_isl=s.reserve_full,
        async_scheduling=asynchronous,
        rules=rules,
    )
    kv = KVCacheManager(
        s.num_blocks,
        block_size=s.block_size,
        enable_caching=s.caching,
        watermark=s.watermark,
        unhashed_first=s.unhashed_first,
    )
    return Scheduler(config, kv)


def request_of(row: int, arrival: Arrival, keys: TokenKeys) -> Request:
    request = Request(
        row, float(arrival.step), len(arrival.prompt), len(arrival.answer), priority=arrival.priority
    )
    request.block_keys = keys.keys(row)
    return request


def free_queue(pool: BlockPool) -> list[int]:
    """The blocks in the order in which they would be handed out."""
    return copy.deepcopy(pool).allocate(pool.num_free)


def decisions(step: Step, scheduler: Scheduler, evicted_before: int) -> Decisions:
    pool = scheduler.kv.pool
    return Decisions(
        [(r.row, n, computed, list(r.blocks)) for r, n, computed, _ in step.scheduled],
        [r.row for r in step.preempted],
        [r.row for r in step.rejected],
        [r.row for r in scheduler.running],
        scheduler.num_waiting,
        pool.num_evictions - evicted_before,
        free_queue(pool),
    )


def check_lockstep(settings: Settings, rows: list[Arrival], *, asynchronous: bool) -> None:
    """Play the rows through both schedulers; compare each step, and the pool at the end.

    Asynchronous: each step is scheduled before the one before it is completed.
    """
    keys = TokenKeys([row.prompt + row.answer for row in rows], settings.block_size)
    requests = [request_of(row, arrival, keys) for row, arrival in enumerate(rows)]
    scheduler, naive = ours(settings, asynchronous=asynchronous), NaiveScheduler(settings)
    pool = scheduler.kv.pool
    in_flight: deque[Step] = deque()
    ended, now = 0, 0
    while ended < len(rows):
        for row, arrival in enumerate(rows):
            if arrival.step == now:
                scheduler.add(requests[row])
                job = Job(row, float(arrival.step), list(arrival.prompt), arrival.answer, arrival.priority)
                naive.waiting.append(job)
        evicted = pool.num_evictions
        in_flight.append(scheduler.schedule())
        assert decisions(in_flight[-1], scheduler, evicted) == naive.schedule(), f"step {now}"
        ended += len(in_flight[-1].rejected)
        check_blocks(scheduler)
        if len(in_flight) > asynchronous:
            ended += check_end(in_flight.popleft(), scheduler, naive, requests)
        now += 1
        assert now < 500, "no end in sight"
    assert pool.num_free == pool.num_usable


def check_end(step: Step, scheduler: Scheduler, naive: NaiveScheduler, requests: list[Request]) -> int:
    """Complete a step in both schedulers; how many requests finished."""
    before = sum(request.num_output_tokens for request in requests)
    finished = [r.row for r in scheduler.complete(step, 0.0)]
    assert step.work.sampled == sum(request.num_output_tokens for request in requests) - before
    assert finished == naive.complete()
    assert free_queue(scheduler.kv.pool) == naive.free_queue
    scheduler.kv.pool.check_integrity()
    return len(finished)


def check_blocks(scheduler: Scheduler) -> None:
    """Blocks are conserved: used is what running requests hold, and waiting ones hold none."""
    pool = scheduler.kv.pool
    pool.check_integrity()
    held = {block for request in scheduler.running for block in request.blocks}
    assert scheduler.num_used_blocks == len(held) == pool.num_usable - pool.num_free
    for request in scheduler.running:
        assert len(request.blocks) == scheduler.kv.blocks_for(request.num_computed_tokens)


many = hypothesis_settings(max_examples=4 * hypothesis_settings().max_examples)


@many
@given(naive_settings(), arrivals(), st.booleans())
def test_every_step_equals_that_of_the_naive_scheduler(settings, rows, asynchronous):
    check_lockstep(settings, rows, asynchronous=asynchronous)


@many
@given(
    st.builds(
        Settings,
        num_blocks=st.integers(4, 9),
        block_size=st.integers(2, 3),
        budget=st.sampled_from([3, 6, 12]),
        seats=st.just(5),
        priority=st.booleans(),
        unhashed_first=st.booleans(),
        cursor_moves=st.booleans(),
        goes_on=st.booleans(),
    ),
    arrivals(max_size=7),
    st.booleans(),
)
def test_every_step_equals_that_of_the_naive_scheduler_when_memory_is_tight(settings, rows, asynchronous):
    check_lockstep(settings, rows, asynchronous=asynchronous)


def test_a_step_says_how_many_tokens_it_samples():
    rows = [Arrival(0, [0] * 5, [10, 11], 0), Arrival(0, [0], [20], 0), Arrival(0, [0], [30, 31, 32], 0)]
    settings = Settings(num_blocks=6, block_size=1, budget=2, seats=2, threshold=1, reserve_full=False)
    scheduler = ours(settings)
    keys = TokenKeys([row.prompt + row.answer for row in rows], settings.block_size)
    requests = [request_of(row, arrival, keys) for row, arrival in enumerate(rows)]
    for request in requests:
        scheduler.add(request)
    for _ in range(50):
        before = sum(request.num_output_tokens for request in requests)
        step = scheduler.schedule()
        scheduler.complete(step, 0.0)
        assert step.work.sampled == sum(request.num_output_tokens for request in requests) - before
    assert Status.UNFINISHED not in {request.status for request in requests}


def test_requests_of_equal_priority_and_arrival_all_finish():
    settings = Settings(
        12, block_size=1, budget=2, seats=3, caching=False, priority=True, threshold=1, reserve_full=False
    )
    scheduler = ours(settings)
    for row, (prompt, answer) in enumerate([(8, 1), (1, 1), (1, 1), (9, 1)]):
        scheduler.add(Request(row, 0.0, prompt, answer))
    for step in range(300):
        scheduler.complete(scheduler.schedule(), float(step))
    assert scheduler.num_running + scheduler.num_waiting == 0


# --- Whole runs -----------------------------------------------------------------------------------------


class LinearStepTime:
    """A stand-in whose times are multiples of 1/256 s, so that sums of them are exact."""

    level = "test"

    def __init__(self) -> None:
        self._num_steps = 0

    def cost(self, work: StepWork) -> StepCost:
        self._num_steps += 1
        assert self._num_steps < 5_000, "no end in sight"
        time_s = (4 + work.prefill_tokens + 2 * work.decodes) / 256
        return StepCost(time_s, float(work.prefill_pairs), float(work.decode_context_tokens))

    def unit_costs(self, work: StepWork) -> UnitCosts:
        return AffineTiming(4 / 256, 1 / 256, 2 / 256, 0.0).unit_costs(work)


@dataclass(frozen=True)
class Case:
    """What `simulate_reference` is called with."""

    workload: pl.DataFrame
    engine: Engine
    num_gpu_blocks: int
    replicas: int
    router: str
    max_concurrency: int | None

    @property
    def longest(self) -> int:
        assert isinstance(self.engine.max_model_len, int)
        return self.engine.max_model_len

    def run(self, workload: pl.DataFrame | None = None) -> SimulationResult:
        return simulate_reference(
            self.workload if workload is None else workload,
            self.engine,
            LinearStepTime(),
            num_gpu_blocks=self.num_gpu_blocks,
            replicas=self.replicas,
            router=self.router,
            max_concurrency=self.max_concurrency,
        )


@st.composite
def workloads(draw, *, sessions=True, max_size=10):
    """A canonical table; hashed prompts share prefixes, follow-ups extend or forget their parent."""
    count = draw(st.integers(1, max_size) | st.just(max_size))
    rows: list[dict[str, Any]] = []
    clock, block_tokens = 0, draw(st.sampled_from([2, 4, 8]))
    hashed, with_sessions = draw(st.booleans()), sessions and draw(st.booleans())
    for row in range(count):
        clock += draw(st.sampled_from([0, 0, 0, 1, 3, 40]))
        prompt = draw(st.integers(1, 30))
        blocks = -(-prompt // block_tokens)
        shared = draw(st.integers(0, blocks))
        document = 100 * draw(st.integers(0, 1))
        follows = with_sessions and row > 0 and draw(st.booleans())
        rows.append(
            {
                "arrival_s": clock / 32,
                "prompt_tokens": prompt,
                "output_tokens": draw(st.integers(1, 16)),
                "block_hashes": [document + i if i < shared else 1000 * (row + 1) + i for i in range(blocks)],
                "block_tokens": block_tokens,
                "parent": draw(st.integers(0, row - 1)) if follows else None,
                "think_s": draw(st.sampled_from([0, 1, 16])) / 32 if follows else None,
                "priority": draw(st.integers(0, 1)),
            }
        )
    absent = set() if hashed else {"block_hashes", "block_tokens"}
    absent |= set() if with_sessions else {"parent", "think_s"}
    schema = {name: SCHEMA[name] for name in rows[0] if name not in absent}
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)


@st.composite
def engines(draw, *, roomy=False, kv_cache=True):
    version = draw(st.sampled_from(sorted(RULES)))
    rules = RULES[version]
    return Engine(
        vllm_version=version,
        async_scheduling=draw(st.booleans()) if kv_cache and rules.async_scheduling is not None else False,
        max_model_len=64 if roomy else draw(st.sampled_from([64, 64, 25])),
        block_size=draw(st.sampled_from([1, 2, 4])),
        enable_prefix_caching=draw(st.booleans()),
        max_num_seqs=draw(st.sampled_from([1, 3, 6])),
        max_num_batched_tokens=draw(st.sampled_from([1, 4, 9, 40, 90])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 3])),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"] if rules.priority else ["fcfs"])),
        scheduler_reserve_full_isl=draw(st.booleans()) if rules.reserve_full_isl else False,
        watermark=draw(st.sampled_from([0.0, 0.2])) if rules.watermark else 0.0,
        kv_cache=kv_cache,
    )


@st.composite
def cases(draw, *, roomy=False, sessions=True, limited=True, kv_cache=True):
    """`roomy`: nothing is rejected. Otherwise KV memory holds the longest request, or a third of it."""
    engine = draw(engines(roomy=roomy, kv_cache=kv_cache))
    largest = 48 // engine.block_size  # the longest request takes 30 + 16 - 1 tokens
    sizes = (
        [largest, largest + 2, 3 * largest] if roomy else [largest // 3, largest // 2, largest, largest + 2]
    )
    return Case(
        workload=draw(workloads(sessions=sessions)),
        engine=engine,
        num_gpu_blocks=1 + draw(st.sampled_from(sizes)),
        replicas=draw(st.integers(1, 3)),
        router=draw(st.sampled_from([*sorted(PLANS), *sorted(ROUTERS)])),
        max_concurrency=draw(st.none() | st.integers(1, 4)) if limited else None,
    )


any_case = cases() | cases(kv_cache=False)


def finished(result: SimulationResult) -> pl.DataFrame:
    return result.requests.filter(pl.col("status") == "finished")


@given(any_case)
def test_requests_are_conserved_and_answered_in_full(case):
    result = case.run()
    assert result.requests["request"].to_list() == list(range(len(case.workload)))
    assert set(result.requests["status"]) <= {"finished", "rejected_context", "rejected_kv"}
    assert result.requests["arrival_s"].null_count() == 0
    refused = result.requests["status"] == "rejected_context"
    assert refused.to_list() == (case.workload["prompt_tokens"] >= case.longest).to_list()
    room = case.longest - case.workload["prompt_tokens"]
    cut = (case.workload["output_tokens"] > room) & (room > 0)
    assert result.truncated == cut.sum()
    done = finished(result)
    expected = pl.select(pl.min_horizontal(case.workload["output_tokens"], room)).to_series()
    assert done["output_tokens"].to_list() == expected.gather(done["request"]).to_list()
    assert (result.requests["prompt_tokens"] == case.workload["prompt_tokens"]).all()


@given(cases(roomy=True) | cases(roomy=True, kv_cache=False))
def test_nothing_is_rejected_when_every_request_fits_on_its_own(case):
    assert set(case.run().requests["status"]) == {"finished"}


@given(any_case)
def test_steps_and_requests_tell_the_same_tokens(case):
    result = case.run()
    requests, steps = result.requests, result.steps
    assert steps["sampled"].sum() == requests["output_tokens"].sum()
    assert steps["preempted"].sum() == requests["preemptions"].sum()
    admitted = requests.filter(pl.col("cached_tokens").is_not_null())
    caching = case.engine.enable_prefix_caching and case.engine.kv_cache
    assert steps["queried_tokens"].sum() == (admitted["prompt_tokens"].sum() if caching else 0)
    assert steps["hit_tokens"].sum() == admitted["cached_tokens"].sum()
    assert (admitted["cached_tokens"] < admitted["prompt_tokens"]).all()
    assert (admitted["cached_tokens"] % case.engine.block_size == 0).all()


@given(cases())
def test_steps_stay_within_the_settings_and_never_overlap(case):
    result = case.run()
    steps = result.steps
    assert (steps["prefill_tokens"] + steps["decodes"] <= case.engine.max_num_batched_tokens).all()
    assert (steps["running"] <= case.engine.max_num_seqs).all()
    assert (steps["used_blocks"] <= result.kv_blocks).all()
    assert (steps["hit_tokens"] <= steps["queried_tokens"]).all()
    for replica in steps.partition_by("replica"):
        ends = replica["start_s"] + replica["duration_s"]
        assert (replica["start_s"][1:] >= ends[:-1]).all()


@given(any_case)
def test_every_gap_between_tokens_is_recorded_once(case):
    result = case.run()
    answered = result.requests.filter(pl.col("output_tokens") > 0)
    gaps = result.token_gaps
    assert gaps["count"].sum() == (answered["output_tokens"] - 1).sum()
    done = finished(result)
    if done.height == answered.height:  # the last token of a request rejected half-way is not in the table
        span_s = (done["finish_s"] - done["first_token_s"]).sum()
        total_s = float((gaps["gap_s"] * gaps["count"]).sum())
        # Gaps are rounded down, by 2^-12 at most.
        assert float(span_s) * (1 - 2**-12) - 1e-9 <= total_s <= float(span_s) + 1e-9
    assert gaps["gap_s"].is_sorted()
    assert gaps["gap_s"].n_unique() == len(gaps)


@given(any_case)
def test_causes_come_before_effects(case):
    result = case.run()
    done = finished(result)
    assert (done["arrival_s"] <= done["first_scheduled_s"]).all()
    assert (done["first_scheduled_s"] < done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    once = done.filter(pl.col("output_tokens") > 1)
    assert (once["first_token_s"] < once["finish_s"]).all()
    for row, (due_s, exact) in enumerate(due_times(case, result)):
        arrival_s = result.requests["arrival_s"][row]
        assert arrival_s == due_s if exact and case.max_concurrency is None else arrival_s >= due_s


def due_times(case: Case, result: SimulationResult) -> list[tuple[float, bool]]:
    """When each request may be sent at the earliest, and whether the tables tell that exactly."""
    table, requests = case.workload, result.requests
    if "parent" not in table.columns:
        return [(arrival_s, True) for arrival_s in table["arrival_s"]]
    due: list[tuple[float, bool]] = []
    for arrival_s, parent, think_s in table.select("arrival_s", "parent", "think_s").iter_rows():
        if parent is None:
            due.append((arrival_s, True))
            continue
        known = requests["status"][parent] != "rejected_kv"  # when that happened is not in the tables
        finish_s = requests["finish_s"][parent]
        due.append(((requests["arrival_s"][parent] if finish_s is None else finish_s) + think_s, known))
    return due


@given(any_case)
def test_the_same_input_gives_the_same_tables(case):
    first, second = case.run(), case.run()
    for name in ("requests", "steps", "token_gaps"):
        assert getattr(first, name).equals(getattr(second, name), null_equal=True)


def seen_s(case: Case, result: SimulationResult, rows: set[int]) -> float:
    """When the engine first knows that one of these requests ends.

    That is at its end; with asynchronous scheduling when the step that brings its last token begins, for then
    the step behind that is scheduled.
    """
    ends = result.requests[sorted(rows)].filter(pl.col("finish_s").is_not_null())
    if not is_async(case.engine):
        return min(ends["finish_s"], default=float("inf"))
    steps = result.steps.filter(pl.col("sampled") > 0).with_columns(
        finish_s=pl.col("start_s") + pl.col("duration_s")
    )
    last = ends.join(steps, on=["replica", "finish_s"])
    assert len(last) == len(ends)
    return min(last["start_s"], default=float("inf"))


@given(any_case, st.data())
def test_no_decision_depends_on_an_output_length_before_it_can_be_seen(case, data):
    """Two worlds that differ in output lengths are one world until a changed request is seen to end."""
    lengths = case.workload["output_tokens"].to_list()
    changed = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1))
    other_lengths = [n + data.draw(st.integers(1, 9)) if i in changed else n for i, n in enumerate(lengths)]
    other = case.workload.with_columns(pl.Series("output_tokens", other_lengths))
    here, there = case.run(), case.run(other)
    first_s = min(seen_s(case, here, changed), seen_s(case, there, changed))
    before = pl.col("scheduled_s") < first_s
    assert here.steps.filter(before).equals(there.steps.filter(before))
    columns = ["request", "arrival_s", "replica", "first_scheduled_s", "cached_tokens"]
    started = pl.col("first_scheduled_s") < first_s
    mine, theirs = (world.requests.filter(started).select(columns) for world in (here, there))
    assert mine.equals(theirs)


@given(cases(roomy=True) | cases(roomy=True, kv_cache=False))
def test_max_concurrency_is_never_exceeded_and_never_wasted(case):
    assume(case.max_concurrency is not None)
    result = case.run()
    sent_s, ends = result.requests["arrival_s"], result.requests["finish_s"].to_list()
    for row, (due_s, _) in enumerate(due_times(case, result)):
        arrival_s = sent_s[row]
        sent = (sent_s <= arrival_s).sum()
        ended = sum(end_s <= arrival_s for end_s in ends)
        assert sent - ended <= case.max_concurrency
        if arrival_s > due_s:  # it was held, so all seats were taken until an end let it in
            assert arrival_s in ends
            ended_before = sum(end_s < arrival_s for end_s in ends)
            assert (sent_s < arrival_s).sum() - ended_before == case.max_concurrency


@given(cases(roomy=True, sessions=False))
def test_requests_are_held_back_in_the_order_of_the_trace(case):
    assert case.run().requests["arrival_s"].is_sorted()


@given(cases(sessions=False, limited=False), st.sampled_from(sorted(PLANS)))
def test_replicas_of_a_planned_fleet_are_as_many_separate_runs(case, router):
    together = replace(case, router=router).run()
    for index in range(case.replicas):
        mine = together.requests.filter(pl.col("replica") == index)
        if not len(mine):
            continue
        alone = replace(case, workload=case.workload[mine["request"].to_list()], replicas=1).run()
        same = [name for name in alone.requests.columns if name not in ("request", "replica")]
        assert mine.select(same).equals(alone.requests.select(same), null_equal=True)
        steps = together.steps.filter(pl.col("replica") == index)
        assert steps.drop("replica").equals(alone.steps.drop("replica"))


# --- Token accounting, step by step ---------------------------------------------------------------------


Tap = Callable[[StepScheduler], None]


class Ledger(TableRecorder):
    """Follows every request's KV tokens through its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: dict[int, int] = {}
        self.spent: dict[int, int] = {}
        self.readmissions: dict[int, int] = {}
        self.sampled: dict[int, int] = {}

    def begin(
        self,
        replica: int,
        scheduled_s: float,
        start_s: float,
        cost: StepCost,
        step: Step,
        scheduler: StepScheduler,
    ) -> None:
        super().begin(replica, scheduled_s, start_s, cost, step, scheduler)
        assert isinstance(scheduler, Scheduler)
        check_blocks(scheduler)
        for request in step.preempted:
            self.computed.pop(request.row, None)
        for entry in step.scheduled:
            self._follow(entry, scheduler.kv.block_size)
        self._check_work(step)

    def _follow(self, entry: Scheduled, block_size: int) -> None:
        request, num_tokens, num_computed, samples = entry
        assert num_tokens > 0
        if request.row not in self.computed:  # admitted in this step: it starts behind whole cached blocks
            assert num_computed % block_size == 0
            self.readmissions[request.row] = self.readmissions.get(request.row, -1) + 1
        assert num_computed == self.computed.get(request.row, num_computed)
        self.computed[request.row] = num_computed + num_tokens
        self.spent[request.row] = self.spent.get(request.row, 0) + num_tokens
        self.sampled[request.row] = self.sampled.get(request.row, 0) + samples

    def _check_work(self, step: Step) -> None:
        """The sums of a step, counted token by token."""
        work = step.work
        tokens = sum(n for _, n, *_ in step.scheduled)
        contexts = sum(computed + n for _, n, computed, _ in step.scheduled)
        pairs = sum(c + 1 for _, n, computed, _ in step.scheduled for c in range(computed, computed + n))
        assert work.prefill_tokens + work.decodes == tokens
        assert work.prefill_context_tokens + work.decode_context_tokens == contexts
        assert work.prefill_pairs + work.decode_context_tokens == pairs
        decodes = [r for r, n, computed, _ in step.scheduled if n == 1 and computed >= r.num_prompt_tokens]
        assert work.decodes == len(decodes)
        assert work.sampled == sum(entry.samples for entry in step.scheduled)


def play_with_ledger(case: Case, requests: list[Request], tap: Tap = lambda scheduler: None) -> Ledger:
    """As `simulate_reference`, with our recorder, and schedulers that `tap` has seen."""
    ledger, timing = Ledger(), LinearStepTime()
    fleet = [make_replica(i, case.engine, case.num_gpu_blocks, timing, ledger) for i in range(case.replicas)]
    for replica in fleet:
        tap(replica.scheduler)
    keys = BlockKeys(case.workload, case.engine.block_size)
    clients = Clients(requests, case.workload, case.max_concurrency)
    router = make_router(case.router, case.workload, case.replicas, seed=0)
    Simulation(fleet, router, clients, keys, case.longest, None).run()
    for replica in fleet:
        assert isinstance(replica.scheduler, Scheduler)
        replica.scheduler.kv.pool.check_integrity()
        assert replica.scheduler.num_used_blocks == 0
    return ledger


@given(cases())
def test_every_token_is_computed_once_unless_a_preemption_lost_it(case):
    requests, _ = make_requests(case.workload, case.longest)
    ledger = play_with_ledger(case, requests)
    for request in requests:
        assert ledger.sampled.get(request.row, 0) == request.num_output_tokens
        if request.status != "finished":
            continue
        last = request.num_tokens - 1  # the last sampled token never gets KV
        if request.row in ledger.computed:
            assert ledger.computed[request.row] == last
            assert ledger.readmissions[request.row] <= request.num_preemptions
        else:  # it was preempted while its last token was in flight
            assert is_async(case.engine)
            assert ledger.readmissions[request.row] < request.num_preemptions
        assert request.num_cached_tokens is not None
        fresh = last - request.num_cached_tokens
        spent = ledger.spent[request.row]
        assert spent == fresh if request.num_preemptions == 0 else fresh <= spent
    steps = ledger.steps()
    assert (steps["prefill_tokens"] + steps["decodes"]).sum() == sum(ledger.spent.values())


class SealedRequest(Request):
    """A request whose output length may be read only while a step is being completed.

    `max_tokens`, which is the same number, may also be read by an asynchronous scheduler.
    """

    __slots__ = ("length",)
    length_is_sealed = limit_is_sealed = True

    @property
    def output_length(self) -> int:
        assert not SealedRequest.length_is_sealed, "a decision read an output length"
        return self.length

    @output_length.setter
    def output_length(self, length: int) -> None:
        self.length = length

    @property
    def max_tokens(self) -> int:
        assert not SealedRequest.limit_is_sealed, "a decision read max_tokens"
        return self.length

    @max_tokens.setter
    def max_tokens(self, limit: int) -> None:
        assert limit == self.length


def unsealed(method: Callable[..., Any], *seals: str) -> Callable[..., Any]:
    """The method, which may break these seals."""

    def call(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for seal in seals:
                patch.setattr(SealedRequest, seal, False)
            return method(*arguments)

    return call


def unseal(scheduler: StepScheduler) -> None:
    assert isinstance(scheduler, Scheduler)
    scheduler.complete = unsealed(scheduler.complete, "length_is_sealed")  # type: ignore[method-assign]
    if scheduler.config.async_scheduling:
        scheduler.schedule = unsealed(scheduler.schedule, "limit_is_sealed")  # type: ignore[method-assign]


@given(cases())
def test_no_decision_reads_an_output_length(case):
    requests: list[Request] = []
    for known in make_requests(case.workload, case.longest)[0]:
        length = known.output_length
        requests.append(
            SealedRequest(known.row, known.arrival_s, known.num_prompt_tokens, length, known.priority)
        )
    play_with_ledger(case, requests, unseal)


# --- kv_cache: off --------------------------------------------------------------------------------------


@given(cases(kv_cache=False))
def test_without_kv_cache_every_step_recomputes_every_context(case):
    result = case.run()
    done = finished(result)
    contexts = sum(
        prompt + i
        for prompt, output in done.select("prompt_tokens", "output_tokens").iter_rows()
        for i in range(output)
    )
    assert result.steps["prefill_tokens"].sum() == contexts
    assert result.steps["prefill_context_tokens"].sum() == contexts
    assert result.steps["decodes"].sum() == 0
    assert result.steps["used_blocks"].sum() == result.kv_blocks == 0
    assert result.requests["preemptions"].sum() == 0


@given(cases(kv_cache=False))
def test_without_kv_cache_only_a_lone_request_may_pass_the_token_budget(case):
    steps = case.run().steps
    over = steps.filter(pl.col("prefill_tokens") > case.engine.max_num_batched_tokens)
    assert (over["sampled"] == 1).all()
    assert (steps["sampled"] >= 1).all()
    assert (steps["running"] <= case.engine.max_num_seqs).all()
