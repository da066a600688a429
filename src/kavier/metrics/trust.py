"""How far a result can be trusted: the level of its step times, and all that was assumed or left out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import polars as pl

from kavier.ecosystem.platform import Platform
from kavier.ecosystem.vllm_versions import is_async, rules_of
from kavier.metrics.capacity import OVERLOAD, Capacity, Load, demand
from kavier.metrics.client import client_note
from kavier.metrics.expected import Sensitivity, expected_errors, sensitivity
from kavier.metrics.power import PowerModel
from kavier.metrics.validated import Configuration, nearest, record
from kavier.scenario import Engine, Scenario, Synthetic
from kavier.timing.step import StepCost, StepWork
from kavier.units import S_PER_HOUR
from kavier.workload.presets import resolve
from kavier.workload.table import Workload

COUNTS = {
    "no_timestamps": "requests without timestamp arrive at 0, later turns when the one before ends",
    "sorted_rows": "rows out of order, sorted by arrival",
    "dropped_zero_output_tokens": "requests without output tokens, dropped (failed requests)",
    "dropped_zero_prompt_tokens": "requests without prompt tokens, dropped",
}
"""Workload count -> what was counted; others are shown by name."""

NOTHING_SHARED = "the workload does not tell which prompts share tokens, so the prefix cache never hits"

NEAR_SATURATION = 5.0
"""Per cent of TTFT that 1 % of step time makes, from which on it is said."""

FILLED = 0.5
"""Share of max_concurrency in flight from which on that limit shapes the load."""

POLICY = "python"
"""Level of step times that a policy gives."""

UNUSED_COLUMNS = {
    "model": "every request is served by the scenario's model",
    "tenant": "tenants share everything",
    "slo_class": "objectives are the scenario's",
}
"""Column of a trace -> what happens instead of what it asks for."""


class Assuming(Protocol):
    """A step-time model that tells what it assumes."""

    level: str

    def assumptions(self) -> list[str]:
        """One sentence each."""
        ...

    def cost(self, work: StepWork) -> StepCost:
        """Time and work of a step."""
        ...


def trust(
    scenario: Scenario,
    platform: Platform,
    workload: Workload,
    requests: pl.DataFrame,
    truncated: int,
    timing: Assuming,
    power: PowerModel,
    summary: Mapping[str, Any],
    client_s: float | None = None,
    below: Collection[str] = (),
) -> dict[str, Any]:
    """What a reader should know before believing a number; keys as in the glossary.

    Args:
        scenario: As simulated.
        platform: Its ecosystem.
        workload: What was read, and what reading changed.
        requests: What came of them, with latencies.
        truncated: Answers cut at max_model_len.
        timing: The step-time model used.
        power: The power model used.
        summary: What came out.
        client_s: A calibration's constant of an HTTP client.
        below: Levels that the user's own calibration or kernels took the place of.
    """
    load = _load(scenario, platform, requests, timing, summary)
    errors = _errors(platform, (timing.level, *below), power, load, summary)
    notes = [
        *_rejection_notes(scenario, platform, summary),
        *_load_notes(summary, errors["sensitivity"]),
        *_peak_notes(summary),
        *_workload_notes(scenario, workload, truncated),
        *_engine_notes(scenario, platform),
        client_note(scenario.client, client_s),
        *timing.assumptions(),
        power.expected_error(),
        "facility energy is GPU energy x PUE: hosts (CPU, DRAM, fans) are not modelled",
        *(platform.kv.notes if scenario.engine.kv_cache else ()),
        *platform.notes,
    ]
    return {
        "timing_level": timing.level,
        "load_factor": load.factor if load else None,
        "limited_by": load.limit if load else None,
        **errors,
        "notes": notes,
    }


def _load(
    scenario: Scenario,
    platform: Platform,
    requests: pl.DataFrame,
    timing: Assuming,
    summary: Mapping[str, Any],
) -> Load | None:
    """None where nothing was served, every step recomputes all, or a policy says how long steps take."""
    if not scenario.engine.kv_cache or timing.level == POLICY:
        return None
    asked = demand(requests, summary, scenario.fleet.replicas)
    if asked is None:
        return None
    limit = scenario.workload.max_concurrency
    in_flight = float(requests["e2e_s"].sum()) / summary["makespan_s"]
    closed = limit is not None and in_flight > FILLED * limit
    capacity = Capacity(asked, scenario.engine, summary["kv"]["blocks"], timing)
    return capacity.load(platform.gpu, closed=closed)


def _errors(
    platform: Platform,
    levels: tuple[str, ...],
    power: PowerModel,
    load: Load | None,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """What is expected, from the nearest of what was validated; nothing of step times that a policy gives."""
    near = (
        None
        if levels[0] == POLICY
        else nearest(Configuration.of(platform), levels, load.factor if load else None, record())
    )
    steps, found = near and near.step_errors(), load and sensitivity(load, summary)
    return {
        "nearest": near and near.as_dict(),
        "step_error": steps,
        "sensitivity": found,
        "expected_error": expected_errors(found, steps, power.error) if found and steps else None,
    }


def _workload_notes(scenario: Scenario, workload: Workload, truncated: int) -> Iterator[str]:
    for name, count in workload.counts.items():
        yield f"{COUNTS.get(name, name.replace('_', ' '))}: {count:,}"
    if workload.unread_columns:
        yield f"columns of the trace that were not read: {', '.join(workload.unread_columns)}"
    if truncated:
        yield f"answers cut at max_model_len = {scenario.engine.max_model_len}: {truncated:,}"
    columns = workload.requests.columns
    for column, instead in UNUSED_COLUMNS.items():
        if column in columns:
            yield f"column {column} of the trace is not used: {instead}"
    yield from _arrival_notes(scenario, workload.requests)
    yield from _priority_notes(scenario, columns)
    if scenario.engine.enable_prefix_caching and scenario.engine.kv_cache:
        yield from _prefix_notes(columns)


def _arrival_notes(scenario: Scenario, requests: pl.DataFrame) -> Iterator[str]:
    section = scenario.workload
    if section.synthetic is not None and _is_all_ramp(section.synthetic):
        yield (
            "num_prompts counts whole sessions, whose later turns come after their think times: "
            f"asked for {_asked_rate(section.synthetic):g} requests/s, sent {_sent_rate(requests):.3g}; "
            "give duration_s for a steady rate"
        )
    if (limit := section.max_concurrency) is not None:
        yield f"max_concurrency = {limit}: arrival_s is when a request was sent, maybe later than planned"
    if early := _open_loop_children(requests):
        yield f"requests that continue another without think_s do not wait for its end: {early:,}"
    if orphans := _orphaned_thinkers(requests):
        yield f"think_s is not used where no parent tells what to wait for: {orphans:,}"


def _open_loop_children(requests: pl.DataFrame) -> int:
    if "parent" not in requests.columns:
        return 0
    waits = pl.col("think_s").is_not_null() if "think_s" in requests.columns else pl.lit(value=False)
    return len(requests.filter(pl.col("parent").is_not_null() & ~waits))


def _orphaned_thinkers(requests: pl.DataFrame) -> int:
    if "think_s" not in requests.columns:
        return 0
    alone = pl.col("parent").is_null() if "parent" in requests.columns else pl.lit(value=True)
    return len(requests.filter(pl.col("think_s").is_not_null() & alone))


def _rejection_notes(scenario: Scenario, platform: Platform, summary: Mapping[str, Any]) -> Iterator[str]:
    limits = {
        "context": f"the prompt leaves no room in max_model_len = {scenario.engine.max_model_len}",
        "kv": f"it can never fit into the {platform.kv.kv_blocks - 1} KV blocks of a replica",
    }
    for reason, count in summary["requests"]["rejected_by_reason"].items():
        yield f"rejected ({reason}): {count:,} of {summary['requests']['arrived']:,}: {limits[reason]}"


def _load_notes(summary: Mapping[str, Any], found: Sensitivity | None) -> Iterator[str]:
    """Near saturation a small error of step time is a large one of queueing."""
    if found and (grows := sum(found["ttft_s"].values())) > NEAR_SATURATION:
        yield f"near saturation: steps that take 1 % longer make TTFT {grows:.0f} % longer"
    queue_s, e2e_s = summary["queue_s"]["mean"], summary["e2e_s"]["mean"]
    if queue_s and queue_s > OVERLOAD * e2e_s:
        yield (
            f"overloaded: requests wait {queue_s:,.1f} s of {e2e_s:,.1f} s on average; latencies grow with "
            "the length of the run, and a small error of step time is a large one of theirs"
        )


def _peak_notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """Only a step-time model of the user can be faster than the datasheet."""
    used = summary["utilization"]
    if max(used["mfu"], used["mbu"]) > used["busy_ratio"]:
        yield (
            "steps are shorter than their FLOPs and bytes take at the GPU's peaks: energy, which follows "
            "from these, is that of no such GPU"
        )


def _priority_notes(scenario: Scenario, columns: list[str]) -> Iterator[str]:
    policy = scenario.engine.scheduling_policy
    if "priority" in columns and policy == "fcfs":
        yield "column priority of the trace is not used: scheduling_policy is fcfs"
    if policy == "priority" and "priority" not in columns:
        yield "scheduling_policy is priority, but the workload has no priorities: all are 0"


def _prefix_notes(columns: list[str]) -> Iterator[str]:
    if "block_hashes" not in columns:
        yield NOTHING_SHARED
    elif "parent" not in columns:
        yield "answers never hit the prefix cache: the workload does not tell which prompt continues which"


def _is_all_ramp(synthetic: Synthetic) -> bool:
    """Whether sessions of several turns are ended by their number instead of by time, and not all at once."""
    prefixes = resolve(synthetic).prefixes
    sessions = prefixes is not None and prefixes.mean_turns > 1
    return sessions and synthetic.num_prompts is not None and math.isfinite(_asked_rate(synthetic))


def _asked_rate(synthetic: Synthetic) -> float:
    arrivals = resolve(synthetic).arrivals
    return arrivals.request_rate or 0.0 if arrivals else 0.0


def _sent_rate(requests: pl.DataFrame) -> float:
    arrivals = requests["arrival_s"].to_list()
    length_s = arrivals[-1] - arrivals[0]
    return len(arrivals) / length_s if length_s else float("inf")


def _engine_notes(scenario: Scenario, platform: Platform) -> Iterator[str]:
    engine = scenario.engine
    if scenario.site.carbon_series is not None and scenario.output.sample_interval_s > S_PER_HOUR:
        yield "carbon is reckoned by the sample interval, which is longer than an hour: it averages hours"
    yield from _loop_notes(engine)
    if not engine.kv_cache:
        yield (
            "KV cache off: every step recomputes whole contexts; settings of blocks, chunks and prefix cache "
            "have no effect"
        )
    yield from platform.model.notes


def _loop_notes(engine: Engine) -> Iterator[str]:
    """What is said of the scheduler's loop."""
    rules = rules_of(engine)
    if is_async(engine):
        yield (
            f"scheduling is vLLM {engine.vllm_version}'s asynchronous loop; answers are taken to end at "
            "max_tokens: one that ends at a stop token would cost one step more"
        )
    elif rules.async_scheduling and engine.kv_cache:
        yield (
            f"scheduling is vLLM {engine.vllm_version}'s synchronous loop; by default it is asynchronous, "
            "where a request waits up to a step longer"
        )
    if ".py:" in engine.scheduling_policy:
        yield f"admission order: {engine.scheduling_policy}, as priorities of vLLM's priority policy"
