"""Compiled: routers that look at replicas. All arrivals in the order of time. See `router.py`.

A router sees a replica as it is when a request arrives, but most of what happens in between changes nothing
that it looks at. A winner tree holds, for every replica, when that may change at the earliest; only who is
due is advanced.

A request that ends is such a change. So the tree also tells when a closed loop may send the next one.
"""

from __future__ import annotations

import math
from typing import Any

from kavier.native.kit import (
    FLOAT64,
    INT32,
    INT64,
    Integer,
    Record,
    at,
    bits_of,
    call_integer,
    double_of,
    larger,
    smaller,
)
from kavier.simulation.kernel.batch import due_at
from kavier.simulation.kernel.blocks import blocks_for, settle
from kavier.simulation.kernel.clock import arrive, catch_up
from kavier.simulation.kernel.index import depth, next_holder
from kavier.simulation.kernel.prefix import first_told, match, num_told
from kavier.simulation.kernel.queues import next_finish, request_at
from kavier.simulation.kernel.records import (
    ARRIVAL,
    ARRIVAL_BYTES,
    BAD_CHOICE,
    BUSY,
    CACHE_AWARE,
    DONE,
    DRAINED,
    FUNCTION,
    IDLE,
    LEAST_KV_USED,
    LLM_D,
    LONGEST_PREFIX,
    NEEDS_SETS,
    PLANNED,
    POWER_OF_TWO,
    PYTHON,
    REJECTED_CONTEXT,
    REPLICA,
    SETTINGS,
    SPARE_SETS,
    STEADY,
    VIEW,
)
from kavier.simulation.kernel.typed import Fleet, Replica, Settings, compiled, inlined
from kavier.simulation.router import (
    BALANCE_ABS_THRESHOLD,
    BALANCE_REL_THRESHOLD,
    CACHE_THRESHOLD,
    KV_WEIGHT,
    PREFIX_WEIGHT,
    QUEUE_WEIGHT,
)


@inlined
def _replica(f: Fleet, index: Integer) -> Record:
    return at(f.replicas, f.num_replicas, index, REPLICA)


@inlined
def _view(f: Fleet, index: Integer) -> Record:
    return at(f.views, f.num_replicas, index, VIEW)


# --- Winner trees -------------------------------------------------------------------------------------------


@inlined
def _set_leaf(f: Fleet, tree: Integer, index: Integer, key: Any, dtype: Any) -> None:
    """Set a leaf of a winner tree and the minima above it."""
    nodes, i = 2 * f.num_leaves, f.num_leaves + index
    at(tree, nodes, i, dtype).value = key
    i >>= 1
    while i > 0:
        node = at(tree, nodes, i, dtype)
        left, right = at(tree, nodes, 2 * i, dtype).value, at(tree, nodes, 2 * i + 1, dtype).value
        least = left if left < right else right
        if node.value == least:
            break
        node.value = least
        i >>= 1


@inlined
def _winner(f: Fleet, tree: Integer, dtype: Any) -> Integer:
    """The first replica with the least key."""
    nodes, i = 2 * f.num_leaves, 1
    while i < f.num_leaves:
        least = at(tree, nodes, i, dtype).value
        i *= 2
        if at(tree, nodes, i, dtype).value != least:
            i += 1
    return i - f.num_leaves


# --- What routers see ---------------------------------------------------------------------------------------


@inlined
def _sees_blocks(f: Fleet) -> bool:
    return f.router == LEAST_KV_USED or f.router == LLM_D or f.router == PYTHON


@inlined
def _sees_contents(f: Fleet) -> bool:
    return f.router == LONGEST_PREFIX or f.router == CACHE_AWARE


@inlined
def _decides(r: Replica) -> bool:
    """Whether at `decide_s` a step is to be scheduled, and nothing to be seen to before."""
    return r.mode != STEADY and r.mode != BUSY and r.mode != DRAINED


@compiled
def _next_change(f: Fleet, r: Replica, c: Settings) -> float:
    """A lower bound on when something that the router looks at can change next, other than by eviction."""
    if r.mode == IDLE:
        return math.inf
    if _decides(r):
        return double_of(bits_of(r.decide_s) + 1)  # what is decided then shows behind it
    if r.mode != STEADY or _sees_blocks(f) or c.timing == FUNCTION:
        return r.decide_s
    steps = next_finish(r) - r.tick
    if blocks_for(c, steps) * r.num_decoding > r.num_free:
        steps = r.num_free // r.num_decoding * c.block_size
    if _sees_contents(f):
        for i in range(smaller(steps, c.block_size)):
            if due_at(r, c, (r.phase - i) % c.block_size).value:
                steps = i
                break
    # Contexts grow, so that steps get no shorter.
    return r.decide_s + steps * (r.end_s - r.start_s) * (1 - 1e-9)


@compiled
def _publish(f: Fleet, c: Settings, index: Integer) -> None:
    """Show a replica as it is, and note when to look again."""
    r, view = _replica(f, index), _view(f, index)
    view.num_waiting, view.num_running = r.num_waiting, r.num_running
    f.num_outstanding += r.num_waiting + r.num_running - view.num_outstanding
    view.num_outstanding = r.num_waiting + r.num_running
    view.used_blocks = c.num_usable - r.num_free
    load = view.num_outstanding + 0
    if f.router == LEAST_KV_USED:
        load += view.used_blocks * (1 << 31)
    elif _sees_blocks(f) and r.debt:
        settle(r, c)
    _set_leaf(f, f.loads, index, load, INT64)
    _set_leaf(f, f.agenda, index, _next_change(f, r, c), FLOAT64)


@inlined
def _least_loaded(f: Fleet) -> Integer:
    return _winner(f, f.loads, INT64)


@inlined
def _prompt_blocks(c: Settings, q: Integer) -> Integer:
    """Leading blocks of a prompt that a cache can give: never the last token, never an answer."""
    return smaller((request_at(c, q).prompt_tokens - 1) // c.block_size, num_told(c, q))


@compiled
def _fill_matches(f: Fleet, c: Settings, q: Integer) -> None:
    """matched_blocks of all replicas, which are settled. Who holds a block holds those before it."""
    for i in range(f.num_replicas):
        _view(f, i).matched_blocks = 0
    if not c.holders:
        return
    first = first_told(c, q)
    for i in range(depth(c, first, _prompt_blocks(c, q))):
        key = at(c.told, c.num_told, first + i, INT32).value
        index = next_holder(c, key, 0)
        while index >= 0:
            _view(f, index).matched_blocks = i + 1
            index = next_holder(c, key, index + 1)


# --- Routers: see router.py -------------------------------------------------------------------------------


@inlined
def _power_of_two(f: Fleet, c: Settings, i: Integer) -> Integer:
    first = at(f.draws, 2 * c.num_arrivals, 2 * i, INT32).value + 0
    second = at(f.draws, 2 * c.num_arrivals, 2 * i + 1, INT32).value + 0
    return second if _view(f, second).num_outstanding < _view(f, first).num_outstanding else first


@inlined
def _least_loaded_holder(f: Fleet, c: Settings, key: Integer) -> Integer:
    index = next_holder(c, key, 0)
    best = index
    while index >= 0:
        if _view(f, index).num_outstanding < _view(f, best).num_outstanding:
            best = index
        index = next_holder(c, key, index + 1)
    return best


@compiled
def _longest_prefix(f: Fleet, c: Settings, q: Integer, now_s: float) -> tuple[Integer, Integer]:
    """(replica, blocks matched), looked at again: evictions may be due; -1 - replica if it needs room."""
    if not c.holders:
        return _least_loaded(f), 0
    first, blocks = first_told(c, q), _prompt_blocks(c, q)
    found = depth(c, first, blocks)
    while found > 0:
        key = at(c.told, c.num_told, first + found - 1, INT32).value
        index = _least_loaded_holder(f, c, key)
        r = _replica(f, index)
        if not catch_up(r, c, now_s):
            return -1 - index, 0
        if match(r, c, q, found) == found:
            return index, found
        found = depth(c, first, found)
    return _least_loaded(f), 0


@compiled
def _cache_aware(f: Fleet, c: Settings, q: Integer, now_s: float) -> Integer:
    least = at(f.loads, 2 * f.num_leaves, 1, INT64).value
    most = least
    for i in range(f.num_replicas):
        most = larger(most, _view(f, i).num_outstanding + 0)
    if most - least > BALANCE_ABS_THRESHOLD and most > BALANCE_REL_THRESHOLD * least:
        return _least_loaded(f)
    index, matched = _longest_prefix(f, c, q, now_s)
    if index >= 0 and matched * c.block_size <= CACHE_THRESHOLD * request_at(c, q).prompt_tokens:
        return _least_loaded(f)
    return index


@compiled
def _by_scores(f: Fleet, c: Settings, q: Integer) -> Integer:
    _fill_matches(f, c, q)
    blocks = larger(1, request_at(c, q).prompt_tokens // c.block_size)
    least = most = _view(f, 0).num_waiting + 0
    for i in range(f.num_replicas):
        waiting = _view(f, i).num_waiting + 0
        least, most = smaller(least, waiting), larger(most, waiting)
    best, best_score = 0, -1.0
    for i in range(f.num_replicas):
        view = _view(f, i)
        queue = (most - view.num_waiting) / (most - least) if most > least else 1.0
        score = PREFIX_WEIGHT * (view.matched_blocks / blocks) + QUEUE_WEIGHT * queue
        score += KV_WEIGHT * (1.0 - view.used_blocks / view.num_blocks)
        fewer = view.num_outstanding < _view(f, best).num_outstanding
        if score > best_score or (score == best_score and fewer):
            best, best_score = i, score
    return best


@inlined
def _choose(f: Fleet, c: Settings, i: Integer, q: Integer, now_s: float) -> Integer:
    """The replica that serves request q, the i-th to be routed; -1 - replica if that one needs room first."""
    if f.router == PLANNED:
        return at(f.chosen, c.num_requests, q, INT32).value
    if f.router == POWER_OF_TWO:
        return _power_of_two(f, c, i)
    if f.router == LONGEST_PREFIX:
        return _longest_prefix(f, c, q, now_s)[0]
    if f.router == CACHE_AWARE:
        return _cache_aware(f, c, q, now_s)
    if f.router == LLM_D:
        return _by_scores(f, c, q)
    if f.router == PYTHON:
        _fill_matches(f, c, q)
        return call_integer(f.function, f.arrived + q * ARRIVAL_BYTES, f.views)
    return _least_loaded(f)


@inlined
def _has_sets(c: Settings) -> bool:
    return c.holders == 0 or c.num_sets_ever + SPARE_SETS <= c.num_sets


@compiled
def _play_to(f: Fleet, c: Settings, until_s: float) -> Integer:
    """Bring replicas up to date in which something may have changed by then; DONE, or one that needs room."""
    while at(f.agenda, 2 * f.num_leaves, 1, FLOAT64).value <= until_s:
        index = _winner(f, f.agenda, FLOAT64)
        r, outstanding = _replica(f, index), f.num_outstanding + 0
        now_s = r.decide_s if _decides(r) else until_s  # rejected when a step is decided, or finished
        if not catch_up(r, c, until_s):
            return index
        _publish(f, c, index)
        if f.num_outstanding < outstanding:
            f.freed_s = now_s
    return DONE


@compiled
def _await_place(f: Fleet, c: Settings) -> Integer:
    """Closed loop: play on until another request may be sent; DONE, or a replica that needs room.

    Who finishes gives its place back before steps begin at that instant, who is rejected after all have
    begun, so the whole instant is played, in several calls if need be. (Where a replica rejects one and the
    clock of another is later by one unit in the last place, both places may be free at the other's time.)
    """
    while f.num_outstanding >= f.max_concurrency or f.awaited_s > -math.inf:
        if f.num_outstanding >= f.max_concurrency:
            f.awaited_s = at(f.agenda, 2 * f.num_leaves, 1, FLOAT64).value
        index = _play_to(f, c, f.awaited_s)
        if index != DONE:
            return index
        f.awaited_s = -math.inf
    return DONE


@inlined
def _send(f: Fleet, c: Settings, q: Integer, now_s: float) -> bool:
    """A request is sent; False if the API server refuses it."""
    request = request_at(c, q)
    request.arrival_s = now_s
    if f.router == PYTHON:
        at(f.arrived, c.num_requests, q, ARRIVAL).arrival_s = now_s
    return request.status != REJECTED_CONTEXT


@compiled
def play_fleet(f: Fleet, until: Integer) -> Integer:
    """Play arrivals before `until`; returns DONE, a replica that needs room, NEEDS_SETS or BAD_CHOICE."""
    c = at(f.settings, 1, 0, SETTINGS)
    while f.position < until:
        if not _has_sets(c):
            return NEEDS_SETS
        index = _await_place(f, c)
        if index != DONE:
            return index
        q = at(c.arrivals, c.num_arrivals, f.position, INT64).value
        due_s = request_at(c, q).arrival_s
        now_s = due_s if due_s > f.freed_s else f.freed_s
        index = _play_to(f, c, now_s)
        if index != DONE:
            return index
        if not _send(f, c, q, now_s):
            f.position += 1
            continue
        index = _choose(f, c, f.num_routed, q, now_s)
        if f.router == PYTHON and not 0 <= index < f.num_replicas:
            f.bad_choice = index
            return BAD_CHOICE
        if index < 0:
            return -1 - index
        r = _replica(f, index)
        if not catch_up(r, c, now_s):
            return index
        at(f.chosen, c.num_requests, q, INT32).value = index
        arrive(r, c, q, now_s)
        _publish(f, c, index)
        f.num_routed += 1
        f.position += 1
    return DONE
