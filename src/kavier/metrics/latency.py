"""Latency, throughput and goodput, defined as vLLM's benchmark defines them (`vllm bench serve`, 0.33)."""

from __future__ import annotations

import numpy as np
import polars as pl

from kavier.metrics.distribution import NOTHING, Summary, summarise
from kavier.scenario import Slo

TTFT = pl.col("first_token_s") - pl.col("arrival_s")
E2E = pl.col("finish_s") - pl.col("arrival_s")
TPOT = pl.when(pl.col("output_tokens") > 1).then(
    (pl.col("finish_s") - pl.col("first_token_s")) / (pl.col("output_tokens") - 1)
)
QUEUE = pl.col("first_scheduled_s") - pl.col("arrival_s")


def with_latencies(requests: pl.DataFrame) -> pl.DataFrame:
    """Add ttft_s, tpot_s, e2e_s, queue_s; null for what did not happen.

    ttft_s: first token - arrival. tpot_s: (e2e - ttft) / (output tokens - 1), only where there is more than
    one output token. e2e_s: last token - arrival. queue_s: first scheduled - arrival.
    """
    return requests.with_columns(
        TTFT.alias("ttft_s"), TPOT.alias("tpot_s"), E2E.alias("e2e_s"), QUEUE.alias("queue_s")
    )


def latency(finished: pl.DataFrame, token_gaps: pl.DataFrame) -> dict[str, Summary]:
    """Distributions over finished requests; itl_s over all gaps between tokens, pooled."""
    names = ("ttft_s", "tpot_s", "e2e_s", "queue_s")
    per_request = {name: summarise(finished[name].drop_nulls().to_numpy()) for name in names}
    return {**per_request, "itl_s": _itl(finished, token_gaps)}


def _itl(finished: pl.DataFrame, token_gaps: pl.DataFrame) -> Summary:
    """Percentiles from the counted gaps, rounded down by at most 2^-12; the mean from the requests."""
    gaps = int(finished["output_tokens"].sum()) - len(finished)
    if not gaps:
        return NOTHING
    summary = summarise(token_gaps["gap_s"].to_numpy(), token_gaps["count"].to_numpy())
    total_s = float(np.sum(finished["finish_s"].to_numpy() - finished["first_token_s"].to_numpy()))
    return summary | {"mean": total_s / gaps}


def window(requests: pl.DataFrame, end_s: float | None) -> tuple[float, float]:
    """From the first arrival to the end of the last step (None: there was none), on the trace's clock."""
    start_s = _scalar(requests["arrival_s"].min())
    return start_s, start_s if end_s is None else end_s


def throughput(finished: pl.DataFrame, makespan_s: float) -> dict[str, float]:
    """Finished requests and their tokens over the makespan."""
    output = int(finished["output_tokens"].sum())
    total = output + int(finished["prompt_tokens"].sum())
    per_s = 1 / makespan_s if makespan_s > 0 else 0.0
    return {
        "requests_per_s": len(finished) * per_s,
        "output_tokens_per_s": output * per_s,
        "total_tokens_per_s": total * per_s,
    }


def goodput(finished: pl.DataFrame, slo: Slo, *, arrived: int, makespan_s: float) -> dict[str, float] | None:
    """Requests that met every objective that is set; None when none is.

    As vLLM's benchmark, the TPOT of a request with one output token counts as 0. Requests that did not
    finish are not good.
    """
    limits = {name: limit for name, limit in slo.model_dump().items() if limit is not None}
    if not limits:
        return None
    met = [pl.col(name).fill_null(0.0) <= limit for name, limit in limits.items()]
    good = len(finished.filter(pl.all_horizontal(met)))
    return {
        "good_requests": good,
        "good_ratio": good / arrived,
        "requests_per_s": good / makespan_s if makespan_s > 0 else 0.0,
    }


def _scalar(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
