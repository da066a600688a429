"""The compiled engine: the decisions of `scheduler.Scheduler` and `reference.Simulation`, O(1) a step.

Read `scheduler.py` first: functions here have the names of what they mirror. What makes it fast:

* A decoding request is not touched when a step passes. The replica counts steps (`tick`); a request keeps
  `offset` = tokens computed - tick, which does not change, and the tick at which it finishes, in a heap.
* The blocks that decodes need in a step are `wanting[phase]`: how many have an offset in that residue class.
* A step in which nobody is admitted, finishes or is preempted only adds to counters: `coast` strings them
  together.
* Blocks are counted, not numbered. Only cached blocks whose key the trace tells, and those of a preempted
  request, are nodes in a hash map; other cached blocks are runs of anonymous ones in the LRU queue.

Everything is a record or an array of records. A replica and the settings hold addresses of arrays, so that
functions take two pointers and nothing is reference-counted; `compiled.py` owns the arrays. When one is full
the engine stops before the step that needs room, and goes on from there when it is called again.

All compiled code is in this file: loading from its cache, Numba would not notice an edited callee elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from kavier.timing.compiled import ATTENTION, PRICE

Record: TypeAlias = Any
"""A NumPy record; Numba knows its fields."""

Integer: TypeAlias = Any
"""An integer, Python's or NumPy's; compiled, all are 64 bits."""

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_BLOCK_SIZE = 256
"""The counters per residue class are in the replica record; larger blocks run in the reference engine."""

# --- Records --------------------------------------------------------------------------------------------

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("first_scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("last_token_s", "f8"),  # known only while it is preempted, and at the end
        ("first_key", "i8"),  # where its block keys begin in `keys`, and its cached blocks in `held`
        ("num_keys", "i4"),
        ("prompt_tokens", "i4"),
        ("output_length", "i4"),
        ("output_tokens", "i4"),  # up to date only while it is preempted, and at the end
        ("cached_tokens", "i4"),  # -1 before it is admitted
        ("preemptions", "i4"),
        ("next", "i4"),  # behind it in the waiting queue
        ("status", "i4"),
    ],
    align=True,
)

UNFINISHED, FINISHED, REJECTED_CONTEXT, REJECTED_KV = range(4)

SLOT = np.dtype(
    [
        ("offset", "i8"),  # decoding: tokens computed - tick
        ("finish_tick", "i8"),  # decoding: the tick at which its last token is known
        ("order", "i8"),  # rises with admission: the order of `running`
        ("computed", "i8"),  # prefilling: tokens computed, those of the running step included
        ("target", "i8"),  # prefilling: tokens to compute
        ("chunk", "i8"),  # prefilling: tokens in the step being decided
        ("request", "i4"),
        ("previous", "i4"),  # in running order, -1 at the head
        ("next", "i4"),  # in running order, -1 at the tail; among free slots too
        ("num_named", "i4"),  # leading blocks that are nodes listed in `held`
        ("num_private", "i4"),  # blocks behind them that are nodes only this request knows
        ("last_private", "i4"),  # the last of these; their `parent` leads to the others
        ("due_previous", "i4"),
        ("due_next", "i4"),
        ("decoding", "i4"),
    ],
    align=True,
)
"""A seat of the batch."""

NODE = np.dtype(
    [
        ("key", "i8"),
        ("queue_position", "i8"),  # where it is in the LRU queue, -1 while somebody holds it
        ("references", "i4"),
        ("twin", "i4"),  # the next block with the same key, -1 at the end
        ("parent", "i4"),  # private: the block before it, -1 for none; free: the next free node
    ],
    align=True,
)
"""A cached block that can be found."""

ENTRY = np.dtype([("key", "i8"), ("node", "i8")], align=True)
"""Of the hash map (open addressing, linear probing); node + 1, so that zeroed memory is an empty map."""

GAP = np.dtype([("gap_s", "f8"), ("count", "i8")], align=True)

CELL = np.dtype(
    [
        ("busy_s", "f8"),
        ("running", "f8"),
        ("waiting", "f8"),
        ("used_blocks", "f8"),
        ("flops", "f8"),
        ("bytes", "f8"),
        ("energy_j", "f8"),
        ("steps", "i8"),
        ("prefill_tokens", "i8"),
        ("decodes", "i8"),
        ("queried_tokens", "i8"),
        ("hit_tokens", "i8"),
        ("evicted_blocks", "i8"),
        ("preempted", "i8"),
    ],
    align=True,
)
"""Sums over one sample interval of one replica; levels (running ...) are integrals over time."""

STEP = np.dtype(
    [
        ("start_s", "f8"),
        ("duration_s", "f8"),
        ("flops", "f8"),
        ("bytes", "f8"),
        ("energy_j", "f8"),
        ("prefills", "i8"),
        ("prefill_tokens", "i8"),
        ("prefill_pairs", "i8"),
        ("prefill_context_tokens", "i8"),
        ("decodes", "i8"),
        ("decode_context_tokens", "i8"),
        ("sampled", "i8"),
        ("running", "i8"),
        ("waiting", "i8"),
        ("used_blocks", "i8"),
        ("evicted_blocks", "i8"),
        ("preempted", "i8"),
        ("queried_tokens", "i8"),
        ("hit_tokens", "i8"),
    ],
    align=True,
)
"""One step, as in `record.STEP_SCHEMA`."""

POWER = np.dtype(
    [
        ("floor_w", "f8"),
        ("span_w", "f8"),
        ("alpha", "f8"),
        ("beta", "f8"),
        ("peak_flops_per_s", "f8"),
        ("peak_bytes_per_s", "f8"),
        ("gpus", "f8"),
    ],
    align=True,
)
"""Coefficients of `metrics.power.SaturatingPower`, and GPUs a replica."""

GRID = np.dtype([("start_s", "f8"), ("interval_s", "f8")], align=True)
"""The sample intervals: [start + i * interval, start + (i + 1) * interval)."""

CURSOR = np.dtype([("bin", "i8"), ("end_s", "f8")], align=True)
"""The interval in which a replica's last step began, and its end from the grid's start; zeroed: none yet."""

AFFINE, DATASHEET = range(2)

SETTINGS = np.dtype(
    [
        ("max_num_batched_tokens", "i8"),
        ("max_num_seqs", "i8"),
        ("block_size", "i8"),
        ("num_usable", "i8"),  # blocks, without the null block
        ("watermark_blocks", "i8"),
        ("long_prefill_token_threshold", "i8"),
        ("chunked_prefill", "i8"),
        ("reserve_full_isl", "i8"),
        ("caching", "i8"),
        ("logging", "i8"),
        ("timing", "i8"),
        ("affine", "f8", 6),
        ("body", "i8"),
        ("num_body", "i8"),
        ("head", "i8"),
        ("num_head", "i8"),
        ("body_flops", "f8"),
        ("head_flops", "f8"),
        ("attention", "i8"),
        ("num_attention", "i8"),
        ("requests", "i8"),
        ("num_requests", "i8"),
        ("keys", "i8"),
        ("held", "i8"),
        ("num_keys", "i8"),
        ("arrivals", "i8"),  # request rows, replica by replica (or in global order)
        ("num_arrivals", "i8"),
        ("grid", GRID),
        ("power", POWER),
    ],
    align=True,
)

IDLE, DECODING, DECIDING, STALLED = range(4)
"""Modes of a replica.

IDLE: no step runs; if `end_s` is finite a step is to be decided then. DECODING: the running step is all
decodes, and unless somebody finishes the next is too. DECIDING: the scheduler has to look at the next step.
STALLED: a step is decided but not begun, for want of room in an array.
"""

REPLICA = np.dtype(
    [
        ("now_s", "f8"),  # start of the running step
        ("end_s", "f8"),  # and its end
        ("mode", "i8"),
        ("tick", "i8"),
        ("phase", "i8"),  # -tick modulo the block size
        ("num_decoding", "i8"),
        ("decoding_tokens", "i8"),  # tokens computed, over all decoding
        ("num_running", "i8"),
        ("num_waiting", "i8"),
        ("num_prefilling", "i8"),
        ("num_sampling", "i8"),
        ("num_finishing", "i8"),  # entries of the heap
        ("num_ended", "i8"),
        ("admissions", "i8"),
        # blocks
        ("num_free", "i8"),
        ("num_plain", "i8"),  # free ones without content: unhashed, or never used
        ("debt", "i8"),  # evictions that happened but are still in the queue
        ("queue_head", "i8"),
        ("queue_tail", "i8"),
        ("free_node", "i8"),  # + 1
        ("num_nodes_ever", "i8"),
        ("peak_used_blocks", "i8"),
        ("last_end_s", "f8"),  # of the last step so far
        ("step", STEP),  # the running step, or the one being decided
        # linked lists
        ("first_waiting", "i4"),
        ("last_waiting", "i4"),
        ("first_running", "i4"),
        ("last_running", "i4"),
        ("free_slot", "i4"),
        # arrays
        ("slots", "i8"),
        ("finishing", "i8"),  # heap of finish_tick << 16 | slot
        ("prefilling", "i8"),  # slots, in running order
        ("sampling", "i8"),  # slots whose prefill ends with the running step, in running order
        ("scratch", "i8"),
        ("nodes", "i8"),
        ("num_nodes", "i8"),
        ("map", "i8"),
        ("map_bits", "i8"),
        ("queue", "i8"),
        ("queue_mask", "i8"),
        ("cells", "i8"),
        ("num_cells", "i8"),
        ("gaps", "i8"),
        ("num_gaps", "i8"),
        ("gap_room", "i8"),
        ("log", "i8"),
        ("num_log", "i8"),
        ("log_room", "i8"),
        ("next_arrival", "i8"),
        ("end_arrival", "i8"),
        ("cursor", CURSOR),
        ("wanting", "i4", MAX_BLOCK_SIZE),
        ("due", "i4", MAX_BLOCK_SIZE),  # lists of those who will name a block, slot + 1
    ],
    align=True,
)

SLOT_BITS = 20
"""Of a heap key. 2^20 seats, 2^43 steps."""


# --- Numba ----------------------------------------------------------------------------------------------


def compiled(function: Function) -> Function:
    """Compile into the callers."""
    return cast("Function", njit(error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """Compile and paste into hot loops."""
    return cast("Function", njit(error_model="numpy", forceinline=True)(function))


def entry_point(function: Function) -> Function:
    """Compile once a machine, run without the interpreter's lock."""
    return cast("Function", njit(error_model="numpy", cache=True, nogil=True)(function))


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:  # noqa: ARG001 - Numba looks at the name and number
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


@inlined
def _view(address: Integer, size: Integer, dtype: Any) -> Any:
    return carray(_pointer(address), size, dtype)  # type: ignore[call-arg]


@inlined
def _requests(c: Record) -> Any:
    return _view(c.requests, c.num_requests, REQUEST)


@inlined
def _slots(r: Record, c: Record) -> Any:
    return _view(r.slots, c.max_num_seqs, SLOT)


@inlined
def _integers(address: Integer, size: Integer) -> Any:
    return _view(address, size, np.int64)


@inlined
def _nodes(r: Record) -> Any:
    return _view(r.nodes, r.num_nodes, NODE)


@inlined
def _map(r: Record) -> Any:
    return _view(r.map, 1 << r.map_bits, ENTRY)


@inlined
def _blocks_for(c: Record, tokens: Integer) -> Integer:
    return (tokens + c.block_size - 1) // c.block_size


# --- Step time, energy, timeline ------------------------------------------------------------------------


@inlined
def _affine_cost(
    c: Record, prefill: Integer, pairs: Integer, context: Integer, decodes: Integer, decode_context: Integer
) -> tuple[float, float, float]:
    """`timing.compiled.AffineTiming.cost`."""
    a = c.affine
    time_s = a[0] + a[1] * prefill + a[2] * decodes + a[3] * (context + decode_context)
    return time_s, a[4] * pairs, a[5] * decode_context


@inlined
def _attention_cost(
    a: Record,
    prefills: Integer,
    tokens: Integer,
    pairs: Integer,
    context: Integer,
    decodes: Integer,
    read: Integer,
) -> tuple[float, float, Integer]:
    """`timing.attention.AttentionLayers.cost`."""
    read = min(read, decodes * a.window)
    pairs = min(pairs, tokens * a.window)
    context = min(context, tokens + prefills * (a.window - 1))
    time_s = 0.0
    if decodes:
        time_s = a.decode_launch_s + read * a.decode_s * (a.mixed if tokens else 1.0)
    elif tokens:
        time_s = a.prefill_launch_s
    if tokens:
        compute_s = pairs * a.pair_s + (context - tokens) * a.expand_s
        read_s = context * a.read_s
        time_s += (compute_s if compute_s > read_s else read_s) + decodes * tokens * a.empty_block_s
    flops = read * a.decode_flops + pairs * a.pair_flops + (context - tokens) * a.expand_flops
    return a.layers * time_s, a.layers * flops, a.layers * (read + context) * a.kv_bytes


@inlined
def _step_cost(
    c: Record,
    prefills: Integer,
    prefill: Integer,
    pairs: Integer,
    context: Integer,
    decodes: Integer,
    decode_context: Integer,
    sampled: Integer,
) -> tuple[float, float, float]:
    """(seconds, FLOPs, bytes) of a step, as the model's `cost`; an empty step lasts 1 ms."""
    tokens = prefill + decodes
    if tokens == 0:
        return 1e-3, 0.0, 0.0
    if c.timing == AFFINE:
        return _affine_cost(c, prefill, pairs, context, decodes, decode_context)
    price = _view(c.body, c.num_body, PRICE)[tokens]
    time_s, moved = price.time_s, price.bytes
    flops = tokens * c.body_flops
    if sampled:
        price = _view(c.head, c.num_head, PRICE)[sampled]
        time_s += price.time_s
        moved += price.bytes
        flops += sampled * c.head_flops
    attention = _view(c.attention, c.num_attention, ATTENTION)
    for i in range(c.num_attention):
        spent_s, done, read = _attention_cost(
            attention[i], prefills, prefill, pairs, context, decodes, decode_context
        )
        time_s += spent_s
        flops += done
        moved += read
    return time_s, flops, moved


@inlined
def _energy_j(p: Record, flops: float, moved: float, duration_s: float) -> float:
    """Energy of all GPUs of a replica in a step: see `metrics.power.SaturatingPower`."""
    if duration_s <= 0.0:
        return 0.0
    mfu = flops / duration_s / p.peak_flops_per_s
    mbu = moved / duration_s / p.peak_bytes_per_s
    power_w = p.floor_w - p.span_w * math.expm1(-(p.alpha * mbu + p.beta * mfu))
    return power_w * duration_s * p.gpus


@inlined
def _bin_at(grid: Record, since_s: float) -> Integer:
    """The interval that holds a time not before the grid's start, given from there."""
    i = int(since_s / grid.interval_s)
    while grid.interval_s * (i + 1) <= since_s:
        i += 1
    while i > 0 and grid.interval_s * i > since_s:
        i -= 1
    return i


@inlined
def _add_share(cell: Record, s: Record, share: float) -> None:
    """Add a share of what a step spreads over its duration."""
    busy_s = s.duration_s * share
    cell.busy_s += busy_s
    cell.running += s.running * busy_s
    cell.waiting += s.waiting * busy_s
    cell.used_blocks += s.used_blocks * busy_s
    cell.flops += s.flops * share
    cell.bytes += s.bytes * share
    cell.energy_j += s.energy_j * share


@compiled
def _add_pieces(cells: Any, cursor: Record, grid: Record, s: Record, since_s: float) -> None:
    """Spread a step over the intervals that it touches; the last takes what is left."""
    end_s, begin_s, left, i = since_s + s.duration_s, since_s, 1.0, cursor.bin
    edge_s = cursor.end_s
    while edge_s < end_s:
        share = min(left, (edge_s - begin_s) / s.duration_s)
        _add_share(cells[i], s, share)
        begin_s, left, i = edge_s, left - share, i + 1
        edge_s = grid.interval_s * (i + 1)
    _add_share(cells[i], s, left)


@inlined
def accumulate(cells: Any, cursor: Record, grid: Record, s: Record) -> None:
    """Add a step to the sample intervals of its replica; steps come in time order.

    Whole numbers go to the interval in which the step starts, amounts and levels evenly over its duration.
    Times are taken from the grid's start, where doubles are finer than in an epoch.
    """
    since_s = s.start_s - grid.start_s
    if since_s >= cursor.end_s:
        cursor.bin = _bin_at(grid, since_s)
        cursor.end_s = grid.interval_s * (cursor.bin + 1)
    cell = cells[cursor.bin]
    cell.steps += 1
    cell.prefill_tokens += s.prefill_tokens
    cell.decodes += s.decodes
    cell.queried_tokens += s.queried_tokens
    cell.hit_tokens += s.hit_tokens
    cell.evicted_blocks += s.evicted_blocks
    cell.preempted += s.preempted
    if since_s + s.duration_s <= cursor.end_s:
        _add_share(cell, s, 1.0)
    else:
        _add_pieces(cells, cursor, grid, s, since_s)


@entry_point
def accumulate_steps(cells: Any, cursors: Any, grids: Any, replicas: Any, steps: Any) -> None:
    """`accumulate` over a table of steps: cells[replica, interval], cursors[replica]."""
    for i in range(len(steps)):
        replica = replicas[i]
        accumulate(cells[replica], cursors[replica], grids[0], steps[i])


@entry_point
def step_energies(powers: Any, flops: Any, moved: Any, durations: Any, energies: Any) -> None:
    """Fill `energies` with the joules of steps."""
    for i in range(len(energies)):
        energies[i] = _energy_j(powers[0], flops[i], moved[i], durations[i])


# --- Heap of finishes -----------------------------------------------------------------------------------


@inlined
def _push_finish(r: Record, c: Record, tick: Integer, s: Integer) -> None:
    heap, entry = _integers(r.finishing, c.max_num_seqs), (tick << SLOT_BITS) | s
    i = r.num_finishing
    r.num_finishing += 1
    while i > 0:
        above = (i - 1) >> 1
        if heap[above] <= entry:
            break
        heap[i] = heap[above]
        i = above
    heap[i] = entry


@inlined
def _sift_down(heap: Any, size: Integer, i: Integer, entry: Integer) -> None:
    while True:
        below = 2 * i + 1
        if below >= size:
            break
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= entry:
            break
        heap[i] = heap[below]
        i = below
    heap[i] = entry


@inlined
def _next_finish(r: Record, c: Record) -> Integer:
    """Tick of the next finish; there is one."""
    return _integers(r.finishing, c.max_num_seqs)[0] >> SLOT_BITS


@inlined
def _pop_finish(r: Record, c: Record) -> Integer:
    heap = _integers(r.finishing, c.max_num_seqs)
    s = heap[0] & ((1 << SLOT_BITS) - 1)
    r.num_finishing -= 1
    _sift_down(heap, r.num_finishing, 0, heap[r.num_finishing])
    return s


@compiled
def _remove_finish(r: Record, c: Record, s: Integer) -> None:
    """Take out a preempted request, wherever it is."""
    heap = _integers(r.finishing, c.max_num_seqs)
    i = 0
    while heap[i] & ((1 << SLOT_BITS) - 1) != s:
        i += 1
    r.num_finishing -= 1
    entry = heap[r.num_finishing]
    while i > 0 and heap[(i - 1) >> 1] > entry:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    _sift_down(heap, r.num_finishing, i, entry)


# --- Running and waiting --------------------------------------------------------------------------------


@compiled
def _seat(r: Record, c: Record, q: Integer) -> Integer:
    """Append a request to `running`; returns its slot."""
    slots = _slots(r, c)
    s = r.free_slot
    slot = slots[s]
    r.free_slot = slot.next
    slot.request = q
    slot.previous, slot.next = r.last_running, -1
    if r.last_running >= 0:
        slots[r.last_running].next = s
    else:
        r.first_running = s
    r.last_running = s
    r.num_running += 1
    r.admissions += 1
    slot.order = r.admissions
    slot.num_named = slot.num_private = 0
    slot.last_private = -1
    slot.due_previous = slot.due_next = -1
    slot.decoding = 0
    return s


@compiled
def _unseat(r: Record, c: Record, s: Integer) -> None:
    slots = _slots(r, c)
    slot = slots[s]
    if slot.previous >= 0:
        slots[slot.previous].next = slot.next
    else:
        r.first_running = slot.next
    if slot.next >= 0:
        slots[slot.next].previous = slot.previous
    else:
        r.last_running = slot.previous
    slot.next = r.free_slot
    r.free_slot = s
    r.num_running -= 1


@inlined
def _wait(r: Record, c: Record, q: Integer) -> None:
    """Append to the waiting queue."""
    requests = _requests(c)
    requests[q].next = -1
    if r.num_waiting == 0:
        r.first_waiting = q
    else:
        requests[r.last_waiting].next = q
    r.last_waiting = q
    r.num_waiting += 1


@compiled
def _put_back(r: Record, c: Record, q: Integer) -> None:
    """A preempted request goes to the front."""
    _requests(c)[q].next = r.first_waiting
    r.first_waiting = q
    if r.num_waiting == 0:
        r.last_waiting = q
    r.num_waiting += 1


@inlined
def _pop_waiting(r: Record, c: Record) -> Integer:
    q = r.first_waiting
    r.first_waiting = _requests(c)[q].next
    r.num_waiting -= 1
    return q


# --- Block pool: see block_pool.py ----------------------------------------------------------------------


@inlined
def _allocate(r: Record, count: Integer) -> None:
    """Plain blocks go first, then the least recently freed cached ones are evicted: when it is worth it."""
    evicted = max(count - r.num_plain, 0)
    r.num_plain -= count - evicted
    r.num_free -= count
    r.debt += evicted
    r.step.evicted_blocks += evicted


@compiled
def _settle(r: Record) -> None:
    """Take the evicted blocks from the head of the LRU queue. First in, first out, so it can be late."""
    queue, nodes = _integers(r.queue, r.queue_mask + 1), _nodes(r)
    owed = r.debt
    while owed > 0:
        at = r.queue_head & r.queue_mask
        entry = queue[at]
        if entry < 0:
            if -entry > owed:
                queue[at] = entry + owed
                break
            owed += entry
        elif nodes[entry].queue_position == r.queue_head:
            _forget(r, entry)
            owed -= 1
        r.queue_head += 1
    r.debt = 0


@inlined
def _enqueue(r: Record, entry: Integer) -> Integer:
    """Append a node, or -n for n anonymous cached blocks; returns its position."""
    if r.queue_tail - r.queue_head > r.queue_mask:
        _compact(r)
    position = r.queue_tail
    _integers(r.queue, r.queue_mask + 1)[position & r.queue_mask] = entry
    r.queue_tail += 1
    return position


@compiled
def _compact(r: Record) -> None:
    """Drop entries of nodes that were taken out of the queue; the others move towards the tail."""
    queue, nodes = _integers(r.queue, r.queue_mask + 1), _nodes(r)
    to = position = r.queue_tail - 1
    while position >= r.queue_head:
        entry = queue[position & r.queue_mask]
        if entry < 0 or nodes[entry].queue_position == position:
            queue[to & r.queue_mask] = entry
            if entry >= 0:
                nodes[entry].queue_position = to
            to -= 1
        position -= 1
    r.queue_head = to + 1


@inlined
def _drop(r: Record, node: Integer) -> None:
    """Give back one reference to a node."""
    n = _nodes(r)[node]
    n.references -= 1
    if n.references == 0:
        n.queue_position = _enqueue(r, node)  # (compaction does not touch it: it is not in the queue)
        r.num_free += 1


@inlined
def _take(r: Record, node: Integer) -> None:
    """Take a reference to a cached node; an idle one leaves the queue."""
    n = _nodes(r)[node]
    if n.references == 0:
        n.queue_position = -1
        r.num_free -= 1
    n.references += 1


@compiled
def _drop_anonymous(r: Record, count: Integer) -> None:
    """Cached blocks that nobody can ever find, but which are evicted in their turn."""
    queue, last = _integers(r.queue, r.queue_mask + 1), (r.queue_tail - 1) & r.queue_mask
    if r.queue_tail > r.queue_head and queue[last] < 0:
        queue[last] -= count
    else:
        _enqueue(r, -count)
    r.num_free += count


@compiled
def _release(r: Record, c: Record, s: Integer, computed: Integer) -> None:
    """Free all blocks of a request, tail first: see `BlockPool.free`."""
    blocks = _blocks_for(c, computed)
    if not c.caching:
        r.num_plain += blocks
        r.num_free += blocks
        return
    slot = _slots(r, c)[s]
    hashed = computed // c.block_size
    r.num_plain += blocks - hashed
    r.num_free += blocks - hashed
    anonymous = hashed - slot.num_named - slot.num_private
    if anonymous > 0:
        _drop_anonymous(r, anonymous)
    node = slot.last_private
    for _ in range(slot.num_private):
        parent = _nodes(r)[node].parent
        _drop(r, node)
        node = parent
    if slot.num_named:
        held, first = _view(c.held, c.num_keys, np.int32), _requests(c)[slot.request].first_key
        for i in range(first + slot.num_named - 1, first - 1, -1):
            _drop(r, held[i])


# --- Prefix cache ---------------------------------------------------------------------------------------


@inlined
def _home(r: Record, key: Integer) -> Integer:
    """Where a key's probe sequence begins (Fibonacci hashing)."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(64 - r.map_bits))


@inlined
def _probe(r: Record, key: Integer) -> Integer:
    """Index of the key's entry, or of the empty entry where it belongs."""
    entries, mask = _map(r), (1 << r.map_bits) - 1
    i = _home(r, key)
    while entries[i].node and entries[i].key != key:
        i = (i + 1) & mask
    return i


@inlined
def _find(r: Record, key: Integer) -> Integer:
    """The node that was cached first under this key, or -1."""
    return _map(r)[_probe(r, key)].node - 1


@compiled
def _delete_entry(r: Record, hole: Integer) -> None:
    """Backward-shift deletion: entries behind the hole move up if it is on their way."""
    entries, mask = _map(r), (1 << r.map_bits) - 1
    i = (hole + 1) & mask
    while entries[i].node:
        if ((i - _home(r, entries[i].key)) & mask) >= ((i - hole) & mask):
            entries[hole].key = entries[i].key
            entries[hole].node = entries[i].node
            hole = i
        i = (i + 1) & mask
    entries[hole].node = 0


@compiled
def _forget(r: Record, node: Integer) -> None:
    """An evicted node leaves the map; the next block with the same key, if any, takes its place."""
    entries, nodes = _map(r), _nodes(r)
    evicted = nodes[node]
    at = _probe(r, evicted.key)
    first = entries[at].node - 1
    if first == node:
        if evicted.twin >= 0:
            entries[at].node = evicted.twin + 1
        else:
            _delete_entry(r, at)
    else:
        while nodes[first].twin != node:
            first = nodes[first].twin
        nodes[first].twin = evicted.twin
    evicted.queue_position = -1
    evicted.parent = r.free_node
    r.free_node = node + 1


@inlined
def _new_node(r: Record) -> Integer:
    if r.free_node == 0 and r.num_nodes_ever == r.num_nodes:
        _settle(r)
    if r.free_node == 0:
        node = r.num_nodes_ever
        r.num_nodes_ever += 1
        return node
    node = r.free_node - 1
    r.free_node = _nodes(r)[node].parent
    return node


@inlined
def _insert(r: Record, key: Integer) -> Integer:
    """A held block becomes hittable, behind blocks that have the same key already."""
    node = _new_node(r)
    nodes, entries = _nodes(r), _map(r)
    n = nodes[node]
    n.key, n.queue_position, n.references, n.twin, n.parent = key, -1, 1, -1, -1
    at = _probe(r, key)
    if entries[at].node == 0:
        entries[at].key = key
        entries[at].node = node + 1
    else:
        last = entries[at].node - 1
        while nodes[last].twin >= 0:
            last = nodes[last].twin
        nodes[last].twin = node
    return node


@inlined
def _private_key(q: Integer, index: Integer) -> Integer:
    """`workload.blocks.unknown_key`."""
    return -((np.int64(q) << 24) | index) - 1


@compiled
def _cache_full_blocks(r: Record, c: Record, s: Integer, computed: Integer) -> None:
    """Blocks that this step fills are hittable from now on, as far as the trace tells their keys."""
    slot = _slots(r, c)[s]
    request = _requests(c)[slot.request]
    full = min(computed // c.block_size, request.num_keys)
    if slot.num_named >= full:
        return
    keys, held = _integers(c.keys, c.num_keys), _view(c.held, c.num_keys, np.int32)
    for i in range(request.first_key + slot.num_named, request.first_key + full):
        held[i] = _insert(r, keys[i])
    slot.num_named = full


@compiled
def _name_private_blocks(r: Record, c: Record, s: Integer, computed: Integer) -> None:
    """A preempted request can find its own blocks again: those without a known key become nodes."""
    slot = _slots(r, c)[s]
    for index in range(slot.num_named + slot.num_private, computed // c.block_size):
        node = _insert(r, _private_key(slot.request, index))
        _nodes(r)[node].parent = slot.last_private
        slot.last_private = node
        slot.num_private += 1


@compiled
def _find_cached(r: Record, c: Record, q: Integer) -> tuple[Integer, Integer, Integer, Integer]:
    """The longest cached prefix: (named blocks, private ones, the last of these, how many of all are idle).

    The named ones are listed in `held`. A pure read of the pool.
    """
    if r.debt:
        _settle(r)
    request, nodes = _requests(c)[q], _nodes(r)
    longest = (request.prompt_tokens + request.output_tokens - 1) // c.block_size
    keys, held = _integers(c.keys, c.num_keys), _view(c.held, c.num_keys, np.int32)
    named = private = idle = 0
    last = -1
    first = request.first_key
    known = min(longest, request.num_keys)
    while named < known:
        node = _find(r, keys[first + named])
        if node < 0:
            return named, private, last, idle
        held[first + named] = node
        idle += nodes[node].references == 0
        named += 1
    if request.preemptions:
        while named + private < longest:
            node = _find(r, _private_key(q, named + private))
            if node < 0:
                break
            last = node
            idle += nodes[node].references == 0
            private += 1
    return named, private, last, idle


@compiled
def _touch(r: Record, c: Record, s: Integer, named: Integer, private: Integer, last: Integer) -> None:
    """Give a request its cached blocks."""
    slot = _slots(r, c)[s]
    held, first = _view(c.held, c.num_keys, np.int32), _requests(c)[slot.request].first_key
    for i in range(first, first + named):
        _take(r, held[i])
    slot.num_named, slot.num_private, slot.last_private = named, private, last
    for _ in range(private):
        _take(r, last)
        last = _nodes(r)[last].parent


# --- Decoding requests that name blocks -----------------------------------------------------------------
# The trace tells the key of a block of the answer. It has to be cached in the very step that fills it, so its
# owner is in the list of the residue class whose turn that is.


@inlined
def _due_class(c: Record, offset: Integer) -> Integer:
    """The phase at which a request with this offset computes the last token of a block."""
    return (offset + 1) % c.block_size


@compiled
def _watch(r: Record, c: Record, s: Integer) -> None:
    slots = _slots(r, c)
    slot = slots[s]
    at = _due_class(c, slot.offset)
    first = r.due[at] - 1
    slot.due_previous, slot.due_next = -1, first
    if first >= 0:
        slots[first].due_previous = s
    r.due[at] = s + 1


@compiled
def _unwatch(r: Record, c: Record, s: Integer) -> None:
    slots = _slots(r, c)
    slot = slots[s]
    at = _due_class(c, slot.offset)
    if slot.due_previous >= 0:
        slots[slot.due_previous].due_next = slot.due_next
    elif r.due[at] == s + 1:
        r.due[at] = slot.due_next + 1
    if slot.due_next >= 0:
        slots[slot.due_next].due_previous = slot.due_previous
    slot.due_previous = slot.due_next = -1


@inlined
def _sort_by_order(r: Record, c: Record, chosen: Any, count: Integer) -> None:
    """Slots into running order; few, and nearly sorted."""
    slots = _slots(r, c)
    for i in range(1, count):
        s, k = chosen[i], i
        while k > 0 and slots[chosen[k - 1]].order > slots[s].order:
            chosen[k] = chosen[k - 1]
            k -= 1
        chosen[k] = s


@compiled
def _cache_running(r: Record, c: Record) -> None:
    """Cache what running requests fill in this step, in running order."""
    slots, chosen = _slots(r, c), _integers(r.scratch, c.max_num_seqs)
    prefilling = _integers(r.prefilling, c.max_num_seqs)
    count = 0
    s = r.due[r.phase] - 1
    while s >= 0:
        chosen[count] = s
        count += 1
        s = slots[s].due_next
    for i in range(r.num_prefilling):
        chosen[count] = prefilling[i]
        count += 1
    _sort_by_order(r, c, chosen, count)
    for i in range(count):
        s = chosen[i]
        slot = slots[s]
        if not slot.decoding:
            _cache_full_blocks(r, c, s, slot.computed + slot.chunk)
            continue
        _cache_full_blocks(r, c, s, slot.offset + r.tick + 1)
        if slot.num_named == _requests(c)[slot.request].num_keys:
            _unwatch(r, c, s)


# --- schedule: see Scheduler.schedule -------------------------------------------------------------------


@inlined
def _begin_decision(r: Record) -> None:
    step = r.step
    step.start_s = r.now_s
    step.prefills = step.prefill_tokens = step.prefill_pairs = step.prefill_context_tokens = 0
    step.decodes = step.decode_context_tokens = step.sampled = 0
    step.evicted_blocks = step.preempted = step.queried_tokens = step.hit_tokens = 0
    r.num_sampling = 0


@inlined
def _plan_chunks(r: Record, c: Record, limit: Integer) -> tuple[Integer, Integer]:
    """Chunks of the running prefills; returns the budget that is left and the blocks that all wants.

    Decodes can be counted first although the scheduler goes through `running` in order: when somebody was
    admitted, all before got what they wanted, and wants never grow. Only the last of `running` can get less.
    """
    slots, prefilling = _slots(r, c), _integers(r.prefilling, c.max_num_seqs)
    left, blocks = c.max_num_batched_tokens - r.num_decoding, np.int64(r.wanting[r.phase])
    for i in range(r.num_prefilling):
        slot = slots[prefilling[i]]
        chunk = slot.target - slot.computed
        if 0 < limit < chunk:
            chunk = limit
        slot.chunk = min(chunk, left)
        left -= slot.chunk
        blocks += _blocks_for(c, slot.computed + slot.chunk) - _blocks_for(c, slot.computed)
    return left, blocks


@inlined
def _leave_decoding(r: Record, c: Record, slot: Record) -> None:
    r.num_decoding -= 1
    r.decoding_tokens -= slot.offset + r.tick
    r.wanting[slot.offset % c.block_size] -= 1


@compiled
def _preempt_last(r: Record, c: Record) -> None:
    """Take all blocks from the tail of `running` and put it back into the queue."""
    s = r.last_running
    slot = _slots(r, c)[s]
    request = _requests(c)[slot.request]
    computed = slot.computed
    if slot.decoding:
        computed = slot.offset + r.tick
        request.output_tokens = request.output_length - (slot.finish_tick - r.tick)
        request.last_token_s = r.now_s
        _leave_decoding(r, c, slot)
        _remove_finish(r, c, s)
        if c.caching:
            _unwatch(r, c, s)
    else:
        r.num_prefilling -= 1
    if c.caching:
        _name_private_blocks(r, c, s, computed)
    _release(r, c, s, computed)
    _unseat(r, c, s)
    request.preemptions += 1
    r.step.preempted += 1
    _put_back(r, c, slot.request)


@inlined
def _blocks_wanted(r: Record, c: Record, slot: Record) -> Integer:
    if slot.decoding:
        return np.int64((slot.offset + r.tick) % c.block_size == 0)
    return _blocks_for(c, slot.computed + slot.chunk) - _blocks_for(c, slot.computed)


@compiled
def _extend_or_preempt(r: Record, c: Record) -> None:
    """Blocks are short: go through `running` in order, since what is freed on the way is handed out again."""
    slots = _slots(r, c)
    s = r.first_running
    while s >= 0:
        blocks = _blocks_wanted(r, c, slots[s])
        while blocks > r.num_free:
            victim = r.last_running
            _preempt_last(r, c)
            if victim == s:
                return
        _allocate(r, blocks)
        s = slots[s].next


@inlined
def _count_prefill(r: Record, request: Record, computed: Integer, chunk: Integer) -> None:
    """As `scheduler._advance`: one token behind the prompt counts as a decode, even if it was lost before."""
    step = r.step
    after = computed + chunk
    if chunk == 1 and computed >= request.prompt_tokens:
        step.decodes += 1
        step.decode_context_tokens += after
    else:
        step.prefills += 1
        step.prefill_tokens += chunk
        step.prefill_pairs += chunk * computed + chunk * (chunk + 1) // 2
        step.prefill_context_tokens += after
    step.sampled += after == request.prompt_tokens + request.output_tokens


@inlined
def _keep_prefill(r: Record, c: Record, s: Integer, slot: Record) -> None:
    """Note whether a prefill ends with this step or goes on."""
    if slot.computed == slot.target:
        _integers(r.sampling, c.max_num_seqs)[r.num_sampling] = s
        r.num_sampling += 1
    else:
        _integers(r.prefilling, c.max_num_seqs)[r.num_prefilling] = s
        r.num_prefilling += 1


@compiled
def _advance_prefills(r: Record, c: Record) -> None:
    """Count the planned chunks as computed."""
    slots, requests = _slots(r, c), _requests(c)
    prefilling = _integers(r.prefilling, c.max_num_seqs)
    count = r.num_prefilling
    r.num_prefilling = 0
    for i in range(count):
        s = prefilling[i]
        slot = slots[s]
        _count_prefill(r, requests[slot.request], slot.computed, slot.chunk)
        slot.computed += slot.chunk
        _keep_prefill(r, c, s, slot)


@inlined
def _reject(r: Record, c: Record) -> None:
    _requests(c)[_pop_waiting(r, c)].status = REJECTED_KV
    r.num_ended += 1


@inlined
def _count_lookup(r: Record, c: Record, request: Record, total: Integer, cached: Integer) -> None:
    """As `Scheduler._count_lookup`, and the time: on first admission."""
    if request.cached_tokens < 0:
        request.cached_tokens = cached
        request.first_scheduled_s = r.now_s
        if c.caching:
            r.step.queried_tokens += total
            r.step.hit_tokens += cached


@compiled
def _admit(r: Record, c: Record, left: Integer, limit: Integer) -> Integer:
    """Admit the head of the queue; returns the tokens it computes in this step, 0 if it has to wait."""
    request = _requests(c)[r.first_waiting]
    total = np.int64(request.prompt_tokens + request.output_tokens)
    named = private = idle = 0
    last = -1
    if c.caching:
        named, private, last, idle = _find_cached(r, c, r.first_waiting)
    hits = named + private
    cached = hits * c.block_size
    chunk = total - cached
    if 0 < limit < chunk:
        chunk = limit
    if not c.chunked_prefill and chunk > left:
        return 0
    chunk = min(chunk, left)
    to_fit = total if c.reserve_full_isl else cached + chunk
    reserve = c.watermark_blocks if r.num_running else 0
    if _blocks_for(c, to_fit) - hits + idle + reserve > r.num_free:
        return 0
    s = _seat(r, c, _pop_waiting(r, c))
    if hits:
        _touch(r, c, s, named, private, last)
    _allocate(r, _blocks_for(c, cached + chunk) - hits)
    if c.caching:
        _cache_full_blocks(r, c, s, cached + chunk)
    _count_lookup(r, c, request, total, cached)
    _count_prefill(r, request, cached, chunk)
    slot = _slots(r, c)[s]
    slot.computed, slot.target = cached + chunk, total
    _keep_prefill(r, c, s, slot)
    return chunk


@compiled
def _admit_waiting(r: Record, c: Record, left: Integer, limit: Integer) -> None:
    """Admit from the head of the queue while seats, budget and blocks last. Nobody passes the head."""
    requests = _requests(c)
    while left > 0 and r.num_waiting > 0 and r.num_running < c.max_num_seqs:
        head = requests[r.first_waiting]
        if _blocks_for(c, np.int64(head.prompt_tokens + head.output_tokens)) > c.num_usable:
            _reject(r, c)
            continue
        chunk = _admit(r, c, left, limit)
        if chunk == 0:
            break
        left -= chunk


@compiled
def _schedule(r: Record, c: Record) -> bool:
    """Decide the step that begins at `now_s`, and begin it; False if an array has no room for it."""
    if r.num_running == 0 and r.num_waiting == 0:
        r.mode, r.end_s = IDLE, np.inf
        return True
    _begin_decision(r)
    alone = r.num_running + r.num_waiting <= 1
    limit = 0 if alone else c.long_prefill_token_threshold
    left, blocks = _plan_chunks(r, c, limit)
    if blocks > r.num_free:
        _extend_or_preempt(r, c)
    else:
        _allocate(r, blocks)
    if c.caching and (r.due[r.phase] or r.num_prefilling):
        _cache_running(r, c)
    if r.num_prefilling:
        _advance_prefills(r, c)
    if r.step.preempted == 0 and r.num_waiting > 0:
        _admit_waiting(r, c, left, limit)
        if r.num_running == 0 and r.num_waiting == 0:  # all that was left to do was rejected
            r.mode, r.end_s = IDLE, np.inf
            return True
    step = r.step
    step.decodes += r.num_decoding
    step.decode_context_tokens += r.decoding_tokens + r.num_decoding
    step.sampled += r.num_decoding
    step.running, step.waiting = r.num_running, r.num_waiting
    step.used_blocks = c.num_usable - r.num_free
    return _begin_step(r, c)


@inlined
def _price_step(r: Record, c: Record) -> None:
    s = r.step
    s.duration_s, s.flops, s.bytes = _step_cost(
        c,
        s.prefills,
        s.prefill_tokens,
        s.prefill_pairs,
        s.prefill_context_tokens,
        s.decodes,
        s.decode_context_tokens,
        s.sampled,
    )
    s.energy_j = _energy_j(c.power, s.flops, s.bytes, s.duration_s)


@inlined
def _has_cells(r: Record, c: Record) -> bool:
    """Whether the timeline reaches to the end of the step."""
    end_s = r.step.start_s - c.grid.start_s + r.step.duration_s
    return end_s < c.grid.interval_s * (r.num_cells - 1)


@inlined
def _record_step(r: Record, c: Record) -> None:
    s = r.step
    r.peak_used_blocks = max(r.peak_used_blocks, s.used_blocks)
    accumulate(_view(r.cells, r.num_cells, CELL), r.cursor, c.grid, s)
    if c.logging:
        _view(r.log, r.log_room, STEP)[r.num_log] = s
        r.num_log += 1


@compiled
def _begin_step(r: Record, c: Record) -> bool:
    """Price and record the step that is decided; False, and stalled, while there is no room."""
    _price_step(r, c)
    if not _has_cells(r, c):
        r.mode, r.end_s = STALLED, r.now_s
        return False
    _record_step(r, c)
    r.end_s = r.last_end_s = r.now_s + r.step.duration_s
    quiet = r.num_decoding == r.num_running and r.step.preempted == 0
    r.mode = DECODING if quiet and r.num_decoding > 0 else DECIDING
    return True


# --- complete: see Scheduler.complete -------------------------------------------------------------------


@inlined
def _record_gap(r: Record, gap_s: float, count: Integer) -> None:
    gap = _view(r.gaps, r.gap_room, GAP)[r.num_gaps]
    gap.gap_s, gap.count = gap_s, count
    r.num_gaps += 1


@inlined
def _pass_step(r: Record, c: Record) -> None:
    """Every decoding request has one more token."""
    if r.num_decoding:
        _record_gap(r, r.end_s - r.now_s, r.num_decoding)
    r.now_s = r.end_s
    r.tick += 1
    r.decoding_tokens += r.num_decoding
    r.phase = (c.block_size if r.phase == 0 else r.phase) - 1


@inlined
def _join_decoding(
    r: Record, c: Record, s: Integer, slot: Record, request: Record, tokens_left: Integer
) -> None:
    slot.offset = slot.target - r.tick
    slot.finish_tick = r.tick + tokens_left
    slot.decoding = 1
    r.num_decoding += 1
    r.decoding_tokens += slot.target
    r.wanting[slot.offset % c.block_size] += 1
    _push_finish(r, c, slot.finish_tick, s)
    if slot.num_named < request.num_keys:
        _watch(r, c, s)


@compiled
def _sample_prefills(r: Record, c: Record, done: Any, count: Integer) -> Integer:
    """Prefills that ended give their first token, or the next one after a preemption."""
    slots, requests = _slots(r, c), _requests(c)
    sampling = _integers(r.sampling, c.max_num_seqs)
    for i in range(r.num_sampling):
        s = sampling[i]
        slot = slots[s]
        request = requests[slot.request]
        if request.output_tokens == 0:
            request.first_token_s = r.now_s
        else:
            _record_gap(r, r.now_s - request.last_token_s, 1)
        tokens_left = request.output_length - request.output_tokens - 1
        if tokens_left:
            _join_decoding(r, c, s, slot, request, tokens_left)
        else:
            done[count] = s
            count += 1
    return count


@inlined
def _finish(r: Record, c: Record, s: Integer) -> None:
    slot = _slots(r, c)[s]
    request = _requests(c)[slot.request]
    computed = slot.target
    if slot.decoding:
        computed = slot.offset + r.tick
        _leave_decoding(r, c, slot)
        if slot.num_named < request.num_keys:
            _unwatch(r, c, s)
    _release(r, c, s, computed)
    _unseat(r, c, s)
    request.output_tokens = request.output_length
    request.last_token_s = r.now_s
    request.status = FINISHED
    r.num_ended += 1


@compiled
def _complete(r: Record, c: Record) -> None:
    """The running step ends: its tokens are known. Requests leave in batch order: it makes the LRU order."""
    _pass_step(r, c)
    done, count = _integers(r.scratch, c.max_num_seqs), 0
    while r.num_finishing > 0 and _next_finish(r, c) == r.tick:
        done[count] = _pop_finish(r, c)
        count += 1
    if r.num_sampling:
        count = _sample_prefills(r, c, done, count)
    _sort_by_order(r, c, done, count)
    for i in range(count):
        _finish(r, c, done[i])


# --- The clock ------------------------------------------------------------------------------------------


@inlined
def _has_room(r: Record, c: Record) -> bool:
    """Whether one more step's gaps and log entry fit."""
    return r.num_gaps + c.max_num_seqs < r.gap_room and r.num_log < r.log_room


@compiled
def _coast(r: Record, c: Record, limit_s: float) -> None:
    """Pass the steps that end before `limit_s` and are followed by one like them.

    Only decodes, nobody finishes or names a block, blocks suffice. The head of the waiting queue, if any, was
    refused for want of blocks, seats or budget, and none of these grows here: it need not be asked again.
    """
    finish_tick, s = _next_finish(r, c), r.step
    s.evicted_blocks = s.preempted = s.queried_tokens = s.hit_tokens = 0
    s.waiting = r.num_waiting
    while r.end_s < limit_s and r.tick + 1 < finish_tick and _has_room(r, c):
        phase = (c.block_size if r.phase == 0 else r.phase) - 1
        blocks = np.int64(r.wanting[phase])
        if blocks > r.num_free or r.due[phase]:
            break
        s.start_s = r.end_s
        s.decode_context_tokens = r.decoding_tokens + 2 * r.num_decoding
        _price_step(r, c)
        if not _has_cells(r, c):
            break
        _pass_step(r, c)
        s.evicted_blocks = 0
        _allocate(r, blocks)
        s.used_blocks = c.num_usable - r.num_free
        _record_step(r, c)
        r.end_s = r.last_end_s = r.now_s + s.duration_s


@compiled
def _advance(r: Record, c: Record, limit_s: float) -> bool:
    """Run all steps that end before `limit_s`; False if an array is full."""
    if r.mode == STALLED and not _begin_step(r, c):
        return False
    while r.end_s < limit_s:
        if not _has_room(r, c):
            return False
        if r.mode == DECODING:
            _coast(r, c, limit_s)
            if r.end_s >= limit_s:
                break
            if not _has_room(r, c):
                return False
        if r.mode == IDLE:
            r.now_s = r.end_s
        else:
            _complete(r, c)
        if not _schedule(r, c):
            return False
    return True


@inlined
def _arrive(r: Record, c: Record, q: Integer, now_s: float) -> None:
    """A request joins the queue; the step that begins at `now_s`, if any, sees it."""
    if r.mode == IDLE and r.end_s == np.inf:
        r.end_s = now_s
    elif r.mode == DECODING and r.num_waiting == 0:
        r.mode = DECIDING
    _wait(r, c, q)


@entry_point
def run_replica(replicas: Any, settings: Any, index: Integer, until: Integer) -> bool:
    """Play the arrivals of one replica before `until`, and to the end if there is none; False: make room."""
    r, c = replicas[index], settings[0]
    requests, arrivals = _requests(c), _integers(c.arrivals, c.num_arrivals)
    until = min(until, r.end_arrival)
    while r.next_arrival < until:
        q = arrivals[r.next_arrival]
        now_s = requests[q].arrival_s
        if r.end_s < now_s and not _advance(r, c, now_s):
            return False
        _arrive(r, c, q, now_s)
        r.next_arrival += 1
    return r.next_arrival < r.end_arrival or _advance(r, c, np.inf)


# --- State-aware routing --------------------------------------------------------------------------------


@inlined
def _next_change(r: Record, c: Record) -> float:
    """A lower bound on when the number of outstanding requests can change next."""
    if r.mode == IDLE:
        return np.nextafter(r.end_s, np.inf)  # what is decided at `end_s` shows behind it
    if r.mode != DECODING or r.num_waiting:
        return r.end_s
    steps = _next_finish(r, c) - r.tick - 1
    if _blocks_for(c, steps) * r.num_decoding > r.num_free:
        steps = r.num_free // r.num_decoding * c.block_size
    # Contexts grow, so that steps get no shorter.
    return r.end_s + steps * (r.end_s - r.now_s) * (1 - 1e-9)


@inlined
def _rekey(tree: Any, index: Integer, key: float) -> None:
    """Set a leaf of the winner tree and the minima above it."""
    i = len(tree) // 2 + index
    tree[i] = key
    i >>= 1
    while i > 0:
        least = min(tree[2 * i], tree[2 * i + 1])
        if tree[i] == least:
            break
        tree[i] = least
        i >>= 1


@inlined
def _winner(tree: Any) -> Integer:
    """The replica with the least key."""
    leaves, i = len(tree) // 2, 1
    while i < leaves:
        i *= 2
        if tree[i] != tree[i >> 1]:
            i += 1
    return i - leaves


@inlined
def _catch_up(r: Record, c: Record, now_s: float) -> bool:
    """All steps that end by `now_s` have ended; the next is decided only when all have arrived."""
    if not _advance(r, c, now_s):
        return False
    if r.end_s == now_s and r.mode != IDLE:
        if not _has_room(r, c):
            return False
        _complete(r, c)
        r.mode = IDLE
    return True


@inlined
def _least_outstanding(outstanding: Any) -> Integer:
    """`router.LeastOutstanding`: the first of those with the fewest."""
    least, chosen = outstanding[0], 0
    for i in range(1, len(outstanding)):
        if outstanding[i] < least:
            least, chosen = outstanding[i], i
    return chosen


@entry_point
def run_fleet(
    replicas: Any, settings: Any, tree: Any, outstanding: Any, chosen: Any, position: Any, until: Integer
) -> Integer:
    """Play arrivals `position` to `until` in global order; returns a replica that needs room, or -1."""
    c = settings[0]
    requests, arrivals = _requests(c), _integers(c.arrivals, c.num_arrivals)
    for i in range(position[0], until):
        position[0] = i
        q = arrivals[i]
        now_s = requests[q].arrival_s
        while tree[1] <= now_s:
            index = _winner(tree)
            r = replicas[index]
            if not _catch_up(r, c, now_s):
                return index
            outstanding[index] = r.num_waiting + r.num_running
            _rekey(tree, index, _next_change(r, c))
        index = _least_outstanding(outstanding)
        r = replicas[index]
        if not _catch_up(r, c, now_s):
            return index
        chosen[q] = index
        _arrive(r, c, q, now_s)
        outstanding[index] += 1
        _rekey(tree, index, _next_change(r, c))
    position[0] = until
    return -1
