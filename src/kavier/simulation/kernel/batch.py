"""Compiled: who takes part in the next step. Functions have the names of `scheduler.Scheduler.schedule`.

A decoding request is not touched when a step passes. A replica counts the steps that it has scheduled
(`tick`); a request keeps `offset`, its tokens computed less the tick, which does not change. What the
requests of a residue class of offsets need of blocks, they need in the same step: `wanting` counts them.
"""

from __future__ import annotations

from kavier.native.kit import INT32, Integer, Record, at, larger, prefetch, smaller
from kavier.simulation.kernel.blocks import allocate, blocks_for
from kavier.simulation.kernel.prefix import (
    cache_full_blocks,
    find_cached,
    keep_untold_blocks,
    release,
    tell,
    touch,
)
from kavier.simulation.kernel.queues import (
    leave_finish,
    listed,
    pop_waiting,
    put_back,
    request_at,
    seat,
    slot_at,
    sort_by_order,
    unseat,
    waiting_head,
)
from kavier.simulation.kernel.records import DECODING, DRAINING, GONE, PREFILLING, REJECTED_KV
from kavier.simulation.kernel.shares import is_decode, keep_energy, leave_shares, pairs_of
from kavier.simulation.kernel.typed import Replica, Request, Settings, Slot, compiled, inlined
from kavier.timing.compiled import PRICE_BYTES


@inlined
def wanting_at(r: Replica, c: Settings, phase: Integer) -> Record:
    """How many decodes need a block in the steps of a phase."""
    return at(r.wanting, c.block_size, phase, INT32)


@inlined
def due_at(r: Replica, c: Settings, phase: Integer) -> Record:
    """The list of decodes that name a block in the steps of a phase; slot + 1."""
    return at(r.due, c.block_size, phase, INT32)


# --- Decodes that name blocks -----------------------------------------------------------------------------
# The trace tells the key of a block of the answer. It has to be cached in the very step that fills it
# (asynchronous: in the next, when its last token is known), so its owner is in the list of that step's phase.


@inlined
def _due_class(c: Settings, offset: Integer) -> Integer:
    return (offset + 1 - c.asynchronous) % c.block_size


@compiled
def watch(r: Replica, c: Settings, s: Integer) -> None:
    """A decode has blocks to name."""
    slot = slot_at(r, c, s)
    due = due_at(r, c, _due_class(c, slot.offset))
    slot.due_previous, slot.due_next = -1, due.value - 1
    if due.value:
        slot_at(r, c, due.value - 1).due_previous = s
    due.value = s + 1


@compiled
def unwatch(r: Replica, c: Settings, s: Integer) -> None:
    """It has none any more, or stops decoding."""
    slot = slot_at(r, c, s)
    due = due_at(r, c, _due_class(c, slot.offset))
    if slot.due_previous >= 0:
        slot_at(r, c, slot.due_previous).due_next = slot.due_next
    elif due.value == s + 1:
        due.value = slot.due_next + 1
    if slot.due_next >= 0:
        slot_at(r, c, slot.due_next).due_previous = slot.due_previous
    slot.due_previous = slot.due_next = -1


@compiled
def _cache_decode(r: Replica, c: Settings, s: Integer) -> None:
    """Cache what a decode fills in this step."""
    slot = slot_at(r, c, s)
    cache_full_blocks(r, c, s, slot.offset + r.tick + 1 - c.asynchronous)
    if slot.num_nodes == slot.num_told:
        unwatch(r, c, s)


@compiled
def _cache_running(r: Replica, c: Settings) -> None:
    """Cache what running requests fill in this step, in running order."""
    count = 0
    s = due_at(r, c, r.phase).value - 1
    while s >= 0:
        listed(r.scratch, c, count).value = s
        count += 1
        s = slot_at(r, c, s).due_next
    for i in range(r.num_prefilling):
        listed(r.scratch, c, count).value = listed(r.prefilling, c, i).value
        count += 1
    sort_by_order(r, c, r.scratch, count)
    for i in range(count):
        s = listed(r.scratch, c, i).value
        slot = slot_at(r, c, s)
        if slot.state == DECODING:
            _cache_decode(r, c, s)
        else:
            cache_full_blocks(r, c, s, slot.computed + slot.chunk)


# --- Running ------------------------------------------------------------------------------------------------


@inlined
def chunk_limit(r: Replica, c: Settings) -> Integer:
    """`Scheduler._chunk_limit`."""
    alone = r.num_running + r.num_waiting <= 1
    return 0 if alone and c.lone_request_unlimited else c.long_prefill_token_threshold


@inlined
def _chunk(slot: Slot, limit: Integer, left: Integer) -> Integer:
    chunk = slot.target - slot.computed
    if 0 < limit < chunk:
        chunk = limit
    return smaller(chunk, left)


@inlined
def _blocks_of_chunk(c: Settings, slot: Slot) -> Integer:
    return blocks_for(c, slot.computed + slot.chunk) - blocks_for(c, slot.computed)


@inlined
def _plan_chunks(r: Replica, c: Settings, limit: Integer) -> tuple[Integer, Integer]:
    """Chunks of the running prefills; returns the budget that is left and the blocks that all want.

    Decodes can be counted first although the scheduler goes through `running` in order: when somebody was
    admitted, all before got what they wanted, and wants never grow. Only the last of `running` can get less.
    """
    left, blocks = c.max_num_batched_tokens - r.num_decoding, wanting_at(r, c, r.phase).value + 0
    for i in range(r.num_prefilling):
        slot = slot_at(r, c, listed(r.prefilling, c, i).value)
        slot.chunk = _chunk(slot, limit, left)
        left -= slot.chunk
        blocks += _blocks_of_chunk(c, slot)
    return left, blocks


@inlined
def leave_decoding(r: Replica, c: Settings, slot: Slot) -> None:
    """A slot decodes no more."""
    leave_shares(r, slot)
    r.num_decoding -= 1
    r.decoding_tokens -= slot.offset + r.tick
    wanting_at(r, c, slot.offset % c.block_size).value -= 1


@inlined
def hashed_tokens(r: Replica, c: Settings, slot: Slot) -> Integer:
    """Tokens of a decode whose full blocks are cached. Asynchronous: the last computed was unknown then."""
    return larger(slot.offset + r.tick - c.asynchronous, slot.target + 0)


@inlined
def _forget_prefill(r: Replica, c: Settings, s: Integer) -> None:
    """Take a slot out of the list of prefills."""
    k = 0
    for i in range(r.num_prefilling):
        other = listed(r.prefilling, c, i).value
        if other != s:
            listed(r.prefilling, c, k).value = other
            k += 1
    r.num_prefilling = k


@compiled
def _preempt(r: Replica, c: Settings, s: Integer, chunk: Integer) -> None:
    """Take all blocks of a slot and put its request back into the queue.

    chunk: Tokens that it was given already in the step being decided.
    """
    slot = slot_at(r, c, s)
    q = slot.request + 0
    request = request_at(c, q)
    if slot.state == PREFILLING:
        computed = slot.computed + chunk
        hashed = computed
        keep_energy(c, slot)
        _forget_prefill(r, c, s)
    else:
        computed = slot.offset + r.tick + chunk
        hashed = hashed_tokens(r, c, slot)
        if chunk:
            hashed = larger(computed - c.asynchronous, slot.target + 0)
        if slot.state == DECODING:
            request.output_tokens = request.output_length - (slot.finish_tick - r.tick)
            request.last_token_s = r.end_s
            leave_decoding(r, c, slot)
            keep_energy(c, slot)
            leave_finish(r, c, s)
            if c.caching:
                unwatch(r, c, s)
        else:
            slot.state = GONE
    if c.caching:
        keep_untold_blocks(r, c, s, hashed)
    release(r, c, s, computed, hashed)
    unseat(r, c, s)
    request.preemptions += 1
    r.step.preempted += 1
    put_back(r, c, q)


@inlined
def _blocks_wanted(r: Replica, c: Settings, slot: Slot) -> Integer:
    if slot.state == PREFILLING:
        return _blocks_of_chunk(c, slot)
    return (slot.state == DECODING and (slot.offset + r.tick) % c.block_size == 0) + 0


@compiled
def _extend_or_preempt(r: Replica, c: Settings) -> None:
    """Blocks are short: go through `running` in order, since what is freed on the way is handed out again."""
    s = r.first_running + 0
    while s >= 0:
        blocks = _blocks_wanted(r, c, slot_at(r, c, s))
        while blocks > r.num_free:
            victim = r.last_running + 0
            _preempt(r, c, victim, 0)
            if victim == s:
                return
        allocate(r, c, blocks)
        s = slot_at(r, c, s).next + 0


@inlined
def _least_urgent(r: Replica, c: Settings) -> Integer:
    s = r.first_running + 0
    victim, rank = s, request_at(c, slot_at(r, c, s).request).rank + 0
    while s >= 0:
        slot = slot_at(r, c, s)
        if request_at(c, slot.request).rank > rank:
            victim, rank = s, request_at(c, slot.request).rank + 0
        s = slot.next + 0
    return victim


@inlined
def _count_prefill(r: Replica, request: Request, computed: Integer, chunk: Integer) -> None:
    """As `scheduler._advance`."""
    step = r.step
    after = computed + chunk
    if is_decode(request, computed, chunk):
        step.decodes += 1
        step.decode_context_tokens += after
    else:
        step.prefills += 1
        step.prefill_tokens += chunk
        step.prefill_pairs += pairs_of(computed, chunk)
        step.prefill_context_tokens += after
    step.sampled += after == request.prompt_tokens + request.output_tokens


@compiled
def _serve_by_priority(r: Replica, c: Settings, limit: Integer) -> Integer:
    """Blocks are short: as `Scheduler._schedule_running`; returns the budget that is left.

    A victim may have been served already in this step: `order` of the slot being served tells who has been.
    """
    left = c.max_num_batched_tokens + 0
    s = r.first_running + 0
    while s >= 0 and left > 0:
        slot = slot_at(r, c, s)
        after = slot.next + 0
        if slot.state == DRAINING:
            s = after
            continue
        slot.chunk = 1 if slot.state == DECODING else _chunk(slot, limit, left)
        blocks = _blocks_wanted(r, c, slot)
        victim = -1
        while blocks > r.num_free and victim != s:
            victim = _least_urgent(r, c)
            other = slot_at(r, c, victim)
            served = other.chunk if other.order < slot.order and other.state != DRAINING else 0
            left += served
            if victim == s:
                after = slot.next + 0
            _preempt(r, c, victim, served)
        if victim != s:
            allocate(r, c, blocks)
            left -= slot.chunk
            if c.caching and slot.state == PREFILLING:
                cache_full_blocks(r, c, s, slot.computed + slot.chunk)
            elif c.caching and slot.num_nodes < slot.num_told:
                _cache_decode(r, c, s)
            after = slot.next + 0
        s = after
    while s >= 0:  # the budget is spent
        slot_at(r, c, s).chunk = 0
        s = slot_at(r, c, s).next + 0
    return left


@inlined
def keep_prefill(r: Replica, c: Settings, s: Integer, slot: Slot) -> None:
    """Note whether a prefill ends with this step or goes on."""
    if slot.computed == slot.target:
        listed(r.sampling, c, r.num_sampling).value = s
        r.num_sampling += 1
    else:
        listed(r.prefilling, c, r.num_prefilling).value = s
        r.num_prefilling += 1


@compiled
def _advance_prefills(r: Replica, c: Settings) -> None:
    """Count the planned chunks as computed."""
    count = r.num_prefilling
    r.num_prefilling = 0
    for i in range(count):
        s = listed(r.prefilling, c, i).value
        slot = slot_at(r, c, s)
        if slot.chunk:
            _count_prefill(r, request_at(c, slot.request), slot.computed, slot.chunk)
            slot.computed += slot.chunk
        keep_prefill(r, c, s, slot)


@compiled
def serve_running(r: Replica, c: Settings, limit: Integer) -> Integer:
    """Give running requests their tokens and blocks; returns the budget that is left."""
    left, blocks = _plan_chunks(r, c, limit)
    if blocks <= r.num_free:
        allocate(r, c, blocks)
        if c.caching and (due_at(r, c, r.phase).value or r.num_prefilling):
            _cache_running(r, c)
    elif c.by_priority:
        left = _serve_by_priority(r, c, limit)
    else:
        _extend_or_preempt(r, c)
        if c.caching and (due_at(r, c, r.phase).value or r.num_prefilling):
            _cache_running(r, c)
    if r.num_prefilling:
        _advance_prefills(r, c)
    return left


# --- Admission ----------------------------------------------------------------------------------------------


@inlined
def _reject(r: Replica, c: Settings) -> None:
    request_at(c, pop_waiting(r, c)).status = REJECTED_KV
    r.num_ended += 1


@inlined
def _count_lookup(r: Replica, c: Settings, request: Request, total: Integer, cached: Integer) -> None:
    """As `Scheduler._count_lookup`, and the time: on first admission."""
    if request.cached_tokens < 0:
        request.cached_tokens = cached
        request.first_scheduled_s = r.decide_s
        if c.caching:
            r.step.queried_tokens += total
            r.step.hit_tokens += cached


@inlined
def _foresee_price(r: Replica, c: Settings, chunk: Integer) -> None:
    """With this chunk the step may be complete: its row of the table is in no cache."""
    tokens = r.step.prefill_tokens + r.step.decodes + r.num_decoding + chunk
    prefetch(c.body + tokens * PRICE_BYTES)


@compiled
def _admit(r: Replica, c: Settings, q: Integer, left: Integer, limit: Integer) -> Integer:
    """Admit the head of the queue; returns the tokens it computes in this step, 0 if it has to wait."""
    request = request_at(c, q)
    total = request.prompt_tokens + request.output_tokens
    found = idle = 0
    if c.caching:
        found, idle = find_cached(r, c, q)
    cached = found * c.block_size
    chunk = total - cached
    if 0 < limit < chunk:
        chunk = limit
    if not c.chunked_prefill and chunk > left:
        return 0
    chunk = smaller(chunk, left)
    to_fit = total if c.reserve_full_isl else cached + chunk
    reserve = c.watermark_blocks if r.num_running else 0
    if blocks_for(c, to_fit) - found + idle + reserve > r.num_free:
        return 0
    _foresee_price(r, c, chunk)
    pop_waiting(r, c)
    s = seat(r, c, q)
    if c.caching:
        tell(c, slot_at(r, c, s))
    if found:
        touch(r, c, s, found)
    allocate(r, c, blocks_for(c, cached + chunk) - found)
    if c.caching:
        cache_full_blocks(r, c, s, cached + chunk)
    _count_lookup(r, c, request, total, cached)
    _count_prefill(r, request, cached, chunk)
    slot = slot_at(r, c, s)
    slot.computed, slot.target, slot.chunk = cached + chunk, total, chunk
    keep_prefill(r, c, s, slot)
    return chunk


@compiled
def admit_waiting(r: Replica, c: Settings, left: Integer, limit: Integer) -> None:
    """Admit from the head of the queue while seats, budget and blocks last. Nobody passes the head."""
    while left > 0 and r.num_waiting > 0 and r.num_running < c.max_num_seqs:
        q = waiting_head(r, c)
        head = request_at(c, q)
        if blocks_for(c, head.prompt_tokens + head.output_tokens) > c.num_usable:
            _reject(r, c)
            continue
        chunk = _admit(r, c, q, left, limit)
        if chunk == 0:
            break
        left -= chunk
