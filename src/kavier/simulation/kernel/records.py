"""The records that the compiled engine works on. NumPy only: Python packs and unpacks them without Numba.

Fields that end in an array's name hold its address; its size is in the field `num_...` or stated.
"""

from __future__ import annotations

import numpy as np

from kavier.timing.compiled import SHARES

MAX_TOKENS = 2**30
"""Requests count tokens in 32 bits, prompt and answer together."""

MAX_KEYS = 2**31 - 1
"""Blocks of all requests, and block contents."""

MAX_BLOCKS = 2**29
"""Of a replica."""

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("first_scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("last_token_s", "f8"),  # known only while it is preempted, and at the end
        ("prompt_tokens", "i4"),
        ("output_length", "i4"),
        ("output_tokens", "i4"),  # up to date only while it is preempted, and at the end
        ("cached_tokens", "i4"),  # -1 before it is admitted
        ("preemptions", "i4"),
        ("next", "i4"),  # waiting: behind it in the queue, or its next sibling in the heap
        ("rank", "i4"),  # by priority: its place in the order of urgency
        ("status", "i4"),
    ],
    align=True,
)
"""One cache line."""

UNFINISHED, FINISHED, REJECTED_CONTEXT, REJECTED_KV = range(4)

PLAYED = (
    "first_scheduled_s", "first_token_s", "last_token_s", "output_tokens", "cached_tokens", "preemptions",
    "next", "status",
)  # fmt: skip
"""What playing changes in a REQUEST."""

SLOT = np.dtype(
    [
        ("offset", "i8"),  # decoding: tokens computed - tick
        ("finish_tick", "i8"),  # decoding: the step that samples its last token
        ("order", "i8"),  # rises with admission: the order of `running`
        ("first_told", "i8"),  # of its request
        ("energy_j", "f8"),  # its share of steps; decoding: less what the replica's sums told when it joined
        ("computed", "i4"),  # prefilling: tokens computed, those of the running step included
        ("target", "i4"),  # tokens that its prefill computes
        ("chunk", "i4"),  # prefilling: tokens in the step being decided
        ("request", "i4"),
        ("previous", "i4"),  # in running order, -1 at the head
        ("next", "i4"),  # in running order, -1 at the tail; among free slots too
        ("num_told", "i4"),  # of its request
        ("num_nodes", "i4"),  # leading blocks that are nodes listed in `held`
        ("wheel_previous", "i4"),  # decoding: who finishes with it
        ("wheel_next", "i4"),
        ("due_previous", "i4"),  # decoding: who names a block with it
        ("due_next", "i4"),
        ("state", "i4"),
    ],
    align=True,
)
"""A seat of the batch."""

PREFILLING, DECODING, DRAINING, GONE = range(4)
"""States of a slot. DRAINING: its last token is in flight. GONE: it was preempted then."""

NODE = np.dtype(
    [
        ("queue_position", "u4"),  # idle: where it is in the LRU queue, in 32 bits
        ("key", "i4"),
        ("references", "i4"),
        ("link", "i4"),  # the next block with the same key, -1 at the end; free: the next free one + 1
    ],
    align=True,
)
"""A cached block that can be found."""

ENTRY_BYTES = 4
"""Of an entry of the hash map, and of the LRU queue."""

NODE_BYTES = NODE.itemsize

HOLDER = np.dtype([("count", "i4"), ("where", "i4")])
"""Of a block content: how many replicas hold it, and which: one, or a set by number."""

GAP = np.dtype([("count", "i8"), ("least_s", "f8")])
"""Gaps between tokens that agree in 12 bits of mantissa."""

GAP_BYTES = GAP.itemsize
GAP_SHIFT = 40
GAP_LOW = (1023 - 32) << (52 - GAP_SHIFT)
GAP_BINS = 52 << (52 - GAP_SHIFT)
"""Of the top bits of a double: from 2^-32 s to 2^20 s."""

CELL = np.dtype(
    [
        ("interval", "i8"),  # number of the sample interval with which it begins
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
"""Sums over a run of sample intervals of one replica; levels (running ...) are integrals over time."""

CELLS_A_STEP = 3
"""Most cells that one step begins."""

STEP = np.dtype(
    [
        ("scheduled_s", "f8"),
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
        ("idle_w", "f8"),
        ("floor_w", "f8"),
        ("span_w", "f8"),
        ("per_flop_per_s", "f8"),
        ("per_byte_per_s", "f8"),
        ("linear", "i8"),
        ("gpus", "f8"),
    ],
    align=True,
)
"""Coefficients of `metrics.power.PowerModel`, and GPUs a replica."""

TIMELINE = np.dtype(
    [
        ("start_s", "f8"),  # where the first sample interval begins
        ("interval_s", "f8"),
        ("cells", "i8"),
        ("num_cells", "i8"),  # used so far
        ("room", "i8"),
        ("interval", "i8"),  # in which the last step so far ended
        ("interval_end_s", "f8"),  # from start_s on
    ],
    align=True,
)
"""The timeline of one replica."""

WORK = np.dtype(
    [
        ("prefills", "i8"),
        ("prefill_tokens", "i8"),
        ("prefill_pairs", "i8"),
        ("prefill_context_tokens", "i8"),
        ("decodes", "i8"),
        ("decode_context_tokens", "i8"),
        ("sampled", "i8"),
    ],
    align=True,
)
"""What a step-time model sees of a step: `timing.step.StepWork`."""

AFFINE, DATASHEET, FUNCTION = range(3)
"""Step-time models."""

SETTINGS = np.dtype(
    [
        # engine
        ("max_num_batched_tokens", "i8"),
        ("max_num_seqs", "i8"),
        ("block_size", "i8"),
        ("num_usable", "i8"),  # blocks, without the null block
        ("watermark_blocks", "i8"),
        ("long_prefill_token_threshold", "i8"),
        ("lone_request_unlimited", "i8"),
        ("chunked_prefill", "i8"),
        ("reserve_full_isl", "i8"),
        ("caching", "i8"),
        ("unhashed_first", "i8"),
        ("by_priority", "i8"),
        ("asynchronous", "i8"),
        ("finished_keep_awake", "i8"),
        ("as_recorded", "i8"),
        # step time
        ("timing", "i8"),
        ("affine", "f8", 6),
        ("body", "i8"),
        ("num_body", "i8"),
        ("head", "i8"),
        ("num_head", "i8"),
        ("host", "i8"),
        ("num_host", "i8"),
        ("body_flops", "f8"),
        ("head_flops", "f8"),
        ("attention", "i8"),
        ("num_attention", "i8"),
        ("function", "i8"),  # of a model in Python: C function (address of WORK, 0) -> seconds
        ("num_refused", "i8"),  # steps for which it answered no time
        ("refused", WORK),  # the last of them
        ("power", POWER),
        ("shares", SHARES),
        # workload
        ("requests", "i8"),
        ("num_requests", "i8"),
        ("energies", "i8"),  # of each request, in J: up to date only while it is preempted, and at the end
        ("children", "i8"),  # by priority: first child of each request in the heap
        (
            "first_told",
            "i8",
        ),  # where the keys that the trace tells of each request begin; one more than requests
        ("first_untold", "i8"),  # likewise, of its further blocks, which only it can find again
        ("told", "i8"),  # keys, request by request
        ("num_told", "i8"),
        ("num_untold", "i8"),
        ("num_contents", "i8"),  # keys told are below this
        ("held", "i8"),  # node of each block, told ones first, while the request runs
        ("arrivals", "i8"),  # request rows, replica by replica (or in global order)
        ("num_arrivals", "i8"),
        # routers that ask which replica holds what
        ("holders", "i8"),  # of each content told
        ("sets", "i8"),
        ("num_sets", "i8"),
        ("set_words", "i8"),  # 64 replicas each
        ("num_sets_ever", "i8"),
        ("free_set", "i8"),  # + 1
        ("logging", "i8"),
    ],
    align=True,
)

IDLE, READY, SLEEPING, BUSY, STEADY, DRAINED, STALLED = range(7)
"""Modes of a replica, which say what happens at its `decide_s`.

IDLE: nothing. READY: a step is to be scheduled. SLEEPING: likewise, and arrivals do not wake it before. BUSY:
what the last scheduled step brings is to be seen to first. STEADY: likewise, but unless somebody finishes,
the next step is like the last. DRAINED: asynchronous; the step in flight ends, and nothing was scheduled
behind it.
STALLED: a step is decided but not begun, for want of room in an array.
"""

WHEEL_BITS = 10
WHEEL = 1 << WHEEL_BITS
"""Steps that the calendar of finishes looks ahead; later ones are looked at again when it has turned."""

SETTLE = 1 << 12
"""Ticks until sums of energy begin anew: they are exact to SETTLE^2 / 2^53 = 2e-9 of a token of context."""

COASTED = 32
"""Steps that are alike, of which the sums are taken together."""

COAST = np.dtype(
    [
        ("count", "i8"),
        ("evicted", "i8"),
        ("duration_s", "f8", COASTED),
        ("flops", "f8", COASTED),
        ("bytes", "f8", COASTED),
        ("used_blocks", "f8", COASTED),
        ("energy_j", "f8", COASTED),
        ("gap_s", "f8", COASTED),
        ("gap_bin", "i8", COASTED),
        ("context", "f8", COASTED),
        ("equal_j", "f8", COASTED),
        ("context_j", "f8", COASTED),
        ("decodes", "i8"),  # of each step; this and the rest they have in common
        ("base_flops", "f8"),
        ("base_bytes", "f8"),
        ("base_s", "f8"),  # weight in sharing
    ],
    align=True,
)
"""Steps of nothing but decodes that lie within one cell and are not added to it yet."""

REPLICA = np.dtype(
    [
        ("decide_s", "f8"),
        ("start_s", "f8"),  # of the last scheduled step
        ("end_s", "f8"),  # likewise
        ("mode", "i8"),
        ("tick", "i8"),  # steps scheduled so far
        ("phase", "i8"),  # -tick modulo the block size
        ("num_decoding", "i8"),
        ("decoding_tokens", "i8"),  # tokens computed, over all decoding
        ("num_running", "i8"),
        ("num_waiting", "i8"),
        ("num_prefilling", "i8"),
        ("num_sampling", "i8"),
        ("num_draining", "i8"),
        ("num_free", "i8"),  # blocks
        ("num_plain", "i8"),  # free ones that are handed out first: unhashed, or never used
        ("debt", "i8"),  # evictions that happened but are still in the queue
        ("num_ended", "i8"),
        ("admissions", "i8"),
        ("num_asleep", "i8"),  # empty steps that took time
        ("unreported", "i8"),  # asynchronous: requests have finished since the last schedule
        ("num_seen", "i8"),  # outstanding after the last schedule
        ("index", "i8"),
        # linked lists
        ("first_waiting", "i4"),
        ("last_waiting", "i4"),
        ("first_running", "i4"),
        ("last_running", "i4"),
        ("free_slot", "i4"),  # + 1
        ("num_slots_ever", "i4"),
        # LRU queue and nodes
        ("queue_head", "i8"),
        ("queue_tail", "i8"),
        ("queue_mask", "i8"),
        ("free_node", "i8"),  # + 1
        ("num_nodes_ever", "i8"),
        ("map_bits", "i8"),
        # arrays
        ("wanting", "i8"),  # decodes by phase in which they need a block
        ("due", "i8"),  # lists by phase of those who will name a block, slot + 1
        ("wheel", "i8"),  # lists by tick of those who finish, slot + 1
        ("wheel_bits", "i8"),  # which of these are not empty
        ("slots", "i8"),
        ("prefilling", "i8"),  # slots, in running order
        ("sampling", "i8"),  # slots whose prefill ends with the last scheduled step, in running order
        ("draining", "i8"),
        ("scratch", "i8"),  # of all replicas together
        ("nodes", "i8"),
        ("map", "i8"),
        ("queue", "i8"),
        ("gaps", "i8"),  # GAP_BINS
        ("least_gap", "i8"),
        ("most_gap", "i8"),
        ("log", "i8"),
        ("num_log", "i8"),
        ("log_room", "i8"),
        ("peak_used_blocks", "i8"),
        ("next_arrival", "i8"),
        ("end_arrival", "i8"),
        ("step", STEP),  # the last scheduled one, or the one being decided
        ("timeline", TIMELINE),
        # energy, since some tick, of a decode in every step: see shares.py
        ("shared_at", "i8"),  # that tick
        ("equal_j", "f8"),
        ("context_j", "f8"),  # a token of context
        ("rising_j", "f8"),
        ("coast", "i8"),  # COAST, of all replicas together: it is empty between calls
    ],
    align=True,
)

VIEW = np.dtype(
    [
        ("num_waiting", "i4"),
        ("num_running", "i4"),
        ("num_outstanding", "i4"),
        ("used_blocks", "i4"),
        ("num_blocks", "i4"),
        ("matched_blocks", "i4"),
    ]
)
"""What a router sees of a replica: see `policy.views.ReplicaView`."""

ARRIVAL = np.dtype(
    [
        ("row", "i8"),
        ("arrival_s", "f8"),
        ("prompt_tokens", "i8"),
        ("prompt_blocks", "i8"),
        ("priority", "i8"),
        ("session", "i8"),
    ],
    align=True,
)
"""What a policy sees of a request: see `policy.views.RequestView`."""

ARRIVAL_BYTES = ARRIVAL.itemsize

COLUMNS = np.dtype(
    [
        ("arrival_s", "i8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        ("first_scheduled_s", "i8"),
        ("first_token_s", "i8"),
        ("finish_s", "i8"),
        ("cached_tokens", "i8"),
        ("preemptions", "i8"),
        ("status", "i8"),
    ],
    align=True,
)
"""Addresses of columns of the requests table."""

FLEET = np.dtype(
    [
        ("replicas", "i8"),
        ("num_replicas", "i8"),
        ("settings", "i8"),
        ("router", "i8"),
        ("agenda", "i8"),  # winner tree over replicas: when what the router sees may change
        ("loads", "i8"),  # winner tree over replicas: whom the router prefers
        ("num_leaves", "i8"),
        ("views", "i8"),
        ("chosen", "i8"),  # replica of each request; PLANNED: known beforehand
        ("draws", "i8"),  # random replicas, two an arrival
        ("arrived", "i8"),  # ARRIVAL of each request
        (
            "function",
            "i8",
        ),  # of a router in Python: C function (address of ARRIVAL, address of VIEWs) -> index
        ("position", "i8"),  # next arrival
        ("num_routed", "i8"),  # arrivals so far that were not refused
        ("bad_choice", "i8"),  # what such a router answered, if it is no index
        # closed loop
        ("max_concurrency", "i8"),
        ("num_outstanding", "i8"),  # of all replicas
        ("awaited_s", "f8"),  # an instant being played because nobody may be sent; minus infinity: none
        ("freed_s", "f8"),  # when the number of outstanding requests last fell
    ],
    align=True,
)

LEAST_OUTSTANDING, POWER_OF_TWO, LEAST_KV_USED, LONGEST_PREFIX, CACHE_AWARE, LLM_D, PYTHON, PLANNED = range(8)
"""Routers; see `router.py`. PLANNED: any that looks at nothing."""

DONE, NEEDS_SETS, BAD_CHOICE = -1, -2, -3
"""What the fleet answers besides the number of a replica that needs room."""

SPARE_SETS = 1 << 16
"""Sets of holders that what happens until one arrival may need."""
