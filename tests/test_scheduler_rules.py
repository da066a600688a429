"""One rule of vLLM's scheduler a test, the steps written out by hand: of 0.33's, and what differs before.

A step is written as one (request, tokens, already computed) for each request of the batch, in order.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kavier.ecosystem.vllm_versions import RULES
from kavier.simulation.kv_cache_manager import KVCacheManager
from kavier.simulation.request import Request, Status
from kavier.simulation.scheduler import Scheduler, SchedulerConfig, Step

BLOCK = 4


def engine(
    num_blocks: int = 100,
    *,
    budget: int = 64,
    seats: int = 8,
    watermark: float = 0.0,
    version: str = "0.33",
    **config,
):
    """A scheduler with 4-token blocks, `num_blocks` of them usable."""
    rules = RULES[version]
    kv = KVCacheManager(
        num_blocks + 1, block_size=BLOCK, watermark=watermark, unhashed_first=rules.unhashed_first
    )
    config = {"scheduler_reserve_full_isl": rules.reserve_full_isl, **config}
    return Scheduler(
        SchedulerConfig(max_num_batched_tokens=budget, max_num_seqs=seats, rules=rules, **config), kv
    )


def request(row: int, prompt: int, output: int, *, keys=(), priority: int = 0, arrival_s: float = 0.0):
    made = Request(row, arrival_s, prompt, output, priority)
    made.block_keys = list(keys)
    return made


def batch(step: Step) -> list[tuple[int, int, int]]:
    return [(r.row, tokens, computed) for r, tokens, computed, _ in step.scheduled]


def play(scheduler: Scheduler, *requests: Request, steps: int) -> list[list[tuple[int, int, int]]]:
    """Add the requests and run some steps; their batches."""
    for added in requests:
        scheduler.add(added)
    batches = []
    for _ in range(steps):
        step = scheduler.schedule()
        batches.append(batch(step))
        scheduler.complete(step, 0.0)
        scheduler.kv.pool.check_integrity()
    return batches


def rows(requests: list[Request]) -> list[int]:
    return [r.row for r in requests]


def test_a_prompt_is_prefilled_in_chunks_and_then_decoded():
    assert play(engine(budget=8), request(0, 18, 3), steps=6) == [
        [(0, 8, 0)],
        [(0, 8, 8)],
        [(0, 2, 16)],  # samples token 1
        [(0, 1, 18)],
        [(0, 1, 19)],  # samples token 3, which never gets KV
        [],
    ]


def test_running_requests_come_first_and_the_rest_of_the_budget_admits():
    scheduler = engine(budget=8)
    assert play(scheduler, request(0, 4, 9), steps=1) == [[(0, 4, 0)]]
    assert play(scheduler, request(1, 20, 9), steps=2) == [[(0, 1, 4), (1, 7, 0)], [(0, 1, 5), (1, 7, 7)]]


def test_no_more_than_max_num_seqs_run():
    scheduler = engine(seats=1)
    assert play(scheduler, request(0, 4, 2), request(1, 4, 1), steps=3) == [
        [(0, 4, 0)],
        [(0, 1, 4)],
        [(1, 4, 0)],
    ]


def test_a_request_hits_blocks_that_another_computes_in_the_same_step():
    step = play(engine(), request(0, 10, 1, keys=[7, 8]), request(1, 11, 1, keys=[7, 8]), steps=1)
    assert step == [[(0, 10, 0), (1, 3, 8)]]


def test_a_prefix_hit_stops_at_the_first_block_that_differs():
    prompts = request(0, 13, 1, keys=[1, 2, 3]), request(1, 13, 1, keys=[1, 9, 3])
    assert play(engine(), *prompts, steps=1) == [[(0, 13, 0), (1, 9, 4)]]


def test_a_prompt_that_is_wholly_cached_leaves_its_last_block_to_recompute():
    scheduler = engine()
    assert play(scheduler, request(0, 8, 1, keys=[1, 2]), steps=1) == [[(0, 8, 0)]]
    assert play(scheduler, request(1, 8, 1, keys=[1, 2]), steps=1) == [[(1, 4, 4)]]
    assert play(scheduler, request(2, 9, 1, keys=[1, 2]), steps=1) == [[(2, 1, 8)]]


def test_hits_are_counted_on_first_admission_only():
    scheduler = engine()
    play(scheduler, request(0, 8, 1, keys=[1, 2]), steps=1)
    scheduler.add(request(1, 9, 2, keys=[1, 2]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (first.queried_tokens, first.hit_tokens) == (9, 8)
    assert (second.queried_tokens, second.hit_tokens) == (0, 0)


def test_a_resumed_request_is_not_counted_as_looked_up_again():
    scheduler = engine(4)
    play(scheduler, request(0, 8, 3), request(1, 8, 9), steps=3)  # 1 is preempted, 0 ends
    step = scheduler.schedule()
    assert batch(step) == [(1, 5, 4)]
    assert (step.queried_tokens, step.hit_tokens) == (0, 0)
    assert step.scheduled[0].request.num_cached_tokens == 0  # what the first admission found


def test_the_answer_of_a_request_is_cached_when_its_step_is_scheduled():
    scheduler = engine()
    play(scheduler, request(0, 6, 3, keys=[1, 2]), steps=2)  # computed 7 of 9 tokens: block 2 is not full
    scheduler.add(request(1, 12, 1, keys=[1, 2, 3]))
    assert batch(scheduler.schedule()) == [(0, 1, 7), (1, 4, 8)]  # 0 fills it in this very step


@pytest.mark.parametrize(
    ("version", "blocks"),
    [
        ("0.33", [3, 5, 2, 1, 4]),  # cached ones: the request that ended first, tail before head
        ("0.25", [3, 5, 2, 1, 4]),
        ("0.20", [5, 3, 2, 1, 4]),  # the block without hash is freed like any other, as the tail
        ("0.11", [5, 3, 2, 1, 4]),
    ],
)
def test_a_block_without_hash_is_reused_first_then_unused_ones_then_the_least_recently_used(version, blocks):
    scheduler = engine(5, version=version)
    first, second = request(0, 9, 1, keys=[1, 2]), request(1, 4, 1, keys=[3])
    play(scheduler, first, second, steps=1)  # blocks 1, 2 and the partial 3; block 4; block 5 never used
    third = request(2, 17, 1)
    scheduler.add(third)
    scheduler.schedule()
    assert third.blocks == blocks
    assert scheduler.num_evictions == 3


def test_a_hit_saves_a_block_from_eviction_and_renews_it():
    scheduler = engine(3)
    play(scheduler, request(0, 4, 1, keys=[1]), steps=1)
    play(scheduler, request(1, 4, 1, keys=[2]), steps=1)
    play(scheduler, request(2, 5, 1, keys=[1]), steps=1)  # uses key 1 again, and the third block
    play(scheduler, request(3, 5, 1, keys=[4]), steps=1)  # takes the third block, then evicts key 2
    assert scheduler.kv.pool.find(1) is not None
    assert scheduler.kv.pool.find(2) is None


def test_the_long_prefill_threshold_is_ignored_for_a_lone_request():
    alone = engine(long_prefill_token_threshold=5)
    assert play(alone, request(0, 12, 2), steps=1) == [[(0, 12, 0)]]
    together = engine(long_prefill_token_threshold=5)
    assert play(together, request(0, 12, 1), request(1, 5, 2), steps=4) == [
        [(0, 5, 0), (1, 5, 0)],
        [(0, 5, 5), (1, 1, 5)],
        [(0, 2, 10)],
        [],
    ]


@pytest.mark.parametrize("version", ["0.11", "0.14", "0.20", "0.25"])
def test_the_long_prefill_threshold_held_for_a_lone_request_before_0_33(version):
    alone = engine(long_prefill_token_threshold=5, version=version)
    assert play(alone, request(0, 12, 2), steps=3) == [[(0, 5, 0)], [(0, 5, 5)], [(0, 2, 10)]]


def test_without_chunked_prefill_a_prompt_waits_for_a_budget_that_holds_it():
    prompts = request(0, 6, 2), request(1, 6, 1), request(2, 1, 1)
    assert play(engine(budget=10, enable_chunked_prefill=False), *prompts, steps=2) == [
        [(0, 6, 0)],
        [(0, 1, 6), (1, 6, 0), (2, 1, 0)],  # request 2 fitted before, but nobody passes the head
    ]


def test_a_prompt_is_admitted_only_when_all_of_it_fits():

    def first_step(num_blocks: int, **config):
        scheduler = engine(num_blocks, budget=12, **config)
        return play(scheduler, request(0, 8, 9), request(1, 16, 1), steps=1)

    assert first_step(6) == [[(0, 8, 0), (1, 4, 0)]]
    assert first_step(5) == [[(0, 8, 0)]]
    assert first_step(5, scheduler_reserve_full_isl=False) == [[(0, 8, 0), (1, 4, 0)]]
    assert first_step(5, version="0.20") == [[(0, 8, 0)]]
    assert first_step(5, version="0.14") == [[(0, 8, 0), (1, 4, 0)]]


def test_full_sequence_admission_reserves_nothing():
    """Two prompts that fit one by one are both admitted, and then the later one is preempted."""
    scheduler = engine(5, budget=6)
    assert play(scheduler, request(0, 4, 9), request(1, 16, 1), steps=2) == [
        [(0, 4, 0), (1, 2, 0)],
        [(0, 1, 4), (1, 5, 2)],
    ]
    assert play(scheduler, steps=1) == [[(0, 1, 5), (1, 5, 7)]]
    step = scheduler.schedule()
    assert batch(step) == [(0, 1, 6)]
    assert rows(step.preempted) == [1]


def test_the_watermark_keeps_blocks_free_only_while_others_run():
    scheduler = engine(9, watermark=0.25)  # int(0.25 * 10) = 2 blocks; the null block is counted
    assert play(scheduler, request(0, 36, 1), steps=1) == [[(0, 36, 0)]]  # all nine: nobody runs
    assert play(scheduler, request(1, 4, 2), request(2, 28, 1), steps=1) == [[(1, 4, 0)]]  # 8 free, 7 + 2 > 8
    scheduler = engine(9, watermark=0.25)
    assert play(scheduler, request(1, 4, 2), request(2, 24, 1), steps=1) == [[(1, 4, 0), (2, 24, 0)]]


def test_the_last_to_be_admitted_is_preempted_and_nobody_is_admitted_in_that_step():
    scheduler = engine(4)
    prompts = request(0, 8, 9), request(1, 8, 9)
    assert play(scheduler, *prompts, steps=1) == [[(0, 8, 0), (1, 8, 0)]]
    scheduler.add(request(2, 1, 1))
    step = scheduler.schedule()
    assert batch(step) == [(0, 1, 8)]
    assert rows(step.preempted) == [1]
    assert scheduler.num_waiting == 2  # request 2 would have fitted
    scheduler.complete(step, 0.0)
    assert play(scheduler, steps=1) == [[(0, 1, 9)]]  # request 1 is the head again: 9 tokens, one block free


def test_a_preempted_request_resumes_behind_what_is_still_cached_and_keeps_its_answer():
    scheduler = engine(4)
    first, second = request(0, 8, 3), request(1, 8, 9)
    play(scheduler, first, second, steps=3)  # request 1 is preempted in step 2; request 0 ends in step 3
    assert (first.status, second.num_output_tokens, second.num_preemptions) == (Status.FINISHED, 1, 1)
    assert play(scheduler, steps=1) == [[(1, 5, 4)]]  # its second block was evicted


def test_of_several_victims_the_oldest_resumes_first():
    scheduler = engine(6)
    play(scheduler, request(0, 8, 9), request(1, 8, 9), request(2, 8, 9), steps=1)
    step = scheduler.schedule()
    assert batch(step) == [(0, 1, 8), (1, 1, 8)]
    assert rows(step.preempted) == [2]
    scheduler.complete(step, 0.0)
    play(scheduler, steps=3)  # both decode up to 12 tokens, 3 blocks each
    step = scheduler.schedule()
    assert (batch(step), rows(step.preempted)) == ([(0, 1, 12)], [1])
    assert scheduler.waiting.pop().row == 1
    assert scheduler.waiting.pop().row == 2


def test_a_priority_victim_that_was_already_scheduled_gives_its_budget_back():
    scheduler = engine(5, policy="priority")
    prompts = request(0, 6, 9, priority=2), request(1, 8, 9, priority=1), request(2, 1, 9, priority=1)
    play(scheduler, prompts[0], steps=1)
    play(scheduler, *prompts[1:], steps=1)  # 2 + 2 + 1 blocks: all are taken
    scheduler.config = replace(scheduler.config, max_num_batched_tokens=2)
    step = scheduler.schedule()
    # 0 is scheduled and needs no block; 1 needs one and takes those of 0; its token goes to 2.
    assert batch(step) == [(1, 1, 8), (2, 1, 1)]
    assert rows(step.preempted) == [0]


def test_the_priority_victim_is_the_least_urgent_and_of_those_the_latest():
    scheduler = engine(6, policy="priority")
    early, late = request(0, 8, 9, priority=1, arrival_s=1.0), request(1, 8, 9, priority=1, arrival_s=2.0)
    play(scheduler, early, late, request(2, 8, 9, priority=0, arrival_s=3.0), steps=1)
    step = scheduler.schedule()
    assert rows(step.preempted) == [1]
    assert batch(step) == [(2, 1, 8), (0, 1, 8)]


@pytest.mark.parametrize(
    ("version", "rest"), [("0.33", [(1, 1, 7)]), ("0.25", []), ("0.20", []), ("0.14", [])]
)
def test_by_priority_a_request_that_preempts_itself_does_not_stop_those_behind_it(version, rest):
    scheduler = engine(4, policy="priority", version=version)
    play(scheduler, request(0, 7, 9, priority=1), steps=1)
    play(scheduler, request(1, 7, 9, priority=0), steps=1)  # 0 computes its 8th token
    step = scheduler.schedule()  # 0 needs a third block, and nobody is less urgent than 0
    assert batch(step) == rest
    assert rows(step.preempted) == [0]


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("0.33", [(1, 1, 4), (2, 1, 4), (3, 1, 3)]),
        ("0.25", [(1, 1, 4), (3, 1, 3)]),
        ("0.14", [(1, 1, 4), (3, 1, 3)]),
    ],
)
def test_a_victim_without_a_part_in_the_step_cost_another_its_turn_before_0_33(version, found):
    """The last token of request 0 is in flight, so it has no part; its blocks go to request 1."""
    scheduler = engine(5, policy="priority", version=version, async_scheduling=True)
    scheduler.add(request(0, 4, 2, priority=9))
    first = scheduler.schedule()
    for row, prompt in ((1, 4), (2, 4), (3, 3)):
        scheduler.add(request(row, prompt, 9))
    second = scheduler.schedule()
    assert batch(second) == [(0, 1, 4), (1, 4, 0), (2, 4, 0), (3, 3, 0)]  # 2 + 1 + 1 + 1 blocks
    scheduler.complete(first, 0.0)
    third = scheduler.schedule()
    assert batch(third) == found
    assert rows(third.preempted) == [0]


@pytest.mark.parametrize(("policy", "second"), [("fcfs", 1), ("priority", 2)])
def test_the_queue_is_first_come_first_served_or_by_priority(policy, second):
    scheduler = engine(seats=1, policy=policy)
    prompts = request(0, 4, 1, priority=9), request(1, 4, 1, priority=5), request(2, 4, 1, priority=-1)
    play(scheduler, prompts[0], steps=1)
    batches = play(scheduler, *prompts[1:], steps=2)
    assert batches[0] == [(second, 4, 0)]
    assert batches[1] == [(3 - second, 4, 0)]


def test_a_request_larger_than_kv_memory_is_rejected_and_blocks_nobody():
    scheduler = engine(3)
    large = request(0, 13, 1)
    scheduler.add(large)
    scheduler.add(request(1, 12, 1))
    step = scheduler.schedule()
    assert batch(step) == [(1, 12, 0)]
    assert step.rejected == [large]
    assert large.status is Status.REJECTED_KV


def test_a_request_that_outgrows_kv_memory_is_rejected_when_it_would_resume():
    scheduler = engine(3)
    growing = request(0, 11, 9)
    assert play(scheduler, growing, steps=4) == [[(0, 11, 0)], [(0, 1, 11)], [], []]
    assert growing.status is Status.REJECTED_KV
    assert (growing.num_output_tokens, growing.num_preemptions) == (2, 1)
    assert scheduler.num_used_blocks == 0


# --- Asynchronous: a step is scheduled before the one before it ends --------------------------------------


def test_a_token_that_is_not_known_yet_is_computed_and_the_last_one_ends_the_request():
    scheduler = engine(async_scheduling=True)
    scheduler.add(request(0, 6, 3))
    steps, finished = [scheduler.schedule()], []
    for _ in range(3):
        steps.append(scheduler.schedule())
        finished.append(rows(scheduler.complete(steps[-2], 0.0)))
    assert [batch(step) for step in steps] == [[(0, 6, 0)], [(0, 1, 6)], [(0, 1, 7)], []]
    assert [step.work.sampled for step in steps] == [1, 1, 1, 0]
    assert finished == [[], [], [0]]
    assert scheduler.num_used_blocks == 0


def test_a_finished_request_keeps_its_seat_until_its_last_step_has_ended():
    scheduler = engine(seats=1, async_scheduling=True)
    scheduler.add(request(0, 4, 1))
    scheduler.add(request(1, 4, 1))
    first = scheduler.schedule()
    assert batch(scheduler.schedule()) == []
    scheduler.complete(first, 0.0)
    assert batch(scheduler.schedule()) == [(1, 4, 0)]


def test_a_block_that_a_token_in_flight_fills_is_hit_when_its_step_has_ended():
    """Request 0 fills its second block with its second token, in its second step."""
    scheduler = engine(async_scheduling=True)
    scheduler.add(request(0, 6, 3, keys=[1, 2]))
    first, second = scheduler.schedule(), scheduler.schedule()
    scheduler.complete(first, 0.0)
    third = scheduler.schedule()
    assert batch(third) == [(0, 1, 7)]  # the eighth token, which is not known
    assert scheduler.kv.pool.find(2) is None
    scheduler.complete(second, 0.0)  # now it is, but the step that computes it has not ended
    assert scheduler.kv.pool.find(2) is None
    scheduler.complete(third, 0.0)
    assert scheduler.kv.pool.find(2) is not None


def preempted_in_flight(output_length: int) -> tuple[Scheduler, Request, Step]:
    """The second of two requests is preempted while its first token is in flight, in the step returned."""
    scheduler = engine(4, async_scheduling=True)
    early, late = request(0, 8, 9), request(1, 8, output_length)
    scheduler.add(early)
    scheduler.add(late)
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert batch(first) == [(0, 8, 0), (1, 8, 0)]
    assert (batch(second), rows(second.preempted)) == ([(0, 1, 8)], [1])
    return scheduler, late, first


def test_a_token_in_flight_outlives_a_preemption_and_is_recomputed():
    scheduler, late, first = preempted_in_flight(9)
    assert late.num_output_tokens == 0
    scheduler.complete(first, 1.0)
    assert (late.num_output_tokens, late.first_token_s, late.num_computed_tokens) == (1, 1.0, 0)
    assert scheduler.waiting.head() is late
    assert late.num_tokens == 9


def test_who_is_preempted_with_the_last_token_in_flight_finishes_in_the_queue():
    scheduler, late, first = preempted_in_flight(1)
    assert scheduler.num_waiting == 1
    assert rows(scheduler.complete(first, 1.0)) == [1]
    assert (late.status, scheduler.num_waiting, scheduler.num_running) == (Status.FINISHED, 0, 1)
    assert (late.last_token_s, late.blocks) == (1.0, [])
    scheduler.kv.pool.check_integrity()
