"""Compiled: the energy of a step, shared out among its requests. See `simulation.shares`.

Nobody visits a decoding request when a step passes. What a step gives a decode is the same for all, but for
its context, offset + tick + 1. So a replica sums up, over the steps since some tick, what every decode gets
(`equal_j`), what it gets a token of context (`context_j`), and that times the ticks gone by (`rising_j`).
What these come to for a slot's offset when it leaves, less what they came to when it joined, is its share of
all steps between.

Differences of large sums lose digits: the sums begin anew when nobody decodes, and after `SETTLE` ticks.
"""

from __future__ import annotations

from kavier.native.kit import FLOAT64, Integer, at
from kavier.simulation.kernel.cost import decode_base, within_window
from kavier.simulation.kernel.queues import listed, request_at, slot_at
from kavier.simulation.kernel.records import AFFINE, COAST, DECODING, SETTLE
from kavier.simulation.kernel.typed import (
    Replica,
    Request,
    Settings,
    Shares,
    Slot,
    Step,
    compiled,
    inlined,
)
from kavier.timing.compiled import ATTENTION, NO_WINDOW, PRICE


@inlined
def _begin_sums(r: Replica) -> None:
    r.shared_at = r.tick
    r.equal_j = r.context_j = r.rising_j = 0.0


@inlined
def _told(r: Replica, slot: Slot) -> float:
    """What the sums come to for a decode."""
    return r.equal_j + float(slot.offset + r.shared_at) * r.context_j + r.rising_j


@inlined
def join_shares(r: Replica, slot: Slot) -> None:
    """A slot is about to decode."""
    if r.num_decoding == 0:
        _begin_sums(r)
    slot.energy_j -= _told(r, slot)


@inlined
def leave_shares(r: Replica, slot: Slot) -> None:
    """It decodes no more."""
    slot.energy_j += _told(r, slot)


@inlined
def keep_energy(c: Settings, slot: Slot) -> None:
    """A slot that does not decode is about to be left: its request takes its energy along."""
    at(c.energies, c.num_requests, slot.request, FLOAT64).value += slot.energy_j


@compiled
def _settle(r: Replica, c: Settings) -> None:
    s = r.first_running + 0
    while s >= 0:
        slot = slot_at(r, c, s)
        if slot.state == DECODING:
            leave_shares(r, slot)
        s = slot.next + 0
    _begin_sums(r)


@inlined
def next_settling(r: Replica) -> Integer:
    """The tick when the sums begin anew."""
    return r.shared_at + SETTLE


@inlined
def settle_shares(r: Replica, c: Settings) -> None:
    """Begin the sums anew when it is time: always at the same tick, so that results stay the same."""
    if r.tick >= next_settling(r):
        _settle(r, c)


# --- Steps of nothing but decodes ---------------------------------------------------------------------------


@inlined
def _base_s(h: Shares, decodes: Integer, moved: float) -> float:
    """What steps of so many decodes weigh but for the KV entries; see `decode_base`."""
    return h.step_s + h.byte_s * moved + decodes * (h.decode_s + h.row_s - h.token_bytes_s - h.row_bytes_s)


@inlined
def _weigh(
    base_s: float, kv_s: float, energy_j: float, decodes: float, context: float
) -> tuple[float, float]:
    """(J a decode, J a token of context). The energy comes in last: it is known last."""
    part = 1.0 / ((base_s + kv_s) * (context * decodes))
    return energy_j * (part * context * base_s), energy_j * (part * decodes * kv_s)


@inlined
def rise(r: Replica, tick: Integer) -> float:
    """Ticks up to a step of this tick and its own, since the sums began."""
    return float(tick - r.shared_at + 1)


@inlined
def begin_coast(r: Replica, c: Settings, decodes: Integer, flops: float, moved: float) -> None:
    """Note what the coasted steps have in common."""
    coast = at(r.coast, 1, 0, COAST)
    coast.decodes, coast.base_flops, coast.base_bytes = decodes, flops, moved
    coast.base_s = _base_s(c.shares, decodes, moved)


@inlined
def weigh_coasted(r: Replica, c: Settings) -> None:
    """J a decode and a token of context in each of the coasted steps."""
    coast, h = at(r.coast, 1, 0, COAST), c.shares
    context_s, flop_s, byte_s = h.context_s, h.flop_s, h.byte_s
    flops, moved, base_s, decodes = coast.base_flops, coast.base_bytes, coast.base_s, float(coast.decodes)
    for i in range(coast.count):
        context = coast.context[i]
        kv_s = context_s * context + flop_s * (coast.flops[i] - flops) + byte_s * (coast.bytes[i] - moved)
        coast.equal_j[i], coast.context_j[i] = _weigh(base_s, kv_s, coast.energy_j[i], decodes, context)


@inlined
def share_decodes(r: Replica, c: Settings, tick: Integer) -> None:
    """Likewise of the last step; they are added to the sums."""
    s, h, decodes = r.step, c.shares, r.num_decoding + 0
    _, flops, moved, _ = decode_base(c, decodes)
    context = float(s.decode_context_tokens)
    kv_s = h.context_s * context + h.flop_s * (s.flops - flops) + h.byte_s * (s.bytes - moved)
    base_s = _base_s(h, decodes, moved)
    equal_j, context_j = _weigh(base_s, kv_s, s.energy_j, float(decodes), context)
    r.equal_j += equal_j
    r.context_j += context_j
    r.rising_j += context_j * rise(r, tick)


# --- Steps with prefills ------------------------------------------------------------------------------------


@inlined
def is_decode(request: Request, computed: Integer, chunk: Integer) -> bool:
    """`scheduler.Scheduled.is_decode`: even if the token was lost before."""
    return chunk == 1 and computed >= request.prompt_tokens


@inlined
def pairs_of(computed: Integer, chunk: Integer) -> Integer:
    """(query, key) pairs of a prefill."""
    return chunk * computed + chunk * (chunk + 1) // 2


@inlined
def _shared_s(c: Settings, s: Step) -> float:
    """`UnitCosts.shared_s`."""
    h = c.shares
    if c.timing == AFFINE:
        return h.step_s
    tokens = s.prefill_tokens + s.decodes
    moved = at(c.body, c.num_body, tokens, PRICE).bytes + at(c.head, c.num_head, s.sampled, PRICE).bytes
    return h.step_s + h.byte_s * moved - tokens * h.token_bytes_s - s.sampled * h.row_bytes_s


@inlined
def _per(cost_s: float, count: Integer) -> float:
    return cost_s / count if count else 0.0


@inlined
def _attention_costs(c: Settings, s: Step) -> tuple[float, float, float, float]:
    """The last four of `UnitCosts`."""
    h = c.shares
    kv_s, pair_s, context_s, cached_s = h.decode_context_s, h.pair_s, h.prefill_context_s, h.cached_s
    for i in range(c.num_attention):
        a = at(c.attention, c.num_attention, i, ATTENTION)
        if a.window < NO_WINDOW:
            read, pairs, context = within_window(a, s)
            kv_s += _per(
                read * (a.layers * (a.kv_bytes * h.byte_s + a.decode_flops * h.flop_s)),
                s.decode_context_tokens,
            )
            pair_s += _per(pairs * (a.layers * a.pair_flops * h.flop_s), s.prefill_pairs)
            context_s += _per(context * (a.layers * a.kv_bytes * h.byte_s), s.prefill_context_tokens)
            expanded_s = (context - s.prefill_tokens) * (a.layers * a.expand_flops * h.flop_s)
            cached_s += _per(expanded_s, s.prefill_context_tokens - s.prefill_tokens)
    return kv_s, pair_s, context_s, cached_s


@compiled
def _share_mixed(r: Replica, c: Settings) -> None:
    """Prefills are given their shares at once."""
    step, begun, h = r.step, r.num_prefilling + 0, c.shares
    shared_s, prefill_s, decode_s, row_s = _shared_s(c, step), h.prefill_s, h.decode_s, h.row_s
    kv_s, pair_s, context_s, cached_s = _attention_costs(c, step)
    weight_s = shared_s + step.prefill_tokens * prefill_s + step.decodes * decode_s + step.sampled * row_s
    weight_s += step.decode_context_tokens * kv_s + step.prefill_pairs * pair_s
    weight_s += step.prefill_context_tokens * context_s
    weight_s += (step.prefill_context_tokens - step.prefill_tokens) * cached_s
    if weight_s <= 0.0:
        return  # it takes no time, and no energy
    part = 1.0 / weight_s
    equal_s = shared_s / (step.prefills + step.decodes)
    for i in range(begun + r.num_sampling):
        samples = i >= begun
        s = listed(r.sampling, c, i - begun).value if samples else listed(r.prefilling, c, i).value
        slot = slot_at(r, c, s)
        after, chunk = slot.computed + 0, slot.chunk + 0
        computed = after - chunk
        if chunk == 0:
            continue
        own_s = row_s if samples else 0.0
        if is_decode(request_at(c, slot.request), computed, chunk):
            own_s += decode_s + after * kv_s
        else:
            own_s += chunk * prefill_s + pairs_of(computed, chunk) * pair_s
            own_s += after * context_s + computed * cached_s
        slot.energy_j += step.energy_j * (part * (equal_s + own_s))
    context_j = step.energy_j * (part * kv_s)
    r.equal_j += step.energy_j * (part * (equal_s + decode_s + row_s))
    r.context_j += context_j
    r.rising_j += context_j * rise(r, r.tick)


@inlined
def share_step(r: Replica, c: Settings) -> None:
    """Share out the last step, which is priced; its tick has not passed yet."""
    step = r.step
    if step.prefills or step.decodes > r.num_decoding:
        _share_mixed(r, c)
    elif step.energy_j > 0.0:
        share_decodes(r, c, r.tick)
