"""Compiled: a replica on its clock. See `replica.Replica` and `replica.AsyncReplica`.

What the last scheduled step brings is known when it is scheduled, so the loop looks at a replica only at
`decide_s`, when the next step is to be scheduled: when the last one ends, or, asynchronously, when it starts.
There first `complete` sees to what the last step brings, then `_schedule` decides.
"""

from __future__ import annotations

import math

from kavier.native.kit import Integer, Record, at, copy, larger
from kavier.simulation.kernel.batch import (
    admit_waiting,
    chunk_limit,
    due_at,
    leave_decoding,
    serve_running,
    unwatch,
    wanting_at,
    watch,
)
from kavier.simulation.kernel.blocks import allocate
from kavier.simulation.kernel.cost import SLEEP_S, decode_base, decode_cost, energy_j, price_step
from kavier.simulation.kernel.prefix import cache_full_blocks, release
from kavier.simulation.kernel.queues import (
    enter_finish,
    listed,
    next_finish,
    request_at,
    slot_at,
    sort_by_order,
    take_finished,
    unseat,
    wait,
)
from kavier.simulation.kernel.records import (
    BUSY,
    COAST,
    COASTED,
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
    STEP,
)
from kavier.simulation.kernel.timeline import (
    accumulate,
    count_gap,
    count_gaps,
    foresee_gap,
    has_room,
    last_cell,
)
from kavier.simulation.kernel.typed import Replica, Request, Settings, compiled, inlined

# --- What a step brings -----------------------------------------------------------------------------------


@inlined
def _join_decoding(r: Replica, c: Settings, s: Integer, tokens_left: Integer) -> None:
    slot = slot_at(r, c, s)
    slot.state = DECODING
    slot.offset = slot.target - r.tick
    slot.finish_tick = r.tick + tokens_left
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
def _log_step(r: Replica) -> None:
    copy(at(r.log, r.log_room, r.num_log, STEP), r.step)
    r.num_log += 1


@inlined
def _record_step(r: Replica, c: Settings) -> None:
    s = r.step
    r.peak_used_blocks = larger(r.peak_used_blocks, s.used_blocks)
    accumulate(r.timeline, s)
    if c.logging:
        _log_step(r)


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
def _coasted(r: Replica) -> Record:
    return at(r.coast, 1, 0, COAST)


@compiled
def _add_coasted(r: Replica, c: Settings) -> None:
    """Add the coasted steps to the cell in which they lie, as `accumulate` adds one, and count their gaps."""
    coast, p = _coasted(r), c.power
    for i in range(coast.count):
        coast.energy_j[i] = energy_j(p, coast.flops[i], coast.bytes[i], coast.duration_s[i])
    cell, running, waiting = last_cell(r.timeline), r.step.running, r.step.waiting
    for i in range(coast.count):
        busy_s = coast.duration_s[i]
        cell.busy_s += busy_s
        cell.running += running * busy_s
        cell.waiting += waiting * busy_s
        cell.used_blocks += coast.used_blocks[i] * busy_s
        cell.flops += coast.flops[i]
        cell.bytes += coast.bytes[i]
        cell.energy_j += coast.energy_j[i]
    count_gaps(r, coast, r.num_decoding)
    cell.steps += coast.count
    cell.decodes += coast.count * r.num_decoding
    cell.evicted_blocks += coast.evicted
    coast.count = coast.evicted = 0


@inlined
def _log_coasted(r: Replica, c: Settings, context: Integer) -> None:
    """Log the only coasted step that is not added yet."""
    s, coast = r.step, _coasted(r)
    s.duration_s, s.flops, s.bytes = coast.duration_s[0], coast.flops[0], coast.bytes[0]
    s.decode_context_tokens, s.used_blocks = context, c.num_usable - r.num_free
    s.evicted_blocks = coast.evicted
    _add_coasted(r, c)
    s.energy_j = coast.energy_j[0]
    _log_step(r)


@compiled
def _add_crossing(
    r: Replica, c: Settings, took_s: float, flops: float, moved: float, context: Integer
) -> None:
    """A coasted step that does not lie within one cell: add it by itself."""
    _add_coasted(r, c)
    s = r.step
    s.duration_s, s.flops, s.bytes = took_s, flops, moved
    s.energy_j = energy_j(c.power, flops, moved, took_s)
    s.decode_context_tokens, s.used_blocks = context, c.num_usable - r.num_free
    accumulate(r.timeline, s)
    if c.logging:
        _log_step(r)


@compiled
def _coast(r: Replica, c: Settings, limit_s: float) -> None:
    """Schedule the steps decided before `limit_s` that are like the last one.

    Only decodes, nobody finishes or names a block, blocks suffice. The head of the waiting queue, if any, was
    refused for want of blocks, seats or budget, and none of these grows here: it need not be asked again.

    What `begin_step` does for any step is written out here, with what most steps change in local variables:
    most steps of most runs pass through this loop.
    """
    s, t, coast = r.step, r.timeline, _coasted(r)
    s.preempted = s.queried_tokens = s.hit_tokens = 0
    s.waiting = r.num_waiting
    finish_tick, decodes, context = next_finish(r), r.num_decoding + 0, r.decoding_tokens + 0
    tick, phase, decide_s, start_s, end_s = r.tick + 0, r.phase + 0, r.decide_s, r.start_s, r.end_s
    base_s, base_flops, base_bytes = decode_base(c, decodes)
    used = float(c.num_usable - r.num_free)
    while decide_s < limit_s and tick < finish_tick:
        blocks = wanting_at(r, c, phase).value + 0
        if blocks > r.num_free or due_at(r, c, phase).value or r.num_log >= r.log_room:
            break
        since_s = end_s - t.start_s
        took_s, flops, moved = decode_cost(c, base_s, base_flops, base_bytes, decodes, context + decodes)
        crossing = since_s >= t.interval_end_s or since_s + took_s > t.interval_end_s
        if took_s <= 0.0 or (crossing and not has_room(t)):
            break
        context += decodes
        s.evicted_blocks = 0
        if blocks:
            allocate(r, c, blocks)
            used = float(c.num_usable - r.num_free)
        start_s = end_s
        end_s = start_s + took_s
        if crossing or c.logging:
            s.scheduled_s, s.start_s = decide_s, start_s
        if crossing:
            _add_crossing(r, c, took_s, flops, moved, context)
            count_gap(r, end_s - start_s, decodes)
        else:
            i = coast.count
            coast.duration_s[i], coast.flops[i], coast.bytes[i], coast.used_blocks[i] = (
                took_s,
                flops,
                moved,
                used,
            )
            coast.gap_s[i] = end_s - start_s
            coast.evicted += s.evicted_blocks
            coast.count = i + 1
            if c.logging:
                _log_coasted(r, c, context)
            elif coast.count == COASTED:
                _add_coasted(r, c)
        tick += 1
        phase = (c.block_size if phase == 0 else phase) - 1
        decide_s = start_s if c.asynchronous else end_s
    _add_coasted(r, c)
    r.tick, r.phase, r.decoding_tokens = tick, phase, context
    r.decide_s, r.start_s, r.end_s = decide_s, start_s, end_s
    r.peak_used_blocks = larger(r.peak_used_blocks, c.num_usable - r.num_free)


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
            _coast(r, c, limit_s)
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
