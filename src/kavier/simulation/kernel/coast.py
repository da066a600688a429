"""Compiled: a run of steps that are like the last one, strung together.

Most steps of most runs are such: only decodes, nobody finishes, is admitted or preempted.
"""

from __future__ import annotations

from kavier.native.kit import Integer, Record, at, larger, smaller
from kavier.simulation.kernel.batch import due_at, wanting_at
from kavier.simulation.kernel.blocks import allocate
from kavier.simulation.kernel.cost import decode_base, decode_cost, energy_j
from kavier.simulation.kernel.queues import next_finish
from kavier.simulation.kernel.records import COAST, COASTED
from kavier.simulation.kernel.shares import begin_coast, next_settling, rise, share_decodes, weigh_coasted
from kavier.simulation.kernel.timeline import accumulate, count_gap, count_gaps, has_room, last_cell, log_step
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined


@inlined
def _coasted(r: Replica) -> Record:
    return at(r.coast, 1, 0, COAST)


@inlined
def _sum_coasted(r: Replica, ticks: float) -> None:
    """Add what steps spread over their durations, and their shares: step by step, in local variables."""
    coast, cell, running, waiting = _coasted(r), last_cell(r.timeline), r.step.running, r.step.waiting
    busy_s, running_s, waiting_s, block_s = cell.busy_s, cell.running, cell.waiting, cell.used_blocks
    flops, moved, spent_j = cell.flops, cell.bytes, cell.energy_j
    equal_j, context_j, rising_j = r.equal_j, r.context_j, r.rising_j
    for i in range(coast.count):
        took_s, factor_j = coast.duration_s[i], coast.context_j[i]
        busy_s += took_s
        running_s += running * took_s
        waiting_s += waiting * took_s
        block_s += coast.used_blocks[i] * took_s
        flops += coast.flops[i]
        moved += coast.bytes[i]
        spent_j += coast.energy_j[i]
        equal_j += coast.equal_j[i]
        context_j += factor_j
        rising_j += factor_j * ticks
        ticks += 1.0
    cell.busy_s, cell.running, cell.waiting, cell.used_blocks = busy_s, running_s, waiting_s, block_s
    cell.flops, cell.bytes, cell.energy_j = flops, moved, spent_j
    r.equal_j, r.context_j, r.rising_j = equal_j, context_j, rising_j


@compiled
def _add_coasted(r: Replica, c: Settings, tick: Integer) -> None:
    """Add the coasted steps to the cell in which they lie, as `accumulate` adds one, and count their gaps.

    tick: Of the last of them.
    """
    coast, p = _coasted(r), c.power
    if coast.count == 0:
        return
    for i in range(coast.count):
        coast.energy_j[i] = energy_j(p, coast.flops[i], coast.bytes[i], coast.duration_s[i])
    weigh_coasted(r, c)
    _sum_coasted(r, rise(r, tick - coast.count + 1))
    cell = last_cell(r.timeline)
    count_gaps(r, coast, r.num_decoding)
    cell.steps += coast.count
    cell.decodes += coast.count * r.num_decoding
    cell.evicted_blocks += coast.evicted
    coast.count = coast.evicted = 0


@inlined
def _log_coasted(r: Replica, c: Settings, context: Integer, tick: Integer) -> None:
    """Log the only coasted step that is not added yet."""
    s, coast = r.step, _coasted(r)
    s.duration_s, s.flops, s.bytes = coast.duration_s[0], coast.flops[0], coast.bytes[0]
    s.decode_context_tokens, s.used_blocks = context, c.num_usable - r.num_free
    s.evicted_blocks = coast.evicted
    _add_coasted(r, c, tick)
    s.energy_j = coast.energy_j[0]
    log_step(r)


@compiled
def _add_crossing(
    r: Replica, c: Settings, took_s: float, flops: float, moved: float, context: Integer, tick: Integer
) -> None:
    """A coasted step that does not lie within one cell: add it by itself."""
    _add_coasted(r, c, tick - 1)
    s = r.step
    s.duration_s, s.flops, s.bytes = took_s, flops, moved
    s.energy_j = energy_j(c.power, flops, moved, took_s)
    s.decode_context_tokens, s.used_blocks = context, c.num_usable - r.num_free
    share_decodes(r, c, tick)
    accumulate(r.timeline, s)
    if c.logging:
        log_step(r)


@compiled
def coast_until(r: Replica, c: Settings, limit_s: float) -> None:
    """Schedule the steps decided before `limit_s` that are like the last one.

    Only decodes, nobody finishes or names a block, blocks suffice. The head of the waiting queue, if any, was
    refused for want of blocks, seats or budget, and none of these grows here: it need not be asked again.

    What `begin_step` does for any step is written out here, with what most steps change in local variables:
    most steps of most runs pass through this loop.
    """
    s, t, coast = r.step, r.timeline, _coasted(r)
    s.preempted = s.queried_tokens = s.hit_tokens = 0
    s.waiting = r.num_waiting
    end_tick = smaller(next_finish(r), next_settling(r))
    decodes, context = r.num_decoding + 0, r.decoding_tokens + 0
    tick, phase, decide_s, start_s, end_s = r.tick + 0, r.phase + 0, r.decide_s, r.start_s, r.end_s
    base_s, base_flops, base_bytes, least_s = decode_base(c, decodes)
    begin_coast(r, c, decodes, base_flops, base_bytes)
    used = float(c.num_usable - r.num_free)
    while decide_s < limit_s and tick < end_tick:
        blocks = wanting_at(r, c, phase).value + 0
        if blocks > r.num_free or due_at(r, c, phase).value or r.num_log >= r.log_room:
            break
        since_s = end_s - t.start_s
        took_s, flops, moved = decode_cost(
            c, base_s, base_flops, base_bytes, least_s, decodes, context + decodes
        )
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
            _add_crossing(r, c, took_s, flops, moved, context, tick)
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
            coast.context[i] = context
            coast.evicted += s.evicted_blocks
            coast.count = i + 1
            if c.logging:
                _log_coasted(r, c, context, tick)
            elif coast.count == COASTED:
                _add_coasted(r, c, tick)
        tick += 1
        phase = (c.block_size if phase == 0 else phase) - 1
        decide_s = start_s if c.asynchronous else end_s
    _add_coasted(r, c, tick - 1)
    r.tick, r.phase, r.decoding_tokens = tick, phase, context
    r.decide_s, r.start_s, r.end_s = decide_s, start_s, end_s
    r.peak_used_blocks = larger(r.peak_used_blocks, c.num_usable - r.num_free)
