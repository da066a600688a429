"""Asynchronous scheduling by hand: when each step is decided, when it runs, and when tokens arrive.

Step k + 1 is decided when step k begins. Every step takes a second. A step is written as (decided, begins,
length, tokens computed).
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kavier.scenario import Engine
from kavier.simulation.compiled import simulate_compiled
from kavier.simulation.reference import SimulationResult, simulate_reference
from kavier.simulation.replica import SLEEP_S
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import AffineTiming

SECOND = AffineTiming(1.0, 0.0, 0.0, 0.0)
NOTHING = 0.0


def run(*rows: tuple[float, int, int], **settings: Any) -> SimulationResult:
    """(arrival, prompt, output) of each request, in an engine of 4-token blocks."""
    table = pl.DataFrame(
        list(rows), schema={"arrival_s": pl.Float64, "prompt_tokens": pl.Int64, "output_tokens": pl.Int64},
        orient="row",
    )  # fmt: skip
    options: dict[str, Any] = {"num_gpu_blocks": 100, "as_recorded": False}
    options |= {name: settings.pop(name) for name in list(settings) if name in options}
    plain: dict[str, Any] = {
        "max_model_len": 1000,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 4,
    }
    engine = Engine(**{**plain, "async_scheduling": True, **settings})
    found = simulate_reference(table, engine, SECOND, **options)
    compiled = simulate_compiled(table, engine, SECOND, sampling=Sampling(steps=True), **options)
    assert found.requests.equals(compiled.requests)
    return found


def steps(result: SimulationResult) -> list[tuple[float, float, float, int]]:
    tokens = pl.col("prefill_tokens") + pl.col("decodes")
    return result.steps.select("scheduled_s", "start_s", "duration_s", tokens).rows()


def tokens_s(result: SimulationResult) -> list[tuple[float, float]]:
    """First and last token of each request."""
    return result.requests.select("first_token_s", "finish_s").rows()


def test_each_step_is_decided_when_the_one_before_it_begins():
    """A request alone: tokens at 1, 2 and 3 s, as in a synchronous engine."""
    result = run((0.0, 6, 3))
    assert steps(result) == [
        (0.0, 0.0, 1.0, 6),
        (0.0, 1.0, 1.0, 1),  # decided at once: its token is not known yet
        (1.0, 2.0, 1.0, 1),
        (2.0, 3.0, NOTHING, 0),  # the last token is in flight: nothing to do
        (3.0 + SLEEP_S, 3.0 + SLEEP_S, NOTHING, 0),  # the end is reported, after a sleep
    ]
    assert tokens_s(result) == [(1.0, 3.0)]


def test_in_a_synchronous_engine_each_step_is_decided_when_it_begins():
    result = run((0.0, 6, 3), async_scheduling=False)
    assert steps(result) == [(0.0, 0.0, 1.0, 6), (1.0, 1.0, 1.0, 1), (2.0, 2.0, 1.0, 1)]
    assert tokens_s(result) == [(1.0, 3.0)]


@pytest.mark.parametrize(("asynchronous", "first_token_s"), [(False, 3.0), (True, 4.0)])
def test_a_request_that_arrives_in_the_middle_of_a_step_waits_one_step_longer(asynchronous, first_token_s):
    """At 1.5 s the step from 2 s on has been decided; the next is decided at 2 s and begins at 3 s."""
    result = run((0.0, 6, 9), (1.5, 6, 1), async_scheduling=asynchronous)
    assert result.requests["first_scheduled_s"][1] == 2.0
    assert tokens_s(result) == [(1.0, 9.0), (first_token_s, first_token_s)]


def test_chunks_of_a_prompt_follow_one_another_without_a_gap():
    result = run((0.0, 6, 2), max_num_batched_tokens=4)
    assert steps(result)[:3] == [(0.0, 0.0, 1.0, 4), (0.0, 1.0, 1.0, 2), (1.0, 2.0, 1.0, 1)]
    assert tokens_s(result) == [(2.0, 3.0)]


def test_requests_that_arrive_together_share_the_first_step_and_a_later_one_misses_two():
    """The step that begins at 1 s was decided at 0 s, with the first."""
    result = run((0.0, 6, 3), (0.0, 6, 3), (0.25, 6, 1))
    assert result.requests["first_scheduled_s"].to_list() == [0.0, 0.0, 1.0]
    assert tokens_s(result) == [(1.0, 3.0), (1.0, 3.0), (3.0, 3.0)]


def test_an_idle_engine_begins_at_once():
    result = run((0.0, 6, 1), (10.0, 6, 1))
    assert tokens_s(result) == [(1.0, 1.0), (11.0, 11.0)]
    assert steps(result)[-3:-1] == [(10.0, 10.0, 1.0, 6), (10.0, 11.0, NOTHING, 0)]


def test_while_others_run_a_seat_changes_hands_without_a_sleep():
    """The first answer is known at 1 s: the third request joins the step that begins at 2 s."""
    result = run((0.0, 6, 1), (0.0, 6, 4), (0.0, 6, 1), max_num_seqs=2)
    assert result.requests["first_scheduled_s"].to_list() == [0.0, 0.0, 1.0]
    assert tokens_s(result) == [(1.0, 1.0), (1.0, 4.0), (3.0, 3.0)]


def test_a_victim_gets_its_token_in_flight_and_comes_back_for_the_rest():
    """4 blocks: two prompts of 8 fill them, so the step decided at 0 s preempts the second request."""
    result = run((0.0, 8, 2), (0.0, 8, 3), num_gpu_blocks=5, scheduler_reserve_full_isl=False)
    later_s = 2.0 + SLEEP_S  # the step decided at 1 s found no block for the second and was empty
    assert result.requests["preemptions"].to_list() == [0, 1]
    assert steps(result)[:4] == [
        (0.0, 0.0, 1.0, 16),
        (0.0, 1.0, 1.0, 1),
        (1.0, 2.0, NOTHING, 0),
        (later_s, later_s, 1.0, 5),  # of 8 tokens and the one delivered at 1 s, a block of 4 is still cached
    ]
    assert tokens_s(result) == [(1.0, 2.0), (1.0, later_s + 2.0)]


# --- The sleep behind an empty step -----------------------------------------------------------------------

AWAKE = ["0.25", "0.33"]
"""Releases that also sleep when all that is left are finished requests to be reported."""


@pytest.mark.parametrize("version", ["0.14", "0.20", *AWAKE])
@pytest.mark.parametrize(("as_recorded", "sleep_s"), [(False, SLEEP_S), (True, 0.0)])
def test_the_engine_sleeps_behind_an_empty_step_while_it_has_requests(version, as_recorded, sleep_s):
    """One seat: at 0 s, with the first request's only token in flight, nothing can be scheduled for 1 s on.

    The second request waits all the time. The loop of the recordings does not sleep here.
    """
    result = run(
        (0.0, 6, 1), (0.0, 6, 1), max_num_seqs=1, vllm_version=version, as_recorded=as_recorded,
    )  # fmt: skip
    later_s = 1.0 + sleep_s
    assert steps(result)[:3] == [(0.0, 0.0, 1.0, 6), (0.0, 1.0, NOTHING, 0), (later_s, later_s, 1.0, 6)]
    assert tokens_s(result) == [(1.0, 1.0), (later_s + 1.0, later_s + 1.0)]


@pytest.mark.parametrize(
    ("version", "as_recorded", "reported_s"),
    [("0.20", False, 1.0), ("0.33", False, 1.0 + SLEEP_S), ("0.20", True, 1.0), ("0.33", True, 1.0)],
)
def test_the_end_of_the_last_request_is_reported_by_an_empty_step(version, as_recorded, reported_s):
    result = run((0.0, 6, 1), vllm_version=version, as_recorded=as_recorded)
    assert steps(result) == [
        (0.0, 0.0, 1.0, 6),
        (0.0, 1.0, NOTHING, 0),
        (reported_s, reported_s, NOTHING, 0),
    ]


@pytest.mark.parametrize(
    ("version", "as_recorded", "begin_s"),
    [
        ("0.20", False, 1.0 + SLEEP_S / 2),  # it fell idle at 1 s
        ("0.33", False, 1.0 + SLEEP_S),  # it had something to report
        ("0.20", True, 1.0 + SLEEP_S),  # it has reported
        ("0.33", True, 1.0 + SLEEP_S),
    ],
)
def test_who_arrives_during_the_sleep_waits_for_its_end(version, as_recorded, begin_s):
    rows = (0.0, 6, 1), (1.0 + SLEEP_S / 2, 6, 1)
    result = run(*rows, vllm_version=version, as_recorded=as_recorded)
    assert result.requests["first_scheduled_s"].to_list() == [0.0, begin_s]
    assert result.requests["finish_s"].to_list() == [1.0, begin_s + 1.0]


@pytest.mark.parametrize(
    ("version", "as_recorded", "begin_s"),
    [("0.20", False, 1.0), ("0.33", False, 1.0 + SLEEP_S), ("0.20", True, 1.0), ("0.33", True, 1.0)],
)
def test_a_request_that_no_schedule_has_seen_keeps_nobody_awake(version, as_recorded, begin_s):
    """It arrives at 0.5 s, behind both decisions: the engine only knows of the one that ends at 1 s."""
    result = run((0.0, 6, 1), (0.5, 6, 1), vllm_version=version, as_recorded=as_recorded)
    assert result.requests["first_scheduled_s"].to_list() == [0.0, begin_s]
