"""The compiled engine as one call: packs tables into records, plays them, unpacks what they hold then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import polars as pl
from numpy.typing import NDArray

from kavier.ecosystem.vllm_versions import rules_of
from kavier.scenario import Engine
from kavier.simulation.kernel import records as k
from kavier.simulation.packing import Packed, requests_table
from kavier.simulation.play import Progress, Run
from kavier.simulation.policy.policy import Policy
from kavier.simulation.request import priorities_of
from kavier.simulation.router import PLANS, Plan, draw_pairs, router_rng
from kavier.simulation.sampling import Sampling
from kavier.timing.compiled import Compilable
from kavier.timing.step import StepTimeModel
from kavier.workload.blocks import BlockKeys

Array = NDArray[Any]


def covers(
    workload: pl.DataFrame,
    engine: Engine,
    timing: StepTimeModel,
    *,
    num_gpu_blocks: int,
) -> str | None:
    """Why the compiled engine cannot play this, or None if it can."""
    thinking = {"parent", "think_s"} <= set(workload.columns) and bool(
        (workload["parent"].is_not_null() & workload["think_s"].is_not_null()).any()
    )
    budget, longest = _number(engine.max_num_batched_tokens), _number(engine.max_model_len)
    totals = {name: workload[name].to_numpy() for name in ("prompt_tokens", "output_tokens")}
    blocks = sum(int(tokens.sum()) for tokens in totals.values()) // engine.block_size + 2 * len(workload)
    rules = rules_of(engine)
    reasons = {
        "a request has more tokens than 32 bits count": max(int(t.max()) for t in totals.values())
        > k.MAX_TOKENS,
        "requests wait for others to end (think_s)": thinking,
        f"scheduling_policy priority by the rules of vLLM {engine.vllm_version}": (
            engine.scheduling_policy != "fcfs" and not rules.self_preemption_goes_on
        ),
        "kv_cache is off": not engine.kv_cache,
        "without chunked prefill a prompt can be longer than max_num_batched_tokens": (
            not engine.enable_chunked_prefill and budget < longest
        ),
        "more blocks are cached than 31 bits number": engine.enable_prefix_caching and blocks > k.MAX_KEYS,
        "more KV blocks than 29 bits number": num_gpu_blocks > k.MAX_BLOCKS,
        "the step-time model is Python only": not isinstance(timing, Compilable),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True, slots=True)
class CompiledResult:
    """What `SimulationResult` holds, and the timeline's sums instead of steps.

    Attributes:
        requests: One row a request, see `record.requests_table`.
        steps: One row a step, see `record.STEP_SCHEMA`, and energy_j; None unless asked for.
        token_gaps: Inter-token gaps, see `record.gaps_table`.
        truncated: Requests whose answer was cut at max_model_len.
        kv_blocks: Usable KV blocks a replica.
        cells: Of each replica, what `Sampling.sink` has not taken of its timeline: `kernel.records.CELL`.
        end_s: End of the last step that took time; None if there was none.
        peak_used_blocks: Most KV blocks that one replica used.
        asleep_s: Time of steps without tokens, of all replicas: their energy is nobody's.
    """

    requests: pl.DataFrame
    steps: pl.DataFrame | None
    token_gaps: pl.DataFrame
    truncated: int
    kv_blocks: int
    cells: list[list[Array]]
    end_s: float | None
    peak_used_blocks: int
    asleep_s: float


def simulate_compiled(
    workload: pl.DataFrame,
    engine: Engine,
    timing: Compilable,
    *,
    num_gpu_blocks: int,
    replicas: int = 1,
    router: str | Policy = "round-robin",
    seed: int = 0,
    max_concurrency: int | None = None,
    sampling: Sampling | None = None,
    keys: tuple[Array, Array] | None = None,
    as_recorded: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CompiledResult:
    """Play a workload through `replicas` engines: what `simulate_reference` gives, to the last bit.

    But for the energies of requests, whose sums have another order: they agree to 1e-9.

    Args:
        workload: Canonical request table, sorted by arrival.
        engine: Settings with max_model_len, max_num_seqs and max_num_batched_tokens resolved to numbers.
        timing: Prices each step.
        num_gpu_blocks: KV blocks a replica, null block included.
        replicas: Identical engines.
        router: Name in `router.PLANS` or `router.ROUTERS`, or a policy with machine code.
        seed: Of the router's random choices.
        max_concurrency: Closed loop: most requests in flight.
        sampling: What to add up on the way.
        keys: Block keys of all requests and where each one's begin; None = from the workload's hashes.
            Numbers from 0 on, at best those of new blocks in succession.
        as_recorded: See `replica.AsyncReplica`.
        workers: Threads for replicas that do not depend on each other; None = one a processor. Results do not
            depend on it. In a closed loop all replicas depend on each other.
        progress: Called with the number of ended requests, now and then.
    """
    sampling = sampling or Sampling()
    packed = Packed(engine, num_gpu_blocks)
    packed.set_timing(timing)
    packed.set_power(sampling.power)
    packed.c["as_recorded"], packed.c["logging"] = as_recorded, sampling.steps
    requests, truncated = packed.set_requests(workload, _number(engine.max_model_len))
    if packed.c["by_priority"]:
        packed.set_ranks(requests, priorities_of(workload))
    if engine.enable_prefix_caching:
        packed.set_keys(*(keys if keys is not None else BlockKeys(workload, engine.block_size).flat))
    run = Run(packed, requests, sampling, replicas, progress)
    chosen: str | Policy | Plan = router
    if isinstance(router, str) and router in PLANS:
        chosen = PLANS[router](workload, replicas, router_rng(seed))
    if isinstance(chosen, Plan) and max_concurrency is None:
        run.play_apart(chosen, workers or os.cpu_count() or 1)
    else:
        run.play_fleet(chosen, draw_pairs(len(workload), replicas, router_rng(seed)), max_concurrency)
    if max_concurrency is not None:
        workload = workload.with_columns(arrival_s=requests["arrival_s"])
    return CompiledResult(
        requests=requests_table(packed, workload, run.replica),
        steps=run.steps_table() if sampling.steps else None,
        token_gaps=run.gaps.table(),
        truncated=truncated,
        kv_blocks=num_gpu_blocks - 1,
        cells=run.cells,
        end_s=run.end_s,
        peak_used_blocks=run.peak_used_blocks,
        asleep_s=run.asleep_s,
    )


def _number(value: int | str | None) -> int:
    assert isinstance(value, int), "engine settings must be resolved before simulating"
    return value
