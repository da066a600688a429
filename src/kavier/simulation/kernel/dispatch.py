"""Compiled: what Python calls. Everything is an integer: numbers, and addresses of records."""

from __future__ import annotations

import math

from kavier.native.kit import FLOAT64, INT64, Integer, at, call_double
from kavier.simulation.kernel import operations as op
from kavier.simulation.kernel.clock import advance, arrive
from kavier.simulation.kernel.cost import energy_j
from kavier.simulation.kernel.fleet import play_fleet
from kavier.simulation.kernel.queues import request_at
from kavier.simulation.kernel.records import (
    ARRIVAL_BYTES,
    COLUMNS,
    FLEET,
    POWER,
    REPLICA,
    SETTINGS,
    STEP,
    TIMELINE,
)
from kavier.simulation.kernel.tables import pack_requests, unpack_requests
from kavier.simulation.kernel.timeline import accumulate, has_room
from kavier.simulation.kernel.typed import Replica, Settings, Timeline, compiled


@compiled
def _play_replica(r: Replica, c: Settings, until: Integer) -> Integer:
    """Play a replica up to the moment before arrival `until`, or to its end if it is none; 0: make room."""
    while r.next_arrival < r.end_arrival:
        q = at(c.arrivals, c.num_arrivals, r.next_arrival, INT64).value
        now_s = request_at(c, q).arrival_s
        if r.decide_s < now_s and not advance(r, c, now_s):
            return 0
        if r.next_arrival >= until:
            return 1
        arrive(r, c, q, now_s)
        r.next_arrival += 1
    return 1 if advance(r, c, math.inf) else 0


@compiled
def _accumulate_steps(t: Timeline, steps: Integer, num: Integer) -> Integer:
    """Add steps of a replica, in time order; returns how many until the timeline needs room."""
    for i in range(num):
        if not has_room(t):
            return i
        accumulate(t, at(steps, num, i, STEP))
    return num


@compiled
def _fill_energies(power: Integer, steps: Integer, num: Integer) -> Integer:
    """Energy of steps from their FLOPs, bytes and durations."""
    p = at(power, 1, 0, POWER)
    for i in range(num):
        s = at(steps, num, i, STEP)
        s.energy_j = energy_j(p, s.flops, s.bytes, s.duration_s) if s.duration_s > 0 else 0.0
    return 0


@compiled
def _rank_keys(function: Integer, arrivals: Integer, keys: Integer, num: Integer) -> Integer:
    """Ask a policy in Python for the key of each request."""
    for i in range(num):
        at(keys, num, i, FLOAT64).value = call_double(function, arrivals + i * ARRIVAL_BYTES, 0)
    return 0


def dispatch(operation: int, a: int, b: int, c: int, d: int) -> int:
    """The one function that is exported; see `operations`."""
    if operation == op.PLAY_REPLICA:
        return _play_replica(at(a, 1, 0, REPLICA), at(b, 1, 0, SETTINGS), c)
    if operation == op.PLAY_FLEET:
        return play_fleet(at(a, 1, 0, FLEET), b)
    if operation == op.ACCUMULATE_STEPS:
        return _accumulate_steps(at(a, 1, 0, TIMELINE), b, c)
    if operation == op.FILL_ENERGIES:
        return _fill_energies(a, b, c)
    if operation == op.PACK_REQUESTS:
        return pack_requests(at(a, 1, 0, SETTINGS), at(b, 1, 0, COLUMNS), c)
    if operation == op.UNPACK_REQUESTS:
        return unpack_requests(at(a, 1, 0, SETTINGS), at(b, 1, 0, COLUMNS))
    return _rank_keys(a, b, c, d)
