"""Compiled: who runs, who waits, and who finishes when."""

from __future__ import annotations

from kavier.native.kit import INT32, INT64, Integer, Record, at, larger, smaller, trailing_zeros
from kavier.simulation.kernel.records import FINISHED, PREFILLING, REQUEST, SLOT, WHEEL
from kavier.simulation.kernel.typed import Replica, Settings, compiled, inlined

NEVER = 2**62


@inlined
def request_at(c: Settings, q: Integer) -> Record:
    """Request q."""
    return at(c.requests, c.num_requests, q, REQUEST)


@inlined
def slot_at(r: Replica, c: Settings, s: Integer) -> Record:
    """Slot s."""
    return at(r.slots, c.max_num_seqs, s, SLOT)


@inlined
def listed(array: Integer, c: Settings, i: Integer) -> Record:
    """Entry of an array of slots."""
    return at(array, c.max_num_seqs, i, INT64)


# --- Running: a list in the order of admission ------------------------------------------------------------


@compiled
def seat(r: Replica, c: Settings, q: Integer) -> Integer:
    """Append a request to `running`; returns its slot."""
    if r.free_slot:
        s = r.free_slot - 1
        r.free_slot = slot_at(r, c, s).next
    else:
        s = r.num_slots_ever
        r.num_slots_ever += 1
    slot = slot_at(r, c, s)
    slot.request = q
    slot.previous, slot.next = r.last_running, -1
    if r.last_running >= 0:
        slot_at(r, c, r.last_running).next = s
    else:
        r.first_running = s
    r.last_running = s
    r.num_running += 1
    r.admissions += 1
    slot.order = r.admissions
    slot.state = PREFILLING
    slot.num_nodes = 0
    slot.energy_j = 0.0
    slot.due_previous = slot.due_next = -1
    return s


@compiled
def unseat(r: Replica, c: Settings, s: Integer) -> None:
    """Take a slot out of `running`."""
    slot = slot_at(r, c, s)
    if slot.previous >= 0:
        slot_at(r, c, slot.previous).next = slot.next
    else:
        r.first_running = slot.next
    if slot.next >= 0:
        slot_at(r, c, slot.next).previous = slot.previous
    else:
        r.last_running = slot.previous
    slot.next = r.free_slot
    r.free_slot = s + 1
    r.num_running -= 1


@inlined
def sort_by_order(r: Replica, c: Settings, array: Integer, count: Integer) -> None:
    """Slots into running order; few, and nearly sorted."""
    for i in range(1, count):
        s, k = listed(array, c, i).value, i
        order = slot_at(r, c, s).order
        while k > 0 and slot_at(r, c, listed(array, c, k - 1).value).order > order:
            listed(array, c, k).value = listed(array, c, k - 1).value
            k -= 1
        listed(array, c, k).value = s


# --- Waiting: see waiting_queue.py ------------------------------------------------------------------------
# First come, first served: a linked list. By priority: a pairing heap by `rank`, its root in first_waiting.
# Requests that finish while they wait stay until they come to the head.


@inlined
def _child(c: Settings, q: Integer) -> Record:
    return at(c.children, c.num_requests, q, INT32)


@inlined
def _meld(c: Settings, a: Integer, b: Integer) -> Integer:
    """Two heaps as one; returns its root. -1 is the empty heap."""
    if a < 0 or b < 0:
        return larger(a, b)
    if request_at(c, b).rank < request_at(c, a).rank:
        a, b = b, a
    child = _child(c, a)
    request_at(c, b).next = child.value
    child.value = b
    return a


@compiled
def _meld_children(c: Settings, q: Integer) -> Integer:
    """The heap without its root: children in pairs from the left, then the pairs from the right."""
    pairs = -1
    while q >= 0:
        after = request_at(c, q).next
        beyond = -1
        if after >= 0:
            beyond = request_at(c, after).next
            request_at(c, after).next = -1
        request_at(c, q).next = -1
        pair = _meld(c, q, after)
        request_at(c, pair).next = pairs
        pairs, q = pair, beyond
    heap = -1
    while pairs >= 0:
        after = request_at(c, pairs).next
        request_at(c, pairs).next = -1
        heap = _meld(c, heap, pairs)
        pairs = after
    return heap


@inlined
def _push(r: Replica, c: Settings, q: Integer) -> None:
    request_at(c, q).next = -1
    _child(c, q).value = -1
    r.first_waiting = q if r.num_waiting == 0 else _meld(c, r.first_waiting, q)


@inlined
def wait(r: Replica, c: Settings, q: Integer) -> None:
    """A request arrived."""
    if c.by_priority:
        _push(r, c, q)
    else:
        request_at(c, q).next = -1
        if r.num_waiting == 0:
            r.first_waiting = q
        else:
            request_at(c, r.last_waiting).next = q
        r.last_waiting = q
    r.num_waiting += 1


@compiled
def put_back(r: Replica, c: Settings, q: Integer) -> None:
    """A request was preempted: first come, first served, it goes to the front."""
    if c.by_priority:
        _push(r, c, q)
    else:
        if r.num_waiting == 0:
            r.last_waiting = q
            request_at(c, q).next = -1
        else:
            request_at(c, q).next = r.first_waiting
        r.first_waiting = q
    r.num_waiting += 1


@inlined
def _drop_head(r: Replica, c: Settings) -> None:
    q = r.first_waiting
    r.first_waiting = _meld_children(c, _child(c, q).value) if c.by_priority else request_at(c, q).next


@inlined
def waiting_head(r: Replica, c: Settings) -> Integer:
    """The next to be admitted; somebody waits."""
    while request_at(c, r.first_waiting).status == FINISHED:
        _drop_head(r, c)
    return r.first_waiting


@inlined
def pop_waiting(r: Replica, c: Settings) -> Integer:
    """Take the head, which `waiting_head` has told, out."""
    q = r.first_waiting
    _drop_head(r, c)
    r.num_waiting -= 1
    return q


# --- Finishing: a calendar that turns, of lists by tick ---------------------------------------------------


@inlined
def _bucket(r: Replica, tick: Integer) -> Record:
    return at(r.wheel, WHEEL, tick & (WHEEL - 1), INT32)


@inlined
def _bits(r: Replica, tick: Integer) -> Record:
    return at(r.wheel_bits, WHEEL // 64, (tick & (WHEEL - 1)) >> 6, INT64)


@inlined
def enter_finish(r: Replica, c: Settings, s: Integer) -> None:
    """Note when a decoding slot finishes: behind this tick. What is too far away is looked at before."""
    slot = slot_at(r, c, s)
    tick = smaller(slot.finish_tick, r.tick + WHEEL - 1)
    bucket = _bucket(r, tick)
    slot.wheel_previous = -(tick & (WHEEL - 1)) - 1  # the first of its list: minus the bucket, minus one
    slot.wheel_next = bucket.value - 1
    if bucket.value:
        slot_at(r, c, bucket.value - 1).wheel_previous = s
    bucket.value = s + 1
    bits = _bits(r, tick)
    bits.value |= 1 << (tick & 63)


@inlined
def leave_finish(r: Replica, c: Settings, s: Integer) -> None:
    """A decoding slot was preempted."""
    slot = slot_at(r, c, s)
    if slot.wheel_next >= 0:
        slot_at(r, c, slot.wheel_next).wheel_previous = slot.wheel_previous
    if slot.wheel_previous >= 0:
        slot_at(r, c, slot.wheel_previous).wheel_next = slot.wheel_next
    else:
        tick = -slot.wheel_previous - 1
        _bucket(r, tick).value = slot.wheel_next + 1
        if slot.wheel_next < 0:
            bits = _bits(r, tick)
            bits.value &= ~(1 << (tick & 63))


@inlined
def next_finish(r: Replica) -> Integer:
    """The first tick from the present one on whose list is not empty."""
    if r.num_decoding == 0:
        return NEVER
    here = r.tick & (WHEEL - 1)
    word = here >> 6
    bits = at(r.wheel_bits, WHEEL // 64, word, INT64).value >> (here & 63) << (here & 63)
    turns = 0
    while bits == 0:
        turns += 1
        word = (word + 1) & (WHEEL // 64 - 1)
        bits = at(r.wheel_bits, WHEEL // 64, word, INT64).value
        if turns == WHEEL // 64:  # back in the first word: what is below the present tick is next round
            break
    found = (word << 6) + trailing_zeros(bits)
    return r.tick + ((found - here) & (WHEEL - 1))


@inlined
def take_finished(r: Replica, c: Settings, array: Integer) -> Integer:
    """Take those out who finish with the present tick; lists them, and returns how many."""
    bits = _bits(r, r.tick)
    if bits.value >> (r.tick & 63) & 1 == 0:
        return 0
    bits.value &= ~(1 << (r.tick & 63))
    bucket = _bucket(r, r.tick)
    s, count = bucket.value - 1, 0
    bucket.value = 0
    while s >= 0:
        slot = slot_at(r, c, s)
        after = slot.wheel_next
        if slot.finish_tick == r.tick:
            listed(array, c, count).value = s
            count += 1
        else:
            enter_finish(r, c, s)
        s = after
    return count
