"""The compiled engine gives what the reference engine gives, to the last bit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.ecosystem.vllm_versions import RULES
from kavier.errors import InputError
from kavier.metrics.power import POWER_MODELS, PowerModel
from kavier.metrics.sums import with_sums
from kavier.metrics.timeline import Totals
from kavier.scenario import Engine
from kavier.simulation import play, split
from kavier.simulation.compiled import CompiledResult, covers, simulate_compiled
from kavier.simulation.reference import SimulationResult, simulate_reference
from kavier.simulation.router import PLANS, ROUTERS
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import AffineTiming
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.step import StepCost, StepWork, UnitCosts
from kavier.validation.recording import TokenKeys
from kavier.workload.table import SCHEMA
from tests.timelines import small_pieces, timeline_of, watched

TIMING = AffineTiming(4 / 256, 1 / 256, 2 / 256, 1 / 4096, pair_flops=3.0, context_bytes=5.0)
"""Multiples of 1/4096 s: requests then often arrive exactly when a step ends."""
ROUGH = AffineTiming(0.005, 2e-5, 1e-4, 1e-8, pair_flops=3.3, context_bytes=0.7)
GPU = find_gpu("H100-SXM")


@dataclass(frozen=True)
class Case:
    """A workload with the tokens of its prompts and answers, and what it is played with."""

    table: pl.DataFrame
    sequences: list[list[int]]
    engine: Engine
    timing: AffineTiming
    options: dict[str, Any]
    """num_gpu_blocks, replicas, router, seed, max_concurrency, as_recorded"""

    def keys(self) -> TokenKeys:
        return TokenKeys(self.sequences, self.engine.block_size)

    def reference(self) -> SimulationResult:
        return simulate_reference(
            self.table, self.engine, self.timing, keys=self.keys(), power=power().record(2), **self.options
        )

    def compiled(self, sampling: Sampling | None = None, workers: int = 1) -> CompiledResult:
        return simulate_compiled(
            self.table, self.engine, self.timing, keys=self.keys().flat, workers=workers,
            sampling=sampling or Sampling(power=power().record(2), steps=True), **self.options,
        )  # fmt: skip


@st.composite
def workloads(draw, max_size=12):
    """Few distinct tokens, so that prompts share prefixes and extend one another's answers."""
    run = st.tuples(st.integers(0, 2), st.integers(0, 12)).map(lambda pair: [pair[0]] * pair[1])
    prompt = st.tuples(st.integers(0, 1), run, run).map(lambda parts: [parts[0], *parts[1], *parts[2]])
    rows, sequences, clock = [], [], 0
    for _ in range(draw(st.integers(1, max_size) | st.just(max_size))):
        clock += draw(st.sampled_from([0, 0, 0, 1, 3, 16, 160]))
        tokens, length = draw(prompt), draw(st.integers(1, 16))
        known = draw(st.integers(0, length))
        answer = [draw(st.integers(0, 1))] * known  # the rest of the answer is unlike any other
        row = {"arrival_s": clock / 64, "prompt_tokens": len(tokens), "output_tokens": length}
        rows.append({**row, "priority": draw(st.integers(0, 2)), "session_id": draw(st.sampled_from("abc"))})
        sequences.append([*tokens, *answer])
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows[0]}), sequences


@st.composite
def engines(draw, versions=tuple(RULES)):
    version = draw(st.sampled_from(["0.33", *versions]))
    rules, chunked = RULES[version], draw(st.sampled_from([True, True, True, False]))
    return Engine(
        vllm_version=version,
        async_scheduling=draw(st.booleans()) if rules.async_scheduling is not None else False,
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"] if version == "0.33" else ["fcfs"])),
        max_model_len=draw(st.sampled_from([64, 64, 20])),
        block_size=draw(st.sampled_from([1, 2, 3, 4])),
        enable_prefix_caching=draw(st.sampled_from([True, True, False])),
        max_num_seqs=draw(st.sampled_from([1, 2, 3, 6, 9])),
        max_num_batched_tokens=draw(st.sampled_from([1, 2, 4, 9, 16, 40])) if chunked else 64,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 1, 3, 5])),
        scheduler_reserve_full_isl=draw(st.booleans()) if rules.reserve_full_isl else False,
        watermark=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4])) if rules.watermark else 0.0,
    )


@st.composite
def cases(draw, routers=("round-robin",), most_replicas=3, *, closed=False):
    table, sequences = draw(workloads())
    engine = draw(engines())
    largest = 48 // engine.block_size
    blocks = draw(st.sampled_from([largest // 4, largest // 3, largest // 2, largest, 3 * largest]))
    options = {
        "num_gpu_blocks": 1 + blocks,
        "replicas": draw(st.integers(1, most_replicas)),
        "router": draw(st.sampled_from(routers)),
        "seed": draw(st.integers(0, 3)),
        "max_concurrency": draw(st.integers(1, 5)) if closed else None,
        "as_recorded": draw(st.sampled_from([False, False, True])),
    }
    return Case(table, sequences, engine, draw(st.sampled_from([TIMING, ROUGH])), options)


def check(case: Case) -> None:
    expected, found = case.reference(), case.compiled()
    assert found.steps is not None
    assert_equal(found.steps.drop("energy_j"), expected.steps)
    assert_equal_requests(found.requests, expected.requests)
    slept_j = found.asleep_s * 2 * GPU.loaded_idle_w
    assert found.steps["energy_j"].sum() == pytest.approx(energies_of(found).sum() + slept_j, rel=1e-12)
    assert_equal(found.token_gaps, expected.token_gaps)
    assert (found.truncated, found.kv_blocks) == (expected.truncated, expected.kv_blocks)
    assert found.peak_used_blocks == (expected.steps["used_blocks"].max() or 0)


def assert_equal(found: pl.DataFrame | None, expected: pl.DataFrame | None) -> None:
    assert found is not None
    assert expected is not None
    assert found.schema == expected.schema
    if not found.equals(expected, null_equal=True):
        for index, (mine, theirs) in enumerate(
            zip(found.rows(named=True), expected.rows(named=True), strict=False)
        ):
            assert mine == theirs, f"row {index}"
        assert len(found) == len(expected)


def energies_of(result: CompiledResult) -> NDArray[np.float64]:
    return result.requests["energy_j"].to_numpy()


def assert_equal_requests(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same, but for the order in which energies are summed up."""
    assert_equal(found.drop("energy_j"), expected.drop("energy_j"))
    assert found["energy_j"].to_list() == pytest.approx(expected["energy_j"].to_list(), rel=1e-9, abs=0.0)


many = hypothesis_settings(max_examples=10 * hypothesis_settings().max_examples)


@many
@given(cases())
def test_every_step_and_request_equals_the_reference(case):
    check(case)


@many
@given(cases(routers=sorted(PLANS)))
def test_routers_that_look_at_nothing_equal_the_reference(case):
    check(case)


@many
@given(cases(routers=sorted(ROUTERS), most_replicas=5))
def test_routers_that_look_at_replicas_equal_the_reference(case):
    check(case)


@many
@given(cases(closed=True, most_replicas=1), st.sampled_from([1, 4, 1 << 15]))
def test_a_closed_loop_of_one_replica_equals_the_reference(case, size):
    """Requests may be sent late, when others are finished or rejected; and in the midst of full buffers."""
    with small_pieces(size):
        check(case)


@many
@given(
    cases(closed=True, routers=[*sorted(PLANS), *sorted(ROUTERS)], most_replicas=5),
    st.sampled_from([1, 4, 1 << 15]),
)
def test_a_closed_loop_of_a_fleet_equals_the_reference(case, size):
    with small_pieces(size):
        check(case)


# --- Sums on the way ------------------------------------------------------------------------------------


def power(name: str = "saturating") -> PowerModel:
    gpu = find_gpu("H100-SXM")
    return POWER_MODELS[name](gpu, gpu.flops_per_s["bf16"])


@many
@given(
    cases(routers=("round-robin", "least-outstanding"))
    | cases(routers=("round-robin", "least-outstanding"), closed=True),
    st.sampled_from([0.001, 0.03, 0.25, 1.0, 100.0]),
    st.sampled_from([4, 30, 1 << 15]),
    st.sampled_from(sorted(POWER_MODELS)),
)
def test_timelines_are_equal_at_any_interval(case, interval_s, size, name):
    start_s, draw = case.table["arrival_s"][0], power(name)
    sampling, replicas = (
        Sampling(start_s, interval_s, draw.record(2), steps=True),
        case.options["replicas"],
    )
    played = case.reference()
    with small_pieces(size):
        mine = watched(case.compiled, sampling, replicas)
        theirs = watched(lambda taking: with_sums(played, draw, 2, replicas, taking), sampling, replicas)
    found, expected = mine.result, theirs.result
    assert found.end_s == expected.end_s
    assert found.peak_used_blocks == expected.peak_used_blocks
    assert_equal(mine.rows, theirs.rows)
    assert mine.totals == theirs.totals
    assert_equal(found.steps, expected.steps)
    assert found.asleep_s == expected.asleep_s
    shared_j = energies_of(found).sum() + found.asleep_s * 2 * GPU.loaded_idle_w
    assert mine.totals.energy_j == pytest.approx(shared_j + mine.totals.idle_j, rel=1e-9)


@pytest.mark.parametrize(
    "model",
    ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b"],
)
@pytest.mark.parametrize("gpu", ["H100-SXM", "A100-80GB-SXM"])
def test_datasheet_step_times_are_those_of_the_reference(model, gpu):
    """Experts, latent attention, sliding windows, FlashAttention 2 and 3."""
    spec = find_model(model)
    engine = Engine(
        max_model_len=8192, max_num_seqs=64, max_num_batched_tokens=1024, tensor_parallel_size=2,
    )  # fmt: skip
    timing = DatasheetTiming(spec, find_gpu(gpu), engine)
    rng = np.random.default_rng(3)
    table = pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.1, 80)),
            "prompt_tokens": rng.integers(1, 6000, 80),
            "output_tokens": rng.integers(1, 150, 80),
        }
    )
    sampling = Sampling(0.0, 0.5, power().record(2), steps=True)
    played = simulate_reference(table, engine, timing, num_gpu_blocks=3000, power=power().record(2))
    found = simulate_compiled(table, engine, timing, num_gpu_blocks=3000, sampling=sampling)
    expected = with_sums(played, power(), 2, 1, sampling)
    assert found.steps is not None
    assert expected.steps is not None
    assert_equal(found.steps, expected.steps)
    assert_equal_requests(found.requests, expected.requests)
    spent_j = found.steps["energy_j"].sum()
    assert found.requests["energy_j"].sum() == pytest.approx(spent_j, rel=1e-12)


def long_case(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.5, count)),
            "prompt_tokens": rng.integers(1, 400, count),
            "output_tokens": rng.integers(1, 60, count),
        }
    )


@pytest.mark.parametrize("router", ["round-robin", "least-outstanding"])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_full_buffers_change_nothing(monkeypatch, router, size):
    """Steps and cells that fill their arrays many times over."""
    engine = Engine(max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64)

    def compiled(sampling: Sampling) -> CompiledResult:
        return simulate_compiled(
            long_case(100), engine, ROUGH, num_gpu_blocks=90, replicas=2, router=router, sampling=sampling
        )

    sampling = Sampling(0.0, 0.01, power().record(1), steps=True)
    whole = watched(compiled, sampling, replicas=2)
    with small_pieces(size):
        kept = compiled(sampling)
        taken = watched(compiled, sampling, replicas=2)
    assert_same_run(whole.result, kept)
    assert_equal(taken.rows, whole.rows)
    assert len(taken.frames) > 1900 // size > len(whole.frames)
    for name, value in vars_of(whole.totals).items():
        assert vars_of(taken.totals)[name] == pytest.approx(value, rel=1e-12), name


def vars_of(totals: Totals) -> dict[str, Any]:
    return dataclasses.asdict(totals)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("router", ["round-robin", "least-outstanding"])
def test_a_sink_that_fails_ends_the_run(workers, router):
    engine = Engine(max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64)
    taken = []

    def take(replica: int, end: int) -> None:
        taken.append((replica, end))
        if len(taken) == 50:
            raise InputError("no more")

    sampling = Sampling(0.0, 0.01, sink=lambda replica, _, end: partial(take, replica, end))
    with small_pieces(10), pytest.raises(InputError, match="no more"):
        simulate_compiled(
            long_case(3000), engine, ROUGH, num_gpu_blocks=90, replicas=7, router=router, sampling=sampling,
            workers=workers,
        )  # fmt: skip
    assert len(taken) == 50


def test_a_thread_that_cannot_start_ends_the_run(monkeypatch):
    class OneThread(ThreadPoolExecutor):
        def submit(self, *arguments, **more):
            if self._work_queue.qsize() or self._threads:
                raise RuntimeError("can't start new thread")
            return super().submit(*arguments, **more)

    monkeypatch.setattr(play, "ThreadPoolExecutor", OneThread)
    engine = Engine(max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64)
    sampling = Sampling(0.0, 0.01, sink=lambda *_: lambda: None)
    with small_pieces(10), pytest.raises(RuntimeError, match="new thread"):
        simulate_compiled(
            long_case(3000), engine, ROUGH, num_gpu_blocks=90, replicas=3, sampling=sampling, workers=3
        )


def assert_same_run(one: CompiledResult, other: CompiledResult, interval_s: float = 0.01) -> None:
    assert_equal(one.requests, other.requests)
    assert_equal(one.steps, other.steps)
    assert_equal(one.token_gaps, other.token_gaps)
    assert (one.end_s, one.peak_used_blocks) == (other.end_s, other.peak_used_blocks)
    window_s = (0.0, one.end_s or 0.0)
    rows = [timeline_of(r.cells, window_s=window_s, interval_s=interval_s, idle_w=1.0) for r in (one, other)]
    assert_equal(*rows)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("replicas", [1, 7])
def test_results_do_not_depend_on_how_many_threads_play(replicas, caching):
    engine = Engine(
        max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=caching
    )
    sampling = Sampling(0.0, 0.01, power().record(1), steps=True)
    results = []
    for workers in (1, 2, 5):

        def compiled(sampling: Sampling, workers: int = workers) -> CompiledResult:
            return simulate_compiled(
                long_case(3000), engine, ROUGH, num_gpu_blocks=90, replicas=replicas, sampling=sampling,
                workers=workers,
            )  # fmt: skip

        with small_pieces(300):
            results.append(watched(compiled, sampling, replicas))
    one, *others = results
    assert len(one.frames) > 100
    for other in others:
        assert_same_run(one.result, other.result)
        assert one.totals == other.totals
        assert len(one.frames) == len(other.frames)
        for mine, theirs in zip(one.frames, other.frames, strict=True):
            assert_equal(mine, theirs)


@dataclass
class Joins:
    """How often parts of a replica's arrivals, played at once, were put together, and how often not."""

    done: int = 0
    missed: int = 0

    def watch(self, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
        def counting(run, parts, cuts):
            joined = join(run, parts, cuts)
            self.done += len(joined) - 1
            self.missed += len(parts) - len(joined)
            return joined

        join = split.join
        monkeypatch.setattr(play, "join", counting)
        monkeypatch.setattr(split, "WINDOW", window)


@st.composite
def light_cases(draw):
    """Mostly idle, with bursts now and then."""
    count = draw(st.integers(8, 40))
    pauses = draw(st.lists(st.sampled_from([0, 1, 16, 160, 640, 2048]), min_size=count, max_size=count))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    table = pl.DataFrame(
        {
            "arrival_s": np.cumsum(pauses) / 64,
            "prompt_tokens": rng.integers(1, 30, count),
            "output_tokens": rng.integers(1, 17, count),
            "priority": rng.integers(0, 3, count),
        }
    )
    engine = draw(engines()).model_copy(update={"enable_prefix_caching": False})
    options = {
        "num_gpu_blocks": 1 + draw(st.sampled_from([12, 24, 48, 144])) // engine.block_size,
        "replicas": draw(st.integers(1, 2)),
        "router": draw(st.sampled_from(["round-robin", "random"])),
        "as_recorded": draw(st.sampled_from([False, False, True])),
    }
    return table, engine, draw(st.sampled_from([TIMING, ROUGH])), options


def test_parts_of_a_replica_played_at_once_make_the_same_run(monkeypatch):
    joins = Joins()

    @many
    @given(light_cases(), st.sampled_from([0.01, 0.1, 1.0, 4.0]), st.sampled_from([1, 2, 6]))
    def check_parts(case, interval_s, window):
        table, engine, timing, options = case
        sampling = Sampling(0.0, interval_s, power().record(1), steps=True)
        with monkeypatch.context() as patch:
            joins.watch(patch, window)
            one, *others = (
                simulate_compiled(table, engine, timing, sampling=sampling, workers=workers, **options)
                for workers in (1, 2, 4, 7)
            )
        for other in others:
            assert_same_run(one, other, interval_s)

    check_parts()
    assert joins.done > 100
    assert joins.missed > 10


@pytest.mark.parametrize(("count", "size"), [(3000, 1 << 15), (150, 4), (150, 40)])
def test_a_long_run_in_parts_is_the_same_run(monkeypatch, count, size):
    joins = Joins()
    joins.watch(monkeypatch, 20)
    engine = Engine(
        max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=False
    )
    table = long_case(count).with_columns(pl.col("arrival_s") * 4)

    def compiled(workers: int, sampling: Sampling) -> CompiledResult:
        return simulate_compiled(table, engine, ROUGH, num_gpu_blocks=90, workers=workers, sampling=sampling)

    with small_pieces(size):
        one, *others = (
            watched(
                partial(compiled, workers),
                Sampling(0.0, 0.01, power().record(1), steps=True),
                replicas=1,
            )
            for workers in (1, 2, 5)
        )
    for other in others:
        assert_same_run(one.result, other.result)
        assert_equal(one.rows, other.rows)
        assert one.totals == other.totals
    assert joins == Joins(done=1 + 4)


# --- What it does not cover -----------------------------------------------------------------------------


class Halves:
    """A model in Python."""

    level = "test"

    def cost(self, work: StepWork) -> StepCost:
        return StepCost(0.5, 0.0, 0.0)

    def unit_costs(self, work: StepWork) -> UnitCosts:
        return ROUGH.unit_costs(work)


PLAIN = Engine(max_model_len=64, max_num_seqs=4, max_num_batched_tokens=16)


@pytest.mark.parametrize(
    ("changes", "columns", "options", "reason"),
    [
        ({}, {}, {}, None),
        ({}, {"parent": [None, 0]}, {}, None),
        ({}, {"parent": [None, 0], "think_s": [None, 1.0]}, {}, "wait for others"),
        ({}, {"output_tokens": [1, 2**31]}, {}, "32 bits"),
        ({"scheduling_policy": "priority"}, {}, {}, None),
        ({"scheduling_policy": "priority", "vllm_version": "0.25"}, {}, {}, "rules of vLLM 0.25"),
        ({"kv_cache": False}, {}, {}, "kv_cache is off"),
        ({"enable_chunked_prefill": False}, {}, {}, "chunked prefill"),
        ({}, {}, {"num_gpu_blocks": 2**30}, "29 bits"),
        ({}, {"prompt_tokens": [2**29, 2**29], "output_tokens": [1, 1]}, {}, None),
        ({"block_size": 1}, {"prompt_tokens": [2**30, 2**30], "output_tokens": [1, 1]}, {}, "31 bits"),
        ({}, {}, {"timing": Halves()}, "step-time model"),
    ],
)
def test_it_says_what_it_does_not_cover(changes, columns, options, reason):
    table = pl.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": 5, "output_tokens": 2}).with_columns(
        pl.Series(name, values) for name, values in columns.items()
    )
    arguments: dict[str, Any] = {"num_gpu_blocks": 100, **options}
    timing = arguments.pop("timing", TIMING)
    found = covers(table, PLAIN.model_copy(update=changes), timing, **arguments)
    assert (found is None) if reason is None else (reason in (found or ""))


def test_indices_stay_in_bounds():
    """Compiled code checks none: an index too far would spoil memory silently."""
    chosen = "equal_the_reference or equals_the_reference or full_buffers or any_interval"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
