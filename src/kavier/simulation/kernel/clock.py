"""Compiled: a replica on its clock. See `replica.Replica` and `replica.AsyncReplica`.

What the last scheduled step brings is known when it is scheduled, so the loop looks at a replica only at
`decide_s`, when the next step is to be scheduled: when the last one ends, or, asynchronously, when it starts.
There first `complete` sees to what the last step brings, then `_schedule` decides.
"""

from __future__ import annotations

import math

from kavier.native.kit import Integer, larger
from kavier.simulation.kernel.batch import (
    admit_waiting,
    chunk_limit,
    leave_decoding,
    serve_running,
    unwatch,
    wanting_at,
    watch,
)
from kavier.simulation.kernel.coast import coast_until
from kavier.simulation.kernel.cost import SLEEP_S, energy_j, price_step
from kavier.simulation.kernel.prefix import cache_full_blocks, release
from kavier.simulation.kernel.queues import (
    enter_finish,
    listed,
    request_at,
    slot_at,
    sort_by_order,
    take_finished,
    unseat,
    wait,
)
from kavier.simulation.kernel.records import (
    BUSY,
    DECODING,
    DRAINED,
    DRAINING,
    FINISHED,
    FUNCTION,
    GONE,
    IDLE,
    READY,
    SLEEPING,
    STALLED,
    STEADY,
)
from kavier.simulation.kernel.shares import (
    join_shares,
    keep_energy,
    settle_shares,
    share_step,
)
from kavier.simulation.kernel.timeline import (
    accumulate,
    count_gap,
    foresee_gap,
    has_room,
    log_step,
)
from kavier.simulation.kernel.typed import Replica, Request, Settings, compiled, inlined

# --- What a step brings -----------------------------------------------------------------------------------


@inlined
def _join_decoding(r: Replica, c: Settings, s: Integer, tokens_left: Integer) -> None:
    slot = slot_at(r, c, s)
    slot.state = DECODING
    slot.offset = slot.target - r.tick
    slot.finish_tick = r.tick + tokens_left
    join_shares(r, slot)
    r.num_decoding += 1
    r.decoding_tokens += slot.target
    wanting_at(r, c, slot.offset % c.block_size).value += 1
    enter_finish(r, c, s)
    if c.caching and slot.num_nodes < slot.num_told:
        watch(r, c, s)


@compiled
def _sample_prefills(r: Replica, c: Settings, count: Integer) -> Integer:
    """Prefills that end give their first token, or the next one after a preemption. Lists who finishes."""
    for i in range(r.num_sampling):
        s = listed(r.sampling, c, i).value
        slot = slot_at(r, c, s)
        request = request_at(c, slot.request)
        if request.output_tokens == 0:
            request.first_token_s = r.end_s
        else:
            count_gap(r, r.end_s - request.last_token_s, 1)
        tokens_left = request.output_length - request.output_tokens - 1
        if tokens_left:
            _join_decoding(r, c, s, tokens_left)
        else:
            slot.offset, slot.finish_tick = slot.target - r.tick, r.tick
            listed(r.scratch, c, count).value = s
            count += 1
    r.num_sampling = 0
    return count


@inlined
def _stop_decoding(r: Replica, c: Settings, s: Integer) -> None:
    slot = slot_at(r, c, s)
    leave_decoding(r, c, slot)
    if c.caching and slot.num_nodes < slot.num_told:
        unwatch(r, c, s)


@inlined
def _end(r: Replica, request: Request) -> None:
    request.output_tokens = request.output_length
    request.status = FINISHED
    r.num_ended += 1


@compiled
def _release_drained(r: Replica, c: Settings) -> None:
    """Asynchronous: those whose last token is known by now leave."""
    for i in range(r.num_draining):
        s = listed(r.draining, c, i).value
        slot = slot_at(r, c, s)
        request = request_at(c, slot.request)
        if slot.state == GONE:
            r.num_waiting -= 1
        else:
            computed = slot.offset + slot.finish_tick
            if c.caching:
                cache_full_blocks(r, c, s, computed)
            release(r, c, s, computed, computed)
            unseat(r, c, s)
        _end(r, request)
    r.unreported = 1 if r.num_draining else r.unreported
    r.num_draining = 0


@compiled
def complete(r: Replica, c: Settings) -> None:
    """See to what the last scheduled step brings. Requests leave in batch order: it makes the LRU order."""
    if r.num_draining:
        _release_drained(r, c)
    settle_shares(r, c)
    count = take_finished(r, c, r.scratch)
    for i in range(count):
        _stop_decoding(r, c, listed(r.scratch, c, i).value)
    if r.num_sampling:
        count = _sample_prefills(r, c, count)
    if count == 0:
        return
    sort_by_order(r, c, r.scratch, count)
    for i in range(count):
        s = listed(r.scratch, c, i).value
        slot = slot_at(r, c, s)
        request = request_at(c, slot.request)
        request.last_token_s = r.end_s
        keep_energy(c, slot)
        if c.asynchronous:
            slot.state = DRAINING
            listed(r.draining, c, i).value = s
        else:
            computed = slot.offset + r.tick
            release(r, c, s, computed, computed)
            unseat(r, c, s)
            _end(r, request)
    if c.asynchronous:
        r.num_draining = count


# --- Deciding ---------------------------------------------------------------------------------------------


@inlined
def _begin_decision(r: Replica) -> None:
    step = r.step
    step.scheduled_s = r.decide_s
    step.prefills = step.prefill_tokens = step.prefill_pairs = step.prefill_context_tokens = 0
    step.decodes = step.decode_context_tokens = step.sampled = 0
    step.evicted_blocks = step.preempted = step.queried_tokens = step.hit_tokens = 0


@inlined
def _rest(r: Replica, mode: Integer, decide_s: float) -> None:
    r.mode, r.decide_s = mode, decide_s


@inlined
def _record_step(r: Replica, c: Settings) -> None:
    s = r.step
    r.peak_used_blocks = larger(r.peak_used_blocks, s.used_blocks)
    accumulate(r.timeline, s)
    if c.logging:
        log_step(r)


@inlined
def _pass_tick(r: Replica, c: Settings) -> None:
    """A step is scheduled: every decoding request has one more token computed."""
    r.tick += 1
    r.decoding_tokens += r.num_decoding
    r.phase = (c.block_size if r.phase == 0 else r.phase) - 1


@inlined
def _start_s(r: Replica) -> float:
    """When the GPU is free for a step decided now."""
    return r.end_s if r.end_s > r.decide_s else r.decide_s


@compiled
def _begin_empty_step(r: Replica, c: Settings) -> bool:
    """Nothing could be scheduled. Asynchronous: the last tokens, or but news of them, are in flight."""
    s = r.step
    s.flops = s.bytes = s.energy_j = 0.0
    if not c.asynchronous:
        s.start_s, s.duration_s = r.decide_s, SLEEP_S
        s.energy_j = energy_j(c.power, 0.0, 0.0, SLEEP_S)
        r.num_asleep += 1
        _record_step(r, c)
        r.start_s, r.end_s = s.start_s, s.start_s + SLEEP_S
        _rest(r, READY, r.end_s)
    else:
        s.start_s, s.duration_s = _start_s(r), 0.0
        _record_step(r, c)
        r.unreported = 0
        if r.end_s > r.decide_s:
            _rest(r, DRAINED, r.end_s)
        elif c.as_recorded:
            _rest(r, SLEEPING, r.decide_s + SLEEP_S)
        else:
            _rest(r, IDLE, math.inf)
    return True


@compiled
def begin_step(r: Replica, c: Settings) -> bool:
    """Price and record the step that is decided; False, and stalled, while there is no room."""
    s = r.step
    if not has_room(r.timeline) or r.num_log >= r.log_room:
        r.mode = STALLED
        return False
    if s.prefill_tokens + s.decodes == 0:
        return _begin_empty_step(r, c)
    s.start_s = _start_s(r)
    price_step(c, s)
    share_step(r, c)
    before_s = r.end_s
    r.start_s, r.end_s = s.start_s, s.start_s + s.duration_s
    foresee_gap(r, r.end_s - before_s)
    _record_step(r, c)
    if r.num_decoding:
        count_gap(r, r.end_s - before_s, r.num_decoding)
    _pass_tick(r, c)
    r.unreported = 0
    quiet = r.num_decoding == r.num_running and s.preempted == 0 and c.timing != FUNCTION
    _rest(r, STEADY if quiet else BUSY, r.start_s if c.asynchronous else r.end_s)
    return True


@compiled
def _schedule(r: Replica, c: Settings) -> bool:
    """Decide the step to be scheduled at `decide_s`, and begin it; False if an array has no room for it."""
    _begin_decision(r)
    limit = chunk_limit(r, c)
    left = serve_running(r, c, limit)
    if r.step.preempted == 0 and r.num_waiting > 0:
        admit_waiting(r, c, left, limit)
    if r.num_running == 0 and r.num_waiting == 0 and r.unreported == 0:
        _rest(r, IDLE, math.inf)  # nothing was there, or all was rejected
        return True
    step = r.step
    step.decodes += r.num_decoding
    step.decode_context_tokens += r.decoding_tokens + r.num_decoding
    step.sampled += r.num_decoding
    step.running, step.waiting = r.num_running, r.num_waiting
    step.used_blocks = c.num_usable - r.num_free
    r.num_seen = r.num_running + r.num_waiting
    return begin_step(r, c)


# --- The loop ---------------------------------------------------------------------------------------------


@inlined
def _see_to_drained(r: Replica, c: Settings) -> None:
    """The step in flight ends, with an empty one behind it: the engine sleeps while it has requests."""
    finished = r.num_draining + 0
    _release_drained(r, c)
    has_requests = r.num_seen > finished or (c.finished_keep_awake != 0 and r.unreported != 0)
    if has_requests and not c.as_recorded:
        _rest(r, SLEEPING, r.decide_s + SLEEP_S)
    else:
        r.mode = READY


@compiled
def advance(r: Replica, c: Settings, limit_s: float) -> bool:
    """Schedule all steps that are decided before `limit_s`; False if an array is full."""
    if r.mode == STALLED and not begin_step(r, c):
        return False
    while r.decide_s < limit_s:
        if r.mode == STEADY:
            coast_until(r, c, limit_s)
            if r.decide_s >= limit_s:
                break
        if r.mode == STEADY or r.mode == BUSY:
            complete(r, c)
        elif r.mode == DRAINED:
            _see_to_drained(r, c)
            continue
        if not _schedule(r, c):
            return False
    return True


@inlined
def catch_up(r: Replica, c: Settings, now_s: float) -> bool:
    """All that happens by `now_s` has, except the step decided then. False if an array is full."""
    if not advance(r, c, now_s):
        return False
    if r.decide_s == now_s:
        if r.mode == STEADY or r.mode == BUSY:
            complete(r, c)
            r.mode = READY
        elif r.mode == DRAINED:
            _see_to_drained(r, c)
    return True


@inlined
def arrive(r: Replica, c: Settings, q: Integer, now_s: float) -> None:
    """A request joins the queue; the step decided at `now_s`, if any, sees it."""
    if r.mode == IDLE:
        _rest(r, READY, now_s)
    elif r.mode == STEADY and (r.num_waiting == 0 or c.by_priority):
        r.mode = BUSY  # it may be admitted; behind a head that is blocked it cannot
    wait(r, c, q)
