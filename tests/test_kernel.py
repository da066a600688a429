"""The compiled engine gives what the reference engine gives, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.metrics.power import SaturatingPower
from kavier.metrics.timeline import timeline_of, with_sums
from kavier.scenario import Engine
from kavier.simulation import compiled
from kavier.simulation.clients import Clients
from kavier.simulation.compiled import CompiledResult, covers, simulate_compiled
from kavier.simulation.record import TableRecorder, requests_table
from kavier.simulation.reference import (
    Simulation,
    SimulationResult,
    make_requests,
    make_scheduler,
    simulate_reference,
)
from kavier.simulation.replica import Replica
from kavier.simulation.router import ROUTERS
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import AffineTiming
from kavier.timing.datasheet import DatasheetTiming
from tests.oracle import ORACLE, RUNS, OracleStepTime, TokenKeys, oracle_tokens, read_jsonl

TIMING = AffineTiming(4 / 256, 1 / 256, 2 / 256, 1 / 4096, pair_flops=3.0, context_bytes=5.0)
"""Multiples of 1/4096 s: requests then often arrive exactly when a step ends."""
ROUGH = AffineTiming(0.005, 2e-5, 1e-4, 1e-8, pair_flops=3.3, context_bytes=0.7)


@dataclass(frozen=True)
class Case:
    """A workload with the tokens of its prompts and answers, and what it is played with."""

    table: pl.DataFrame
    sequences: list[list[int]]
    engine: Engine
    num_gpu_blocks: int
    replicas: int
    router: str
    timing: AffineTiming

    def keys(self) -> TokenKeys:
        return TokenKeys(self.sequences, self.engine.block_size)

    def reference(self) -> SimulationResult:
        longest = self.engine.max_model_len
        assert isinstance(longest, int)
        requests, truncated = make_requests(self.table, longest)
        recorder = TableRecorder()
        fleet = [
            Replica(i, make_scheduler(self.engine, self.num_gpu_blocks), self.timing, recorder)
            for i in range(self.replicas)
        ]
        clients = Clients(requests, self.table)
        keys = self.keys() if self.engine.enable_prefix_caching else None
        Simulation(fleet, ROUTERS[self.router](), clients, keys, longest, None).run()
        return SimulationResult(
            requests_table(requests),
            recorder.steps(),
            recorder.token_gaps(),
            truncated,
            self.num_gpu_blocks - 1,
        )

    def compiled(self, sampling: Sampling | None = None) -> CompiledResult:
        return simulate_compiled(
            self.table,
            self.engine,
            self.timing,
            num_gpu_blocks=self.num_gpu_blocks,
            replicas=self.replicas,
            router=self.router,
            sampling=sampling or Sampling(steps=True),
            keys=flat(self.keys(), len(self.table)) if self.engine.enable_prefix_caching else None,
        )


def flat(keys: TokenKeys, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = [keys.keys(row) for row in range(count)]
    starts = np.cumsum([0, *map(len, rows)])
    return np.array([key for row in rows for key in row], dtype=np.int64), starts


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
        rows.append({"arrival_s": clock / 64, "prompt_tokens": len(tokens), "output_tokens": length})
        sequences.append([*tokens, *answer])
    schema = {"arrival_s": pl.Float64, "prompt_tokens": pl.Int64, "output_tokens": pl.Int64}
    return pl.DataFrame(rows, schema=schema), sequences


@st.composite
def engines(draw):
    chunked = draw(st.sampled_from([True, True, True, False]))
    return Engine(
        max_model_len=draw(st.sampled_from([64, 64, 20])),
        block_size=draw(st.sampled_from([1, 2, 3, 4])),
        enable_prefix_caching=draw(st.sampled_from([True, True, False])),
        max_num_seqs=draw(st.sampled_from([1, 2, 3, 6, 9])),
        max_num_batched_tokens=draw(st.sampled_from([1, 2, 4, 9, 16, 40])) if chunked else 64,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 1, 3, 5])),
        scheduler_reserve_full_isl=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4])),
    )


@st.composite
def cases(draw, routers=("round-robin",)):
    table, sequences = draw(workloads())
    engine = draw(engines())
    largest = 48 // engine.block_size
    return Case(
        table=table,
        sequences=sequences,
        engine=engine,
        num_gpu_blocks=1
        + draw(st.sampled_from([largest // 4, largest // 3, largest // 2, largest, 3 * largest])),
        replicas=draw(st.integers(1, 3)),
        router=draw(st.sampled_from(routers)),
        timing=draw(st.sampled_from([TIMING, ROUGH])),
    )


def check(case: Case) -> None:
    expected, found = case.reference(), case.compiled()
    assert found.steps is not None
    assert_equal(found.steps.drop("energy_j"), expected.steps)
    assert_equal(found.requests, expected.requests)
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


many = hypothesis_settings(max_examples=10 * hypothesis_settings().max_examples)


@many
@given(cases())
def test_every_step_and_request_equals_the_reference(case):
    check(case)


@many
@given(cases(routers=("least-outstanding",)))
def test_routing_by_outstanding_requests_equals_the_reference(case):
    check(case)


# --- Sums on the way ------------------------------------------------------------------------------------


def power() -> SaturatingPower:
    return SaturatingPower(find_gpu("H100-SXM"))


@given(cases(routers=("round-robin", "least-outstanding")), st.sampled_from([0.001, 0.03, 0.25, 1.0, 100.0]))
def test_timelines_are_equal_at_any_interval(case, interval_s):
    start_s = case.table["arrival_s"][0]
    sampling = Sampling(start_s, interval_s, power().record(2), steps=True)
    expected, found = with_sums(case.reference(), power(), 2, sampling), case.compiled(sampling)
    assert found.end_s == expected.end_s
    assert found.peak_used_blocks == expected.peak_used_blocks
    window_s = (start_s, start_s if found.end_s is None else found.end_s)
    rows = [
        timeline_of(
            result.cells, replicas=case.replicas, window_s=window_s, interval_s=interval_s, idle_w=200.0
        )
        for result in (found, expected)
    ]
    assert_equal(*rows)
    assert found.steps is not None
    assert expected.steps is not None
    assert_equal(found.steps, expected.steps)


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
    played = simulate_reference(table, engine, timing, num_gpu_blocks=3000)
    found = simulate_compiled(table, engine, timing, num_gpu_blocks=3000, sampling=sampling)
    expected = with_sums(played, power(), 2, sampling)
    assert found.steps is not None
    assert expected.steps is not None
    assert_equal(found.steps, expected.steps)
    assert_equal(found.requests, expected.requests)


def test_full_buffers_change_nothing(monkeypatch):
    """Gaps, steps and intervals that fill their arrays many times over."""
    rng = np.random.default_rng(1)
    table = pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.5, 100)),
            "prompt_tokens": rng.integers(1, 400, 100),
            "output_tokens": rng.integers(1, 60, 100),
        }
    )
    engine = Engine(max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=64)
    results = []
    for size in (1 << 16, 3):
        monkeypatch.setattr(compiled, "GAPS_A_CALL", size)
        monkeypatch.setattr(compiled, "STEPS_A_CALL", size)
        monkeypatch.setattr(compiled, "ARRIVALS_A_CALL", size)
        for router in ("round-robin", "least-outstanding"):
            found = simulate_compiled(
                table, engine, ROUGH, num_gpu_blocks=90, replicas=2, router=router,
                sampling=Sampling(0.0, 0.01, power().record(1), steps=True),
            )  # fmt: skip
            results.append(found)
    for one, other in (results[0::2], results[1::2]):
        assert_equal(one.requests, other.requests)
        assert_equal(one.steps, other.steps)
        assert_equal(one.token_gaps, other.token_gaps)
        assert (one.cells == other.cells).all()


# --- The real scheduler's recorded runs -----------------------------------------------------------------


@pytest.mark.skipif(not ORACLE.exists(), reason="needs the recorded oracle in ../shared/oracle")
@pytest.mark.parametrize("run", [name for name in RUNS if name != "priority"])
def test_every_step_is_that_of_vllm_0_33(run):
    workload, num_gpu_blocks, settings = RUNS[run]
    rows = read_jsonl(ORACLE / "workloads" / f"{workload}.jsonl.gz")
    recorded = read_jsonl(ORACLE / "vllm-0.33.0" / f"{run}.steps.jsonl.gz")
    starts = {row["step"]: row["t"] for row in recorded}
    for row in rows:
        row.setdefault("arrival_s", starts[row["arrival_step"]] if "arrival_step" in row else None)
    rows.sort(key=lambda row: row["arrival_s"])
    table = pl.DataFrame(
        {
            "arrival_s": [row["arrival_s"] for row in rows],
            "prompt_tokens": [row.get("input_length") or len(row["prompt_token_ids"]) for row in rows],
            "output_tokens": [row["output_len"] for row in rows],
        }
    )
    engine = Engine(max_model_len=2**30, **settings)
    found = simulate_compiled(
        table, engine, AffineTiming(0.005, 2e-5, 1e-4, 1e-8), num_gpu_blocks=num_gpu_blocks,
        sampling=Sampling(steps=True, interval_s=60.0),
        keys=flat(TokenKeys([oracle_tokens(row) for row in rows]), len(rows)),
    )  # fmt: skip
    assert found.steps is not None
    steps = [
        {
            "t": step["start_s"], "dt": step["duration_s"],
            "running": step["running"], "waiting": step["waiting"],
            "free": num_gpu_blocks - 1 - step["used_blocks"], "evicted": step["evicted_blocks"],
            "preempted": step["preempted"], "tokens": step["prefill_tokens"] + step["decodes"],
        }
        for step in found.steps.iter_rows(named=True)
    ]  # fmt: skip
    assert steps == [
        {
            **{name: step[name] for name in ("t", "dt", "running", "waiting", "free", "evicted")},
            "preempted": len(step["preempted"]), "tokens": sum(entry[1] for entry in step["sched"]),
        }
        for step in recorded
    ]  # fmt: skip
    theirs = {row["id"]: row for row in read_jsonl(ORACLE / "vllm-0.33.0" / f"{run}.requests.jsonl.gz")}
    for row, mine in zip(rows, found.requests.iter_rows(named=True), strict=True):
        names = {
            "first_sched_s": "first_scheduled_s", "cached_tokens": "cached_tokens", "finish_s": "finish_s",
            "first_token_s": "first_token_s", "preemptions": "preemptions",
        }  # fmt: skip
        assert {name: mine[ours] for name, ours in names.items()} == {
            name: theirs[row["id"]][name] for name in names
        }


# --- What it does not cover -----------------------------------------------------------------------------

PLAIN = Engine(max_model_len=64, max_num_seqs=4, max_num_batched_tokens=16)


@pytest.mark.parametrize(
    ("changes", "columns", "options", "reason"),
    [
        ({}, {}, {}, None),
        ({}, {"parent": [None, 0]}, {}, None),
        ({}, {"parent": [None, 0], "think_s": [None, 1.0]}, {}, "wait for others"),
        ({}, {"output_tokens": [1, 2**31]}, {}, "32 bits"),
        ({}, {}, {"max_concurrency": 3}, "max_concurrency"),
        ({"scheduling_policy": "priority"}, {}, {}, "priority"),
        ({"kv_cache": False}, {}, {}, "kv_cache is off"),
        ({"enable_chunked_prefill": False}, {}, {}, "chunked prefill"),
        ({"block_size": 512}, {}, {}, "block_size"),
        ({}, {}, {"router": "mine"}, "router mine"),
        ({}, {}, {"timing": OracleStepTime()}, "step-time model"),
    ],
)
def test_it_says_what_it_does_not_cover(changes, columns, options, reason):
    table = pl.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": 5, "output_tokens": 2}).with_columns(
        pl.Series(name, values) for name, values in columns.items()
    )
    arguments: dict[str, Any] = {"router": "round-robin", **options}
    timing = arguments.pop("timing", TIMING)
    found = covers(table, PLAIN.model_copy(update=changes), timing, **arguments)
    assert (found is None) if reason is None else (reason in (found or ""))


def test_indices_stay_in_bounds(tmp_path):
    """Numba checks none by default: an index too far would spoil memory silently."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    chosen = "equals_the_reference or full_buffers"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
