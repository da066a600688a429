"""Compiled: sample intervals and gaps between tokens, summed up while the engine plays.

A timeline is a list of cells. A cell begins with a sample interval in which a step begins or ends, or with
the first interval of an idle time, and holds all intervals up to the next cell. So a step costs the same
however fine the intervals are: there are at most as many cells as intervals, and at most three a step.
"""

from __future__ import annotations

from kavier.native.kit import Integer, Record, at, bits_of, copy, larger, prefetch, smaller
from kavier.simulation.kernel.records import (
    CELL,
    CELLS_A_STEP,
    GAP,
    GAP_BINS,
    GAP_BYTES,
    GAP_LOW,
    GAP_SHIFT,
    STEP,
)
from kavier.simulation.kernel.typed import Cell, Coast, Replica, Step, Timeline, compiled, inlined


@inlined
def has_room(t: Timeline) -> bool:
    """Whether the cells that one step may begin fit."""
    return t.num_cells + CELLS_A_STEP <= t.room


@inlined
def last_cell(t: Timeline) -> Record:
    """The cell in which the last step ended."""
    return at(t.cells, t.room, t.num_cells - 1, CELL)


@inlined
def _interval_of(t: Timeline, since_s: float) -> Integer:
    """The interval that holds a time not before the timeline's start, given from there."""
    i = int(since_s / t.interval_s)
    while t.interval_s * (i + 1) <= since_s:
        i += 1
    while i > 0 and t.interval_s * i > since_s:
        i -= 1
    return i


@inlined
def _begin_cell(t: Timeline, interval: Integer) -> None:
    cell = at(t.cells, t.room, t.num_cells, CELL)
    t.num_cells += 1
    cell.interval = interval
    cell.busy_s = cell.running = cell.waiting = cell.used_blocks = 0.0
    cell.flops = cell.bytes = cell.energy_j = 0.0
    cell.steps = cell.prefill_tokens = cell.decodes = 0
    cell.queried_tokens = cell.hit_tokens = cell.evicted_blocks = cell.preempted = 0


@compiled
def _move_on(t: Timeline, since_s: float) -> None:
    """A step begins behind the interval in which the last one ended."""
    interval = _interval_of(t, since_s)
    if t.num_cells == 0 or interval > t.interval + 1:
        if t.num_cells:
            _begin_cell(t, t.interval + 1)
        elif interval > 0:
            _begin_cell(t, 0)
    if t.num_cells == 0 or interval > t.interval:
        _begin_cell(t, interval)
    t.interval = interval
    t.interval_end_s = t.interval_s * (interval + 1)


@inlined
def _add_share(cell: Cell, s: Step, busy_s: float, share: float) -> None:
    """Add a part of what a step spreads over its duration."""
    cell.busy_s += busy_s
    cell.running += s.running * busy_s
    cell.waiting += s.waiting * busy_s
    cell.used_blocks += s.used_blocks * busy_s
    cell.flops += s.flops * share
    cell.bytes += s.bytes * share
    cell.energy_j += s.energy_j * share


@compiled
def _add_parts(t: Timeline, s: Step, since_s: float) -> None:
    """A step that ends in a later interval than it begins: that interval's part goes to a cell of its own."""
    cell = last_cell(t)
    end_s = since_s + s.duration_s
    interval = _interval_of(t, end_s)
    edge_s = t.interval_s * interval
    share = (edge_s - since_s) / s.duration_s
    share = share if share < 1.0 else 1.0
    _add_share(cell, s, s.duration_s * share, share)
    _begin_cell(t, interval)
    left = 1.0 - share
    _add_share(last_cell(t), s, s.duration_s * left, left)
    t.interval = interval
    t.interval_end_s = t.interval_s * (interval + 1)


@inlined
def accumulate(t: Timeline, s: Step) -> None:
    """Add a step to the timeline of its replica; steps come in time order, and there is room.

    Whole numbers go to the interval in which the step begins, amounts and levels evenly over its duration.
    Times are taken from the timeline's start, where doubles are finer than in an epoch.
    """
    since_s = s.start_s - t.start_s
    if since_s >= t.interval_end_s:
        _move_on(t, since_s)
    cell = last_cell(t)
    cell.steps += 1
    cell.prefill_tokens += s.prefill_tokens
    cell.decodes += s.decodes
    cell.queried_tokens += s.queried_tokens
    cell.hit_tokens += s.hit_tokens
    cell.evicted_blocks += s.evicted_blocks
    cell.preempted += s.preempted
    if since_s + s.duration_s <= t.interval_end_s:
        _add_share(cell, s, s.duration_s, 1.0)
    else:
        _add_parts(t, s, since_s)


@inlined
def log_step(r: Replica) -> None:
    """Keep the last step as a row."""
    copy(at(r.log, r.log_room, r.num_log, STEP), r.step)
    r.num_log += 1


@inlined
def _gap_bin(gap_s: float) -> Integer:
    return smaller(larger((bits_of(gap_s) >> GAP_SHIFT) - GAP_LOW, 0), GAP_BINS - 1)


@inlined
def foresee_gap(r: Replica, gap_s: float) -> None:
    """This gap will be counted: its bin is in no cache."""
    prefetch(r.gaps + _gap_bin(gap_s) * GAP_BYTES)


@inlined
def _count_in_bin(r: Replica, i: Integer, least_s: float, count: Integer) -> None:
    gap = at(r.gaps, GAP_BINS, i, GAP)
    if gap.count == 0 or least_s < gap.least_s:
        gap.least_s = least_s
        r.least_gap = smaller(r.least_gap, i)
        r.most_gap = larger(r.most_gap, i)
    gap.count += count


@inlined
def count_gap(r: Replica, gap_s: float, count: Integer) -> None:
    """Count gaps between tokens of a request."""
    _count_in_bin(r, _gap_bin(gap_s), gap_s, count)


@inlined
def count_gaps(r: Replica, coast: Coast, count: Integer) -> None:
    """Count the gaps of coasted steps, each so many times: mostly the same bin time and again."""
    for i in range(coast.count):
        coast.gap_bin[i] = _gap_bin(coast.gap_s[i])
    i = 0
    while i < coast.count:
        here, least_s, first = coast.gap_bin[i], coast.gap_s[i], i
        while i < coast.count and coast.gap_bin[i] == here:
            least_s = coast.gap_s[i] if coast.gap_s[i] < least_s else least_s
            i += 1
        _count_in_bin(r, here, least_s, (i - first) * count)
