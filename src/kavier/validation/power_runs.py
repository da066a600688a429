"""Energy an output token with simulated instead of measured time: measured runs played by the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from kavier.errors import InputError
from kavier.runner import Result, simulate
from kavier.validation.ml_energy import Histogram, Measured, PowerPoint

DENSE_BF16 = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-3-12b-it",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.3-70B-Instruct",
)
"""Models whose runs are played: dense, in 16 bits, of the catalog."""

VLLM_VERSION = "0.11"
"""The runs are of 0.11.1 with the asynchronous scheduling that it had on trial, which is not mirrored:
they are played synchronously. Its steps are as long as if host work was not hidden: played as 0.14's
asynchronous loop, which hides it, throughput comes out 22 % too high instead of 6 %."""

REQUESTS = {"lm-arena-chat": 1024, "gpqa": 198, "sourcegraph-fim": 1024}
"""Task -> requests of one round; a sweep tells how many rounds a setting had."""


@dataclass(frozen=True, slots=True)
class PlayedPoint:
    """A measured run and its steady state in the simulator.

    Attributes:
        point: As measured.
        batch: Mean number of running requests.
        power_w: Of ONE GPU.
        tokens_per_s: Output tokens of the replica.
    """

    point: PowerPoint
    batch: float
    power_w: float
    tokens_per_s: float

    @property
    def j_per_token(self) -> float:
        """Energy of all GPUs an output token."""
        return self.power_w * self.point.gpus / self.tokens_per_s


def play_points(measured: Measured, timing: str, power: str) -> Iterator[PlayedPoint]:
    """Simulate the runs of `DENSE_BF16`, one after the other.

    Args:
        measured: The file.
        timing: As in a scenario.
        power: As in a scenario.

    Raises:
        InputError: A run without histogram or without vLLM's arguments, or what `simulate` raises.
    """
    for point in measured.points:
        if point.model in DENSE_BF16:
            scenario = scenario_of(point, measured)
            yield steady_state(point, simulate({**scenario, "timing": timing, "power": power}))


def scenario_of(point: PowerPoint, measured: Measured) -> dict[str, Any]:
    """The run as a scenario: all requests at once, lengths from the histogram, vLLM's arguments as published.

    Raises:
        InputError: There is no histogram or there are no arguments.
    """
    lengths = measured.histograms.get((point.model, point.task))
    sweeps = measured.arguments.get((point.model, point.task, point.gpu), ())
    arguments = next((one for one in sweeps if point.gpus in one.gpus), None)
    if lengths is None or arguments is None:
        raise InputError(
            f"no {'vLLM arguments' if lengths else 'histogram of lengths'} for {point.model}, {point.task}, "
            f"{point.gpus} x {point.gpu}",
            where=point.where,
        )
    # Settings that the sweep does not name were tried with the largest ones.
    rounds = arguments.rounds.get((point.gpus, point.max_num_seqs), max(arguments.rounds.values(), default=1))
    return {
        "model": point.model,
        "fleet": {"gpu": point.gpu},
        "engine": {
            "vllm_version": VLLM_VERSION,
            "max_num_batched_tokens": arguments.max_num_batched_tokens,
            "max_model_len": arguments.max_model_len,
            "max_num_seqs": point.max_num_seqs,
            "tensor_parallel_size": point.gpus,
        },
        "workload": {
            "synthetic": {
                "num_prompts": REQUESTS[point.task] * rounds,
                "arrivals": {"request_rate": float("inf")},
                "prompt_tokens": {"kind": "fixed", "mean": point.input_tokens},
                "output_tokens": {"kind": "quantiles", "quantiles": quantiles(lengths)},
            }
        },
        "output": {"steps": True},
    }


def quantiles(lengths: Histogram) -> list[tuple[float, float]]:
    """A histogram as an inverse CDF: (probability, tokens), straight within a bin.

    Bins that are empty have no probability: the line of the next bin starts where that of the last one ended.
    """
    below = np.cumsum([0.0, *lengths.counts]) / np.sum(lengths.counts)
    kept = np.flatnonzero(np.diff(below) > 0)
    ends = [(float(below[i + 1]), lengths.edges[i + 1]) for i in kept]
    return [(0.0, lengths.edges[kept[0]]), *ends[:-1], (1.0, ends[-1][1])]


def steady_state(point: PowerPoint, result: Result) -> PlayedPoint:
    """From the step in which the batch is full first to the last one behind which requests wait.

    Raises:
        InputError: There is no such time: fewer requests than seats.
    """
    assert result.steps is not None
    steps = result.steps.filter(pl.col("duration_s") > 0)
    waiting, running = steps["waiting"].to_numpy(), steps["running"].to_numpy()
    last = int(waiting.nonzero()[0][-1]) if waiting.any() else -1
    first = int(running[: last + 1].argmax()) if last >= 0 else 0
    window = steps[first : last + 1]
    time_s = float(window["duration_s"].sum())
    if not time_s:
        raise InputError(
            "no request ever waited: the run has no steady state",
            where=point.where,
            value=f"max_num_seqs {point.max_num_seqs}",
        )
    busy = window["running"] * window["duration_s"]
    return PlayedPoint(
        point,
        batch=float(busy.sum()) / time_s,
        power_w=float(window["energy_j"].sum()) / time_s / point.gpus,
        tokens_per_s=float(window["sampled"].sum()) / time_s,
    )
