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

from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.compiled import CompiledResult, Sampling, covers, simulate_compiled
from kavier.simulation.record import TableRecorder, requests_table
from kavier.simulation.reference import Simulation, SimulationResult, make_requests, make_scheduler
from kavier.simulation.replica import Replica
from kavier.simulation.router import ROUTERS
from kavier.timing.compiled import AffineTiming
from tests.oracle import ORACLE, RUNS, OracleStepTime, TokenKeys, read_jsonl

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
            requests_table(requests), recorder.steps(), recorder.token_gaps(), truncated, self.num_gpu_blocks - 1
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
    for row in range(draw(st.integers(1, max_size) | st.just(max_size))):
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
        num_gpu_blocks=1 + draw(st.sampled_from([largest // 4, largest // 3, largest // 2, largest, 3 * largest])),
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


def assert_equal(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert found.schema == expected.schema
    if not found.equals(expected, null_equal=True):
        for index, (mine, theirs) in enumerate(zip(found.rows(named=True), expected.rows(named=True), strict=False)):
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
