"""How much of what a replica can do was asked of it, and what limits it: the load factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Literal, Protocol

import polars as pl

from kavier.ecosystem.gpu import GpuSpec
from kavier.scenario import Engine
from kavier.timing.step import StepCost, StepWork

Limit = Literal[
    "seats", "kv_blocks", "token_budget", "bandwidth", "compute", "overheads", "arrivals", "clients", "burst"
]

SATURATED = 0.8
"""Load factor from which on the engine limits a run, and no longer what is asked of it."""

OVERLOAD = 0.5
"""Share of its life that the mean request spends waiting, from which on the fleet counts as overloaded."""

NO_GAIN = 1.2
"""A limit on the batch does not bind where twice the batch would serve less than so many times as much."""

BOUND = 0.25
"""Share of a GPU's peaks below which launches, links and host bind a step."""


class Priced(Protocol):
    """A step-time model."""

    def cost(self, work: StepWork) -> StepCost:
        """Time and work of a step."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """The mean request that a replica serves, and how many of them come.

    Attributes:
        requests_per_s: Offered to one replica: over the time from the first arrival to the last, and one
            mean life without queueing, so that all at once are not infinitely many.
        arriving_per_s: While requests come: from the first arrival to the last.
        lives: Times that a request's life without queueing fits into that.
        waited: Share of its life before it is scheduled.
        prefill_tokens: Of its prompt, those that the prefix cache does not have.
        cached_tokens: The others.
        decodes: Steps behind its first token.
        context_tokens: Behind which it decodes, on average.
        blocks: KV blocks that it holds while it runs.
        running: Requests that run at once, on average over busy time.
    """

    requests_per_s: float
    arriving_per_s: float
    lives: float
    waited: float
    prefill_tokens: float
    cached_tokens: float
    decodes: float
    context_tokens: float
    blocks: float
    running: float


@dataclass(frozen=True, slots=True)
class Load:
    """What `load` finds.

    Attributes:
        factor: Offered requests a second over those a full batch would serve; above 1 the queue grows.
        limit: What keeps throughput from being higher.
        slope: d ln(step time that a request sees) / d ln(requests at once), at the simulated batch.
        prefill_share: Share of a full batch's time that prefill takes.
        lives: How long requests come, in lives of one.
        closed: A limited number of clients waits for answers: longer steps make fewer requests, not queues.
    """

    factor: float
    limit: Limit
    slope: float
    prefill_share: float
    lives: float
    closed: bool


def demand(requests: pl.DataFrame, summary: Mapping[str, Any], replicas: int) -> Demand | None:
    """The mean request of a run; None if none finished.

    Args:
        requests: Requests table with latencies.
        summary: Of the run.
        replicas: That shared the requests.
    """
    served = requests.filter(pl.col("status") == "finished")
    if not len(served) or not summary["makespan_s"]:
        return None
    decodes = served["output_tokens"] - 1
    total = float(decodes.sum())
    contexts = decodes * (served["prompt_tokens"] + decodes / 2)
    prompt, use, kv = _mean(served["prompt_tokens"]), summary["utilization"], summary["kv"]
    hit = summary["cache"]["hit_ratio"] * prompt
    life_s = _mean(served["finish_s"] - served["first_scheduled_s"])
    arrivals = served["arrival_s"]
    coming_s = float(arrivals.max()) - float(arrivals.min())  # type: ignore[arg-type]
    each = len(served) / replicas
    running = use["mean_running_requests"]
    return Demand(
        requests_per_s=each / (coming_s + life_s),
        arriving_per_s=(each - 1.0 / replicas) / max(coming_s, 1e-9),
        lives=coming_s / life_s,
        waited=summary["queue_s"]["mean"] / summary["e2e_s"]["mean"],
        prefill_tokens=max(prompt - hit, 1.0),
        cached_tokens=hit,
        decodes=total / len(served),
        context_tokens=float(contexts.sum()) / total if total else prompt,
        blocks=kv["mean_used_ratio"] * kv["blocks"] / running,
        running=running / use["busy_ratio"],
    )


def _mean(values: pl.Series) -> float:
    return float(values.to_numpy().mean())


class Capacity:
    """A replica under a stream of mean requests, by the work of its mean step.

    In a step of a stationary stream r requests begin and r end: r * decodes of them decode, r *
    prefill_tokens are prefilled.

    Args:
        asked: The mean request.
        engine: Resolved settings.
        kv_blocks: Usable ones of a replica.
        timing: What prices its steps.
    """

    def __init__(self, asked: Demand, engine: Engine, kv_blocks: int, timing: Priced) -> None:
        assert engine.max_num_seqs is not None
        assert engine.max_num_batched_tokens is not None
        self._asked, self._timing, self._budget = asked, timing, engine.max_num_batched_tokens
        by_kv = kv_blocks / asked.blocks if asked.blocks else float("inf")
        self.seats = min(float(engine.max_num_seqs), max(by_kv, 1.0))
        self._scarce: Limit = "seats" if engine.max_num_seqs <= by_kv else "kv_blocks"

    def most(self) -> tuple[float, Limit]:
        """Requests a step when the batch is full, and what it is full of."""
        asked = self._asked
        by_seats = self.seats / (asked.decodes + max(asked.prefill_tokens / self._budget, 1.0))
        by_budget = self._budget / (asked.decodes + asked.prefill_tokens)
        return (by_seats, self._scarce) if by_seats <= by_budget else (by_budget, "token_budget")

    def step(self, requests: float) -> StepCost:
        """Mean cost of a step in which so many requests begin and end."""
        asked = self._asked
        decodes = requests * asked.decodes
        base = self._cost(decodes, 0.0)
        wanted = requests * asked.prefill_tokens
        chunk = max(min(max(requests, 1.0) * asked.prefill_tokens, self._budget - decodes), 1.0)
        share = wanted / chunk
        mixed = self._cost(decodes, chunk)
        return StepCost(*(one + share * (two - one) for one, two in zip(base, mixed, strict=True)))

    def _cost(self, decodes: float, chunk: float) -> StepCost:
        asked, rows = self._asked, round(decodes)
        tokens, prompts = round(chunk), round(chunk / asked.prefill_tokens)
        if rows + tokens == 0:
            return StepCost(0.0, 0.0, 0.0)
        begun = max(prompts, 1) if tokens else 0
        whole = asked.prefill_tokens + asked.cached_tokens
        return self._timing.cost(
            StepWork(
                prefills=begun,
                prefill_tokens=tokens,
                prefill_pairs=round(tokens * (asked.cached_tokens + asked.prefill_tokens / 2)),
                prefill_context_tokens=round(begun * whole),
                decodes=rows,
                decode_context_tokens=round(rows * (asked.context_tokens + 1)),
                sampled=rows + prompts,
            )
        )

    def slope(self) -> float:
        """By how many per cent the step that a request sees grows with 1 % more requests at once.

        It sees itself, and the others, of whom alone there are more; their number varies, and steps jump by
        graph sizes and experts, so that only a wide range of batches tells. `running` counts busy times: of
        Poisson's m requests these are m / (1 - exp(-m)), near 1 + m / 2 of few.
        """
        running = max(self._asked.running, 1.0)
        others = min(running, 2.0 * (running - 1.0))
        few, many = max((1.0 + others) / WIDER, 1.0), (1.0 + others) * WIDER
        steps = [self.step(batch / (self._asked.decodes + 1.0)).time_s for batch in (few, many)]
        return others / (1.0 + others) * log(steps[1] / steps[0]) / log(many / few)

    def prefill_share(self) -> float:
        """Share of a full batch's time that prefill takes."""
        full, _ = self.most()
        return 1.0 - self._cost(full * self._asked.decodes, 0.0).time_s / self.step(full).time_s

    def bound(self, gpu: GpuSpec) -> Limit:
        """What limits a full batch: what it is full of, or the GPU, if twice as much would hardly help."""
        most, scarce = self.most()
        full, twice = self.step(most), self.step(2.0 * most)
        if 2.0 * full.time_s >= NO_GAIN * twice.time_s:
            return scarce
        by_bytes = full.bytes / gpu.bandwidth_bytes_per_s
        by_flops = full.flops / gpu.flops_per_s["bf16"]
        if max(by_bytes, by_flops) < BOUND * full.time_s:
            return "overheads"
        return "bandwidth" if by_bytes >= by_flops else "compute"

    def load(self, gpu: GpuSpec, *, closed: bool) -> Load:
        """The load factor, and what keeps throughput from being higher.

        Args:
            gpu: Each of the replica's GPUs.
            closed: Whether a limited number of clients waits for answers.
        """
        most, _ = self.most()
        factor = self._asked.requests_per_s * self.step(most).time_s / most
        return Load(
            factor=factor,
            limit=self._unsaturated(factor, closed=closed) if factor < SATURATED else self.bound(gpu),
            slope=self.slope(),
            prefill_share=self.prefill_share(),
            lives=self._asked.lives,
            closed=closed,
        )

    def _unsaturated(self, factor: float, *, closed: bool) -> Limit:
        """What limits a run in which a replica could serve more on the whole, if not while requests come."""
        if closed:
            return "clients"
        while_coming = factor * self._asked.arriving_per_s / self._asked.requests_per_s
        return "burst" if while_coming > 1.0 or self._asked.waited > OVERLOAD else "arrivals"


WIDER = 2.0
"""Batches so much smaller and larger are compared: padding to graph sizes evens out."""
