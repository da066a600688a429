"""Who sends requests when, and which replica serves them."""

from __future__ import annotations

from typing import Any, cast

import polars as pl
import pytest

from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.reference import SimulationResult, make_requests, simulate_reference
from kavier.simulation.replica import Replica
from kavier.simulation.request import Request
from kavier.simulation.router import LeastOutstanding, RoundRobin
from kavier.timing.step import StepCost, StepWork
from kavier.workload.table import SCHEMA


class OneSecond:
    """Every step takes a second."""

    level = "test"

    def cost(self, work: StepWork) -> StepCost:
        return StepCost(1.0, 0.0, 0.0)


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    names = [name for name in SCHEMA if any(name in row for row in rows)]
    return pl.DataFrame(
        [{name: row.get(name) for name in names} for row in rows], schema={n: SCHEMA[n] for n in names}
    )


def row(arrival_s: float, output: int = 1, **more: Any) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "prompt_tokens": more.pop("prompt", 4), "output_tokens": output, **more}


def run(
    workload: pl.DataFrame, *, num_gpu_blocks: int = 100, seats: int = 8, **settings: Any
) -> SimulationResult:
    engine = Engine(max_model_len=1000, max_num_seqs=seats, max_num_batched_tokens=1000)
    return simulate_reference(workload, engine, OneSecond(), num_gpu_blocks=num_gpu_blocks, **settings)


class Outstanding:
    def __init__(self, count: int) -> None:
        self.num_outstanding = count


ANY = Request(0, 0.0, 1, 1)


def fleet(*counts: int) -> list[Replica]:
    return cast("list[Replica]", [Outstanding(count) for count in counts])


def test_round_robin_takes_turns_whatever_the_load():
    router = RoundRobin()
    assert [router.route(ANY, fleet(9, 0, 5)) for _ in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(("counts", "chosen"), [((2, 1, 3), 1), ((1, 0, 0), 1), ((4, 4, 4), 0), ((0,), 0)])
def test_least_outstanding_takes_the_first_of_the_least_loaded(counts, chosen):
    assert LeastOutstanding().route(ANY, fleet(*counts)) == chosen


def test_least_outstanding_counts_waiting_requests_too():
    result = run(table(*[row(0.0)] * 4), seats=1, replicas=2, router="least-outstanding")
    assert result.requests["replica"].to_list() == [0, 1, 0, 1]


def test_a_router_sees_what_has_finished_at_that_instant():
    workload = table(row(0.0, 3), row(0.0, 1), row(1.0))
    assert run(workload, replicas=2, router="least-outstanding").requests["replica"].to_list() == [0, 1, 1]


def test_a_prompt_refused_by_the_api_server_takes_no_turn_of_the_router():
    result = run(table(row(0.0), row(0.0, prompt=1000), row(0.0)), replicas=2)
    assert result.requests["status"].to_list() == ["finished", "rejected_context", "finished"]
    assert result.requests["replica"].to_list() == [0, None, 1]


def test_a_step_serves_all_requests_that_have_arrived_by_its_start():
    result = run(table(row(0.0, 2), row(0.5), row(1.0), row(1.5)))
    assert result.requests["first_scheduled_s"].to_list() == [0.0, 1.0, 1.0, 2.0]
    assert result.steps["start_s"].to_list() == [0.0, 1.0, 2.0]


def test_replicas_run_at_the_same_time():
    result = run(table(row(0.0), row(0.5)), replicas=2)
    assert result.requests["finish_s"].to_list() == [1.0, 1.5]


def test_a_follow_up_arrives_its_think_time_after_its_parent_has_finished():
    workload = table(row(0.0, 3), row(0.0, parent=0, think_s=0.25), row(0.0, parent=1, think_s=0.0))
    result = run(workload)
    assert result.requests["arrival_s"].to_list() == [0.0, 3.25, 4.25]
    assert result.requests["finish_s"].to_list() == [3.0, 4.25, 5.25]


def test_a_parent_without_think_time_only_shares_its_prefix():
    assert run(table(row(0.0, 3), row(0.5, parent=0))).requests["arrival_s"].to_list() == [0.0, 0.5]


@pytest.mark.parametrize("prompt", [1000, 800])
def test_follow_ups_of_a_rejected_request_are_still_sent(prompt):
    """1000 tokens are over max_model_len, 800 over the 9 blocks of KV memory."""
    workload = table(row(2.0, prompt=prompt), row(0.0, parent=0, think_s=3.0))
    result = run(workload, num_gpu_blocks=10)
    assert result.requests["status"][0].startswith("rejected")
    assert result.requests["arrival_s"].to_list() == [2.0, 5.0]
    assert result.requests["status"][1] == "finished"


def test_a_rejected_request_gives_its_seat_back():
    workload = table(row(0.0, prompt=1000), row(0.0, prompt=800), row(0.0), row(0.0))
    result = run(workload, num_gpu_blocks=10, max_concurrency=1)
    assert result.requests["status"].to_list() == ["rejected_context", "rejected_kv", "finished", "finished"]


def test_with_max_concurrency_one_requests_follow_one_another():
    result = run(table(row(0.0, 2), row(0.0, 1), row(0.5, 3), row(9.0)), max_concurrency=1)
    assert result.requests["arrival_s"].to_list() == [0.0, 2.0, 3.0, 9.0]
    assert result.requests["finish_s"].to_list() == [2.0, 3.0, 6.0, 10.0]


def test_who_was_held_back_goes_before_a_follow_up_that_becomes_due_when_a_seat_is_free():
    workload = table(
        row(0.0), row(0.0, parent=0, think_s=0.0), row(0.0), row(0.0)
    )  # 2 and 3 are held back while 0 runs; its follow-up 1 comes after them
    result = run(workload, max_concurrency=1)
    assert result.requests["arrival_s"].to_list() == [0.0, 3.0, 1.0, 2.0]


def test_requests_due_at_once_are_sent_in_table_order():
    workload = table(row(1.0), row(0.5), row(1.0), row(0.5))
    requests, _ = make_requests(workload, 1000)
    clients = Clients(requests, workload)
    assert clients.next_s == 0.5
    sent = []
    while (request := clients.send(1.0)) is not None:
        sent.append(request.row)
    assert sent == [1, 3, 0, 2]
    assert clients.next_s == float("inf")


def test_an_answer_that_passes_max_model_len_is_cut_there_and_counted():
    result = run(table(row(0.0, 10, prompt=995), row(0.0, 5, prompt=995)))
    assert result.requests["output_tokens"].to_list() == [5, 5]
    assert result.truncated == 1


def test_progress_is_told_of_every_ended_request():
    told: list[int] = []
    run(table(row(0.0), row(0.0, prompt=1000), row(0.0, 2)), progress=told.append)
    assert told == [1, 2, 3]
