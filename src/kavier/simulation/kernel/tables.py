"""Compiled: columns into request records and back, in one pass over memory."""

from __future__ import annotations

import math

from kavier.native.kit import FLOAT64, INT8, INT64, Integer, at, larger, smaller
from kavier.simulation.kernel.queues import request_at
from kavier.simulation.kernel.records import FINISHED, REJECTED_CONTEXT, UNFINISHED
from kavier.simulation.kernel.typed import Columns, Settings, compiled


@compiled
def pack_requests(c: Settings, columns: Columns, max_model_len: Integer) -> Integer:
    """Fill the request records; returns how many answers are cut at max_model_len."""
    n, cut = c.num_requests, 0
    for i in range(n):
        request = request_at(c, i)
        prompt = at(columns.prompt_tokens, n, i, INT64).value
        output = at(columns.output_tokens, n, i, INT64).value
        room = max_model_len - prompt
        cut += 0 < room < output
        request.arrival_s = at(columns.arrival_s, n, i, FLOAT64).value
        request.first_scheduled_s = request.first_token_s = request.last_token_s = math.nan
        request.prompt_tokens = prompt
        request.output_length = smaller(output, larger(room, 0))
        request.output_tokens = request.preemptions = 0
        request.cached_tokens = request.next = -1
        request.status = REJECTED_CONTEXT if room <= 0 else UNFINISHED
    return cut


@compiled
def unpack_requests(c: Settings, columns: Columns) -> Integer:
    """Fill the columns of the requests table; returns how many did not finish."""
    n, others = c.num_requests, 0
    for i in range(n):
        request = request_at(c, i)
        finished = request.status == FINISHED
        others += not finished
        at(columns.first_scheduled_s, n, i, FLOAT64).value = request.first_scheduled_s
        at(columns.first_token_s, n, i, FLOAT64).value = request.first_token_s
        at(columns.finish_s, n, i, FLOAT64).value = request.last_token_s if finished else math.nan
        at(columns.output_tokens, n, i, INT64).value = request.output_tokens
        at(columns.cached_tokens, n, i, INT64).value = request.cached_tokens
        at(columns.preemptions, n, i, INT64).value = request.preemptions
        at(columns.status, n, i, INT8).value = request.status
    return others
