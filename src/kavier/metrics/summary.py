"""The one page of numbers: summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kavier.metrics.carbon import carbon
from kavier.metrics.cost import cost
from kavier.metrics.distribution import summarise
from kavier.metrics.energy import energy
from kavier.metrics.latency import goodput, latency, throughput
from kavier.metrics.timeline import Totals
from kavier.scenario import Slo

SCHEMA_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the summary needs to know besides the tables.

    Attributes:
        window_s: From the first arrival to the end of the last step.
        peak_used_blocks: Most KV blocks that one replica used.
        replicas: Engines.
        gpus_per_replica: GPUs of each.
        asleep_j: Energy of steps without tokens, in which engines sleep over requests that they cannot serve.
        peak_flops_per_s: Dense peak of one GPU for the model's matrix products.
        peak_bytes_per_s: Memory bandwidth of one GPU.
        kv_blocks: Usable KV blocks a replica.
        block_tokens: Tokens a block.
        pue: Facility / IT energy.
        gco2_per_kwh: The intensity that held all the time; None: that of the timeline's totals.
        usd_per_gpu_hour: Rent, None if unknown.
        usd_per_kwh: Tariff, None if unknown.
        slo: Objectives.
    """

    window_s: tuple[float, float]
    peak_used_blocks: int
    replicas: int
    gpus_per_replica: int
    asleep_j: float
    peak_flops_per_s: float
    peak_bytes_per_s: float
    kv_blocks: int
    block_tokens: int
    pue: float
    gco2_per_kwh: float | None
    usd_per_gpu_hour: float | None
    usd_per_kwh: float | None
    slo: Slo


def summarise_run(
    requests: pl.DataFrame,
    totals: Totals,
    token_gaps: pl.DataFrame,
    facts: Facts,
) -> dict[str, Any]:
    """All metrics of a run as plain data; every key carries its unit, None where nothing can be said.

    Args:
        requests: Requests table with latencies (`with_latencies`).
        totals: Of the timeline.
        token_gaps: Inter-token gaps.
        facts: The rest.
    """
    makespan_s = facts.window_s[1] - facts.window_s[0]
    done = requests["status"] == "finished"
    finished = requests if done.all() else requests.filter(done)
    output_tokens = int(finished["output_tokens"].sum())
    total_tokens = output_tokens + int(finished["prompt_tokens"].sum())
    power = energy(
        totals.energy_j,
        idle_j=totals.idle_j + facts.asleep_j,
        pue=facts.pue,
        makespan_s=makespan_s,
        output_tokens=output_tokens,
        total_tokens=total_tokens,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": _outcomes(requests),
        **latency(finished, token_gaps),
        "throughput": throughput(finished, makespan_s),
        "goodput": goodput(finished, facts.slo, arrived=len(requests), makespan_s=makespan_s),
        "cache": _cache(totals),
        "preemptions": int(requests["preemptions"].sum()),
        "makespan_s": makespan_s,
        "kv": _kv(totals, facts, makespan_s),
        "utilization": _utilization(totals, facts, makespan_s),
        "energy": power,
        "energy_j": summarise(finished["energy_j"].to_numpy()),
        "carbon": carbon(
            power["facility_kwh"] or 0.0,
            gco2_per_kwh=totals.gco2_per_kwh if facts.gco2_per_kwh is None else facts.gco2_per_kwh,
            tokens=total_tokens,
        ),
        "cost": cost(
            gpus=facts.replicas * facts.gpus_per_replica,
            makespan_s=makespan_s,
            usd_per_gpu_hour=facts.usd_per_gpu_hour,
            facility_kwh=power["facility_kwh"] or 0.0,
            usd_per_kwh=facts.usd_per_kwh,
            total_tokens=total_tokens,
            output_tokens=output_tokens,
            finished=len(finished),
        ),
    }


def _outcomes(requests: pl.DataFrame) -> dict[str, Any]:
    """How many ended how; arrived = finished + rejected + unfinished."""
    by_status: Mapping[str, int] = dict(requests["status"].value_counts(sort=False).iter_rows())
    rejected = {name: n for name, n in sorted(by_status.items()) if name.startswith("rejected")}
    return {
        "arrived": len(requests),
        "finished": by_status.get("finished", 0),
        "rejected": sum(rejected.values()),
        "unfinished": by_status.get("unfinished", 0),
        "rejected_by_reason": {name.removeprefix("rejected_"): n for name, n in rejected.items()},
    }


def _cache(totals: Totals) -> dict[str, float]:
    queried, hit = totals.queried_tokens, totals.hit_tokens
    return {"queried_tokens": queried, "hit_tokens": hit, "hit_ratio": hit / queried if queried else 0.0}


def _kv(totals: Totals, facts: Facts, makespan_s: float) -> dict[str, float]:
    """Of one replica: blocks, peak_used_blocks. Over all and the makespan: mean_used_ratio, evictions."""
    capacity = facts.kv_blocks * facts.replicas * makespan_s
    return {
        "blocks": facts.kv_blocks,
        "block_tokens": facts.block_tokens,
        "peak_used_blocks": facts.peak_used_blocks,
        "mean_used_ratio": totals.block_s / capacity if capacity else 0.0,
        "evicted_blocks": totals.evicted_blocks,
    }


def _utilization(totals: Totals, facts: Facts, makespan_s: float) -> dict[str, float]:
    """Of a replica, over the makespan and all of them, idle time included."""
    available_s = facts.replicas * makespan_s
    if not available_s:
        return {"busy_ratio": 0.0, "mean_running_requests": 0.0, "mfu": 0.0, "mbu": 0.0}
    return {
        "busy_ratio": totals.busy_s / available_s,
        "mean_running_requests": totals.running_s / available_s,
        "mfu": totals.flops / available_s / facts.peak_flops_per_s,
        "mbu": totals.bytes / available_s / facts.peak_bytes_per_s,
    }
