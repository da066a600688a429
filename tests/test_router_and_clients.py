"""Who sends requests when, and which replica serves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.scenario import Engine, RouterName
from kavier.simulation.clients import Clients
from kavier.simulation.reference import SimulationResult, make_requests, simulate_reference
from kavier.simulation.replica import Replica
from kavier.simulation.request import Request
from kavier.simulation.router import (
    PLANS,
    ROUTERS,
    Planned,
    draw_pairs,
    make_router,
    router_rng,
    session_numbers,
)
from kavier.timing.compiled import AffineTiming
from kavier.timing.step import StepCost, StepWork, UnitCosts
from kavier.workload.table import SCHEMA


class OneSecond:
    """Every step takes a second."""

    level = "test"

    def cost(self, work: StepWork) -> StepCost:
        return StepCost(1.0, 0.0, 0.0)

    def unit_costs(self, work: StepWork) -> UnitCosts:
        return AffineTiming(1.0, 0.0, 0.0, 0.0).unit_costs(work)


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
    engine = Engine(
        max_model_len=1000, max_num_seqs=seats, max_num_batched_tokens=1000, async_scheduling=False
    )
    return simulate_reference(workload, engine, OneSecond(), num_gpu_blocks=num_gpu_blocks, **settings)


# --- Routers that look at nothing -----------------------------------------------------------------------


def planned(name: str, workload: pl.DataFrame, replicas: int, seed: int = 0) -> list[int]:
    targets: list[int] = PLANS[name](workload, replicas, router_rng(seed)).targets.tolist()
    return targets


def sessions(*names: str | None) -> pl.DataFrame:
    return table(*[row(0.0, session_id=name) for name in names])


def test_a_scenario_may_name_every_router_there_is():
    assert sorted(get_args(RouterName)) == sorted([*PLANS, *ROUTERS])


names_of_sessions = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=20)


@given(st.sampled_from(sorted(PLANS)), names_of_sessions, st.integers(1, 9), st.integers(0, 5))
def test_a_plan_names_a_replica_for_every_request_and_always_the_same(name, names, replicas, seed):
    targets = planned(name, sessions(*names), replicas, seed)
    assert len(targets) == len(names)
    assert set(targets) <= set(range(replicas))
    assert planned(name, sessions(*names), replicas, seed) == targets


def test_round_robin_takes_turns_in_the_order_of_arrivals_at_the_router():
    """Row 1 never arrives: its turn is that of the next that does."""
    router = make_router("round-robin", table(*[row(0.0)] * 5), 3, seed=0)
    requests = [Request(number, 0.0, 1, 1) for number in (0, 4, 2, 3)]
    assert [router.route(request, fleet(9, 0, 5)) for request in requests] == [0, 1, 2, 0]


def test_random_depends_on_the_seed_and_uses_all_replicas_alike():
    workload = table(*[row(0.0)] * 3000)
    targets = planned("random", workload, 3, seed=1)
    assert targets != planned("random", workload, 3, seed=2)
    assert all(abs(count - 1000) < 150 for count in np.bincount(targets))  # 5.8 standard deviations


@given(st.sampled_from(["session-affine", "consistent-hash"]), names_of_sessions, st.integers(1, 9))
def test_a_session_stays_with_its_replica(name, names, replicas):
    targets = planned(name, sessions(*names), replicas)
    for session in set(names) - {None}:
        assert len({target for target, named in zip(targets, names, strict=True) if named == session}) == 1


def test_session_affine_deals_out_sessions_in_the_order_of_their_first_requests():
    assert planned("session-affine", sessions("b", "a", None, "b", None, "a"), 3) == [0, 1, 2, 0, 0, 1]


def test_session_affine_goes_by_the_row_of_the_table_and_not_by_turns():
    router = make_router("session-affine", sessions("a", "b", "a"), 2, seed=0)
    assert isinstance(router, Planned)
    assert [router.route(Request(number, 0.0, 1, 1), fleet(0, 0)) for number in (2, 1, 0)] == [0, 1, 0]


def test_without_session_ids_a_session_is_the_request_it_goes_back_to():
    workload = table(row(0.0), row(0.0), row(0.0, parent=0), row(0.0, parent=2), row(0.0, parent=1))
    assert session_numbers(workload).tolist() == [0, 1, 0, 0, 1]
    assert session_numbers(table(row(0.0), row(0.0))).tolist() == [0, 1]


@given(st.integers(2, 60))
def test_a_session_of_many_turns_is_one_session(turns):
    chain = table(*[row(0.0, parent=turn - 1 if turn else None) for turn in range(turns)])
    assert session_numbers(chain).tolist() == [0] * turns


@given(st.integers(1, 20))
def test_when_the_fleet_grows_a_session_stays_or_moves_to_the_new_replica(replicas):
    workload = sessions(*[f"session {number}" for number in range(300)])
    before = planned("consistent-hash", workload, replicas)
    after = planned("consistent-hash", workload, replicas + 1)
    moved = [now for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {replicas}
    assert len(moved) < 2 * 300 / (replicas + 1) + 10


# --- Routers that look at replicas ------------------------------------------------------------------------


@dataclass
class Looks:
    """What routers see of a replica of 10 blocks of 4 tokens."""

    num_waiting: int = 0
    num_running: int = 0
    num_used_blocks: int = 0
    matched: int = 0
    block_size: int = 4
    num_blocks: int = 10
    scheduler: Looks = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = self

    @property
    def num_outstanding(self) -> int:
        return self.num_waiting + self.num_running

    def matched_blocks(self, request: Request) -> int:
        assert request is ANY
        return self.matched


ANY = Request(0, 0.0, 40, 1)


def fleet(*running: int) -> list[Replica]:
    return looking(*[Looks(num_running=count) for count in running])


def looking(*replicas: Looks) -> list[Replica]:
    return cast("list[Replica]", replicas)


def chosen_by(name: str, replicas: list[Replica]) -> int:
    return make_router(name, table(row(0.0)), len(replicas), seed=0).route(ANY, replicas)


@given(st.sampled_from(sorted(ROUTERS)), st.lists(st.builds(
    Looks, *[st.integers(0, 90)] * 2, num_used_blocks=st.integers(0, 10), matched=st.integers(0, 9)
), min_size=1, max_size=6))  # fmt: skip
def test_a_router_chooses_a_replica_that_no_other_beats_in_all_it_looks_at(name, seen):
    chosen = seen[chosen_by(name, looking(*seen))]
    for other in seen:
        worse = [
            chosen.num_waiting > other.num_waiting,
            chosen.num_running > other.num_running,
            chosen.num_used_blocks > other.num_used_blocks,
            chosen.matched < other.matched,
        ]
        assert not all(worse) or name == "power-of-two-choices"


@pytest.mark.parametrize("name", [*sorted(PLANS), *sorted(ROUTERS)])
def test_a_lone_replica_serves_all(name):
    result = run(table(*[row(0.0, 3)] * 5), router=name)
    assert result.requests["replica"].to_list() == [0] * 5


@pytest.mark.parametrize(("counts", "chosen"), [((2, 1, 3), 1), ((1, 0, 0), 1), ((4, 4, 4), 0), ((0,), 0)])
def test_least_outstanding_takes_the_first_of_the_least_loaded(counts, chosen):
    assert chosen_by("least-outstanding", fleet(*counts)) == chosen


def test_of_two_replicas_drawn_at_random_the_less_loaded_is_taken():
    pairs = draw_pairs(500, 4, router_rng(3)).tolist()
    router = make_router("power-of-two-choices", table(*[row(0.0)] * 500), 4, seed=3)
    found = [router.route(ANY, fleet(5, 1, 1, 0)) for _ in pairs]
    loads = (5, 1, 1, 0)
    assert found == [first if loads[first] <= loads[second] else second for first, second in pairs]
    assert 0 not in found


@given(st.integers(1, 9), st.integers(0, 9))
def test_two_replicas_drawn_are_different_ones_and_all_are_drawn(replicas, seed):
    pairs = draw_pairs(2000, replicas, router_rng(seed)).tolist()
    different = {(first, second) for first, second in pairs}
    everyone = range(replicas)
    assert different == {(i, j) for i in everyone for j in everyone if i != j or replicas == 1}


def test_least_kv_used_goes_by_blocks_then_by_requests():
    fullest = Looks(num_used_blocks=3)
    assert chosen_by("least-kv-used", looking(fullest, Looks(5, 5, 2), Looks(1, 1, 2), Looks(1, 1, 2))) == 2


def test_the_longest_prefix_match_wins_however_loaded():
    assert chosen_by("longest-prefix-match", looking(Looks(), Looks(80, 9, 10, matched=1))) == 1
    equals = Looks(2, matched=4), Looks(1, matched=4), Looks(1, matched=4), Looks(0, matched=3)
    assert chosen_by("longest-prefix-match", looking(*equals)) == 1


@pytest.mark.parametrize(("matched", "chosen"), [(3, 0), (4, 1)])
def test_cache_aware_wants_more_than_three_tenths_of_the_prompt(matched, chosen):
    """Of 40 tokens: 12 are not more than 0.3, 16 are."""
    assert chosen_by("cache-aware", looking(Looks(), Looks(num_running=5, matched=matched))) == chosen


@pytest.mark.parametrize(
    ("least", "most", "chosen"),
    [
        (0, 64, 1),  # not more than 64 apart
        (0, 65, 0),
        (130, 195, 1),  # 65 apart, but not more than 1.5 times
        (129, 194, 0),
    ],
)
def test_cache_aware_forgets_the_cache_while_loads_are_unbalanced(least, most, chosen):
    replicas = looking(Looks(num_running=least), Looks(num_running=most, matched=9))
    assert chosen_by("cache-aware", replicas) == chosen


def test_llm_d_weighs_prefix_queue_and_free_memory():
    """Scores by hand, of 3 x hits + 2 x short queue + 2 x free blocks."""
    full = Looks(num_waiting=4, num_used_blocks=10, matched=10)  # 3 + 0 + 0
    half = Looks(num_waiting=2, num_used_blocks=5, matched=5)  # 1.5 + 1 + 1
    calm = Looks(num_waiting=0, num_used_blocks=5, matched=0)  # 0 + 2 + 1
    assert chosen_by("llm-d", looking(full, half, calm)) == 1
    assert chosen_by("llm-d", looking(full, calm)) == 1  # 3 to 3: the second has fewer outstanding
    lone_queue = Looks(num_waiting=4, matched=1), Looks(num_waiting=4, num_used_blocks=2)  # 5.3 to 4.6
    assert chosen_by("llm-d", looking(*lone_queue)) == 0


# --- Clients, and the order of what happens at one instant -----------------------------------------------


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
