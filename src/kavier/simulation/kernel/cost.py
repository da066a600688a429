"""Compiled: what a step takes in time, work and energy."""

from __future__ import annotations

from kavier.native.kit import Integer, address_of, at, bits_of, call_double, copy, double_of, smaller
from kavier.simulation.kernel.records import AFFINE, FUNCTION, STEP, WORK
from kavier.simulation.kernel.typed import Attention, Power, Settings, Step, inlined
from kavier.timing.compiled import ATTENTION, HOST, PRICE
from kavier.timing.step import LEAST_STEP_S, MOST_STEP_S

SLEEP_S = 1e-3
"""`replica.SLEEP_S`."""

ROUND = 1.5 * 2.0**52
"""Added to a double below 2^51, it leaves no fraction."""

ONE = 1023 << 52
"""The bits of 1.0."""

WORK_OFFSET = int(STEP.fields["prefills"][1])  # type: ignore[index]
"""The fields of WORK are a part of STEP."""


@inlined
def within_window(a: Attention, s: Step) -> tuple[Integer, Integer, Integer]:
    """`timing.attention.AttentionLayers._within_window`."""
    tokens = s.prefill_tokens
    return (
        smaller(s.decode_context_tokens, s.decodes * a.window),
        smaller(s.prefill_pairs, tokens * a.window),
        smaller(s.prefill_context_tokens, tokens + s.prefills * (a.window - 1)),
    )


@inlined
def _attention_cost(a: Attention, s: Step) -> tuple[float, float, Integer]:
    """`timing.attention.AttentionLayers.cost`."""
    tokens, decodes = s.prefill_tokens, s.decodes
    read, pairs, context = within_window(a, s)
    time_s = 0.0
    if decodes:
        rows_s = decodes * a.sequence_s
        time_s = a.decode_launch_s + rows_s + read * a.decode_s
        if tokens:
            mixed_s = a.prefill_launch_s + rows_s + read * a.mixed_decode_s
            time_s = (mixed_s if mixed_s > time_s else time_s) + decodes * tokens * a.empty_block_s
    elif tokens:
        time_s = a.prefill_launch_s
    if tokens:
        time_s += pairs * a.pair_s + tokens * a.token_s
        time_s += (context - tokens) * a.expand_s + context * a.read_s
    flops = read * a.decode_flops + pairs * a.pair_flops + (context - tokens) * a.expand_flops
    return a.layers * time_s, a.layers * flops, a.layers * (read + context) * a.kv_bytes


@inlined
def host_least_s(c: Settings, rows: Integer) -> float:
    """`timing.datasheet.DatasheetTiming._least_s`."""
    least_s: float = at(c.host, c.num_host, smaller(rows, c.num_host - 1), HOST).least_s
    return least_s


@inlined
def _table_cost(c: Settings, s: Step) -> tuple[float, float, float]:
    """`timing.datasheet.DatasheetTiming.cost`."""
    tokens = s.prefill_tokens + s.decodes
    price = at(c.body, c.num_body, tokens, PRICE)
    time_s, moved = price.time_s, price.bytes
    flops = tokens * c.body_flops
    if s.sampled:
        price = at(c.head, c.num_head, s.sampled, PRICE)
        time_s += price.time_s
        moved += price.bytes
        flops += s.sampled * c.head_flops
    for i in range(c.num_attention):
        spent_s, done, read = _attention_cost(at(c.attention, c.num_attention, i, ATTENTION), s)
        time_s += spent_s
        flops += done
        moved += read
    least_s = host_least_s(c, s.sampled)
    return time_s if time_s > least_s else least_s, flops, moved


@inlined
def _affine_cost(c: Settings, s: Step) -> tuple[float, float, float]:
    """`timing.compiled.AffineTiming.cost`."""
    a = c.affine
    context = s.prefill_context_tokens + s.decode_context_tokens
    time_s = a[0] + a[1] * s.prefill_tokens + a[2] * s.decodes + a[3] * context
    return time_s, a[4] * s.prefill_pairs, a[5] * s.decode_context_tokens


@inlined
def decode_base(c: Settings, decodes: Integer) -> tuple[float, float, float, float]:
    """What steps of so many decodes alone have in common: (seconds, FLOPs, bytes, least seconds)."""
    if c.timing == AFFINE:
        return c.affine[0] + c.affine[1] * 0 + c.affine[2] * decodes, 0.0, 0.0, 0.0
    body = at(c.body, c.num_body, decodes, PRICE)
    head = at(c.head, c.num_head, decodes, PRICE)
    flops = decodes * c.body_flops + decodes * c.head_flops
    return body.time_s + head.time_s, flops, body.bytes + head.bytes, host_least_s(c, decodes)


@inlined
def decode_cost(
    c: Settings,
    time_s: float,
    flops: float,
    moved: float,
    least_s: float,
    decodes: Integer,
    context: Integer,
) -> tuple[float, float, float]:
    """What `price_step` gives for so many decodes of so much context, added to `decode_base`."""
    if c.timing == AFFINE:
        return time_s + c.affine[3] * context, flops, c.affine[5] * context
    for i in range(c.num_attention):
        a = at(c.attention, c.num_attention, i, ATTENTION)
        read = smaller(context, decodes * a.window)
        time_s += a.layers * (a.decode_launch_s + decodes * a.sequence_s + read * a.decode_s)
        flops += a.layers * (read * a.decode_flops)
        moved += a.layers * read * a.kv_bytes
    return time_s if time_s > least_s else least_s, flops, moved


@inlined
def _saturation(u: float) -> float:
    """1 - exp(-u) for u >= 0, to 1e-14 of itself; without branches, so several are computed at once."""
    u = u if u < 700.0 else 700.0
    rounded = u * 1.4426950408889634 + ROUND  # u by ln 2, as an integer in the lowest bits
    halvings = rounded - ROUND
    x = halvings * 0.6931471803691238 + halvings * 1.9082149292705877e-10 - u  # ln 2 in two parts
    xx = x * x
    low = (x + xx * (1 / 2)) + xx * (x * (1 / 6) + xx * (1 / 24))
    high = (x * (1 / 120) + xx * (1 / 720)) + xx * (x * (1 / 5040) + xx * (1 / 40320))
    top = (x * (1 / 362880) + xx * (1 / 3628800)) + xx * (x * (1 / 39916800) + xx * (1 / 479001600))
    rest = low + (xx * xx) * (high + (xx * xx) * top)  # exp(x) - 1
    scale = double_of(ONE - (bits_of(rounded) << 52))
    return (1.0 - scale) - scale * rest


@inlined
def energy_j(p: Power, flops: float, moved: float, duration_s: float) -> float:
    """Energy of all GPUs of a replica in a step that takes time: see `metrics.power.PowerModel`."""
    # Everything is read and computed before the choices: so several steps are computed at once.
    idle_w, floor_w, span_w, linear = p.idle_w, p.floor_w, p.span_w, p.linear
    u = (p.per_byte_per_s * moved + p.per_flop_per_s * flops) / duration_s
    saturated, added = _saturation(u), u if u < 1.0 else 1.0
    base_w = floor_w if u > 0.0 else idle_w
    return (base_w + span_w * (added if linear else saturated)) * duration_s * p.gpus


@inlined
def _asked_s(c: Settings, work: Integer) -> float:
    """What a model in Python answers; what is no time is kept for the complaint."""
    answer_s = call_double(c.function, work, 0)
    if LEAST_STEP_S <= answer_s <= MOST_STEP_S:
        return answer_s
    c.num_refused += 1
    copy(c.refused, at(work, 1, 0, WORK))
    return SLEEP_S


@inlined
def price_step(c: Settings, s: Step) -> None:
    """Fill in duration, FLOPs, bytes and energy of a step that has tokens."""
    if c.timing == AFFINE:
        s.duration_s, s.flops, s.bytes = _affine_cost(c, s)
    else:
        s.duration_s, s.flops, s.bytes = _table_cost(c, s)
        if c.timing == FUNCTION:
            s.duration_s = _asked_s(c, address_of(s) + WORK_OFFSET)
    s.energy_j = energy_j(c.power, s.flops, s.bytes, s.duration_s) if s.duration_s > 0 else 0.0
