"""Closed loops in the compiled engine: at most so many requests in flight, and never fewer than there may be.

That they equal those of the reference engine, `test_kernel.py` tells. Here nothing is asked of that one.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kavier.scenario import Engine
from kavier.simulation.compiled import CompiledResult, simulate_compiled
from kavier.simulation.router import PLANS, ROUTERS
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import AffineTiming
from tests.test_kernel import TIMING, Case, assert_equal, cases
from tests.timelines import small_pieces

many = hypothesis_settings(max_examples=10 * hypothesis_settings().max_examples)
any_router = cases(routers=[*sorted(PLANS), *sorted(ROUTERS)], most_replicas=4)


def limited(case: Case, max_concurrency: int | None) -> CompiledResult:
    case.options["max_concurrency"] = max_concurrency
    return case.compiled()


def sent_by_hand(due_s: list[float], requests: pl.DataFrame, limit: int) -> list[float]:
    """When a semaphore lets requests go, one after the other, that end when these did."""
    sent_s: list[float] = []
    ends_s: list[float] = []
    for row, finish_s in enumerate(requests["finish_s"].to_list()):
        at_s = max([due_s[row], *sent_s[-1:]])
        if row >= limit:
            at_s = max(at_s, sorted(ends_s)[row - limit])
        sent_s.append(at_s)
        ends_s.append(at_s if finish_s is None else finish_s)
    return sent_s


@many
@given(any_router, st.integers(1, 6))
def test_a_request_is_sent_as_soon_as_a_place_is_free(case, limit):
    requests = limited(case, limit).requests
    assume("rejected_kv" not in requests["status"])  # nobody tells when those ended
    due_s = case.table["arrival_s"].to_list()
    assert requests["arrival_s"].to_list() == sent_by_hand(due_s, requests, limit)


@many
@given(any_router, st.integers(1, 6))
def test_never_more_than_the_limit_are_in_flight(case, limit):
    requests = limited(case, limit).requests.filter(pl.col("finish_s").is_not_null())
    for at_s in requests["arrival_s"]:
        assert ((requests["arrival_s"] <= at_s) & (requests["finish_s"] > at_s)).sum() <= limit


@many
@given(any_router, st.integers(0, 3))
def test_a_limit_that_nobody_reaches_changes_nothing(case, more):
    open_loop, closed = limited(case, None), limited(case, len(case.table) + more)
    for name in ("requests", "steps", "token_gaps"):
        assert_equal(getattr(closed, name), getattr(open_loop, name))


@many
@given(any_router)
def test_of_one_at_a_time_each_begins_when_the_one_before_has_ended(case):
    requests = limited(case, 1).requests
    assume(set(requests["status"]) == {"finished"})
    ends_s = [0.0, *requests["finish_s"]]
    for due_s, sent_s, before_s in zip(
        case.table["arrival_s"], requests["arrival_s"], ends_s[:-1], strict=True
    ):
        assert sent_s == max(due_s, before_s)


# --- By hand --------------------------------------------------------------------------------------------

SECOND = AffineTiming(1.0, 0.0, 0.0, 0.0)
TOO_LONG, TOO_BIG = 1000, 800
"""Prompts over max_model_len, and over the 9 blocks of KV memory."""


def play(rows: list[tuple[float, int, int]], **options: Any) -> pl.DataFrame:
    """Of (arrival, prompt, output); every step takes a second."""
    table = pl.DataFrame(rows, ["arrival_s", "prompt_tokens", "output_tokens"], orient="row")
    engine = Engine(max_model_len=1000, max_num_seqs=8, max_num_batched_tokens=1000, async_scheduling=False)
    found = simulate_compiled(
        table, engine, SECOND, num_gpu_blocks=10, sampling=Sampling(steps=True), **options
    )
    return found.requests


def test_places_are_given_in_the_order_of_the_trace():
    found = play([(0.0, 4, 3), (0.0, 4, 1), (0.0, 4, 2), (0.5, 4, 1), (9.0, 4, 1)], max_concurrency=2)
    assert found["arrival_s"].to_list() == [0.0, 0.0, 1.0, 3.0, 9.0]
    assert found["finish_s"].to_list() == [3.0, 1.0, 3.0, 4.0, 10.0]


@pytest.mark.parametrize(("prompt", "status"), [(TOO_LONG, "rejected_context"), (TOO_BIG, "rejected_kv")])
@pytest.mark.parametrize("router", ["round-robin", "least-outstanding"])
def test_a_rejected_request_waits_for_a_place_and_gives_it_back_at_once(router, prompt, status):
    found = play(
        [(0.0, 4, 2), (0.0, prompt, 1), (0.0, prompt, 1), (0.0, 4, 1)], max_concurrency=1, router=router
    )
    assert found["status"].to_list() == ["finished", status, status, "finished"]
    assert found["arrival_s"].to_list() == [0.0, 2.0, 2.0, 2.0]
    assert found["finish_s"].to_list() == [2.0, None, None, 3.0]


def test_refused_by_the_api_server_it_takes_no_turn_of_the_router():
    found = play([(0.0, 4, 1), (0.0, TOO_LONG, 1), (0.0, 4, 1)], max_concurrency=2, replicas=2)
    assert found["replica"].to_list() == [0, None, 1]


def test_a_place_that_one_replica_frees_is_taken_at_another():
    found = play([(0.0, 4, 9), (0.0, 4, 2), (0.0, 4, 1), (0.0, 4, 1)], max_concurrency=2, replicas=2)
    assert found["replica"].to_list() == [0, 1, 0, 1]
    assert found["arrival_s"].to_list() == [0.0, 0.0, 2.0, 3.0]
    assert found["finish_s"].to_list() == [9.0, 2.0, 3.0, 4.0]


def test_a_buffer_that_is_full_in_the_midst_of_an_instant_changes_nothing():
    """One replica rejects a request, and another needs room to begin its step, before anybody is sent."""
    rows = [
        (0.0, 3, 1), (0.0, 2, 4), (0.25, 9, 7), (0.25, 28, 1), (0.25, 9, 6), (0.25, 6, 2), (0.25, 10, 2),
        (0.265625, 1, 5), (0.515625, 11, 5),
    ]  # fmt: skip
    table = pl.DataFrame(rows, ["arrival_s", "prompt_tokens", "output_tokens"], orient="row")
    engine = Engine(
        max_model_len=64, max_num_seqs=2, max_num_batched_tokens=4, block_size=2, async_scheduling=False,
        enable_prefix_caching=False, scheduling_policy="priority",
    )  # fmt: skip

    def play() -> CompiledResult:
        return simulate_compiled(
            table, engine, TIMING, num_gpu_blocks=7, replicas=3, max_concurrency=3,
            sampling=Sampling(interval_s=0.01, steps=True),
        )  # fmt: skip

    whole = play()
    with small_pieces(1):
        in_pieces = play()
    for name in ("requests", "steps", "token_gaps"):
        assert_equal(getattr(in_pieces, name), getattr(whole, name))
