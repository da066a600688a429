"""How fast the compiled engine is: requests, steps and blocks a second on one core.

    python bench/engine.py [--requests N] [--repeat K] [case ...]

Llama-3.1-8B on one H100 (datasheet level) with 256 seats and 8192 tokens a step; power and timeline (1 s) are
added up on the way. "engine" is CPU time inside the kernel; "call" is the wall time of `simulate_compiled`:
also packing and unpacking of tables. Each figure is the median of K runs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.metrics.power import SaturatingPower
from kavier.scenario import Engine
from kavier.simulation import kernel
from kavier.simulation.compiled import CompiledResult, simulate_compiled
from kavier.simulation.sampling import Sampling
from kavier.timing.datasheet import DatasheetTiming

Keys = tuple[np.ndarray, np.ndarray]
BLOCK = 16


@dataclass(frozen=True)
class Case:
    rate_per_s: float
    blocks: int = 30_000
    sessions: bool = False
    replicas: int = 1
    router: str = "round-robin"


CASES = {
    "light": Case(2.0),
    "mid": Case(12.0),
    "near saturation": Case(25.0),
    "overload": Case(40.0),
    "preempting": Case(25.0, blocks=6_000),
    "prefix cache, light": Case(5.0, sessions=True),
    "prefix cache, near saturation": Case(30.0, sessions=True),
    "prefix cache, evicting": Case(30.0, sessions=True, blocks=6_000),
    "1000 replicas, round-robin": Case(20_000.0, replicas=1000),
    "1000 replicas, least-outstanding": Case(20_000.0, replicas=1000, router="least-outstanding"),
    "1000 replicas, least-outstanding, prefix cache": Case(
        25_000.0, replicas=1000, router="least-outstanding", sessions=True
    ),
}


def conversations(count: int, rate_per_s: float, seed: int = 0) -> pl.DataFrame:
    """Lognormal lengths, mean 1000 in and 210 out; Poisson arrivals."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
            "prompt_tokens": _lognormal(rng, 1000, 1.0, 8000, count),
            "output_tokens": _lognormal(rng, 210, 0.8, 1500, count),
        }
    )


def sessions(count: int, rate_per_s: float, seed: int = 0) -> tuple[pl.DataFrame, Keys]:
    """Interleaved sessions of four turns behind one of 20 system prompts: 37 blocks a request."""
    rng = np.random.default_rng(seed)
    session = np.arange(count) // 4 + rng.integers(0, 200, count)
    order = np.argsort(session, kind="stable")
    first = np.r_[True, np.diff(session[order]) != 0]
    turn = np.empty(count, np.int64)
    turn[order] = np.arange(count) - np.maximum.accumulate(np.where(first, np.arange(count), 0))
    blocks = np.minimum(14 + 13 * (turn % 5) + rng.integers(0, 9, count), 80)
    starts = np.r_[0, np.cumsum(blocks)]
    position = np.arange(starts[-1]) - np.repeat(starts[:-1], blocks)
    owner = np.repeat(session, blocks)
    keys = np.where(position < 8, owner % 20 * 64 + position, 1_000_000 + owner * 128 + position)
    table = pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
            "prompt_tokens": blocks * BLOCK + rng.integers(0, BLOCK, count),
            "output_tokens": _lognormal(rng, 210, 0.8, 1500, count),
        }
    )
    return table, (keys, starts)


def _lognormal(rng: np.random.Generator, mean: float, sigma: float, most: int, count: int) -> np.ndarray:
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(drawn, 1, most).astype(np.int64)


class Stopwatch:
    """CPU seconds spent inside the kernel's entry points."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        kernel.run_replica = self._timed(kernel.run_replica)
        kernel.run_fleet = self._timed(kernel.run_fleet)

    def _timed(self, function: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object) -> object:
            begin_s = time.thread_time()
            result = function(*arguments)
            self.spent_s += time.thread_time() - begin_s
            return result

        return timed


def runner(case: Case, count: int) -> Callable[[], CompiledResult]:
    engine = Engine(
        max_model_len=16384,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        enable_prefix_caching=case.sessions,
    )
    gpu = find_gpu("H100-SXM")
    timing = DatasheetTiming(find_model("meta-llama/Llama-3.1-8B"), gpu, engine)
    table, keys = (
        sessions(count, case.rate_per_s) if case.sessions else (conversations(count, case.rate_per_s), None)
    )
    sampling = Sampling(0.0, 1.0, SaturatingPower(gpu).record(1))
    return lambda: simulate_compiled(
        table, engine, timing, num_gpu_blocks=case.blocks + 1, replicas=case.replicas, router=case.router,
        sampling=sampling, keys=keys,
    )  # fmt: skip


def measure(name: str, count: int, repeat: int, watch: Stopwatch) -> str:
    case = CASES[name]
    play, engine_s, call_s = runner(case, count), [], []
    for _ in range(repeat):
        watch.spent_s, begin_s = 0.0, time.perf_counter()
        result = play()
        call_s.append(time.perf_counter() - begin_s)
        engine_s.append(watch.spent_s)
    engine, steps = statistics.median(engine_s), int(result.cells["steps"].sum())
    requests = result.requests
    ttft_s = (requests["first_token_s"] - requests["arrival_s"]).median()
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {name} | {count / engine / 1e6:.2f} | {count / statistics.median(call_s) / 1e6:.2f} "
        f"| {engine / count * 1e9:.0f} | {steps / count:.2f} | {engine / steps * 1e9:.0f} | {ttft_s:.2f} "
        f"| {requests['preemptions'].sum() / count:.3f} | {rss_mb:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    watch = Stopwatch()
    begin_s = time.perf_counter()
    runner(CASES["light"], 100)()
    runner(CASES["1000 replicas, least-outstanding"], 100)()
    print(f"first calls (compiled or loaded): {time.perf_counter() - begin_s:.1f} s\n")
    print(
        "| case | M req/s, engine | M req/s, call | ns/request | steps/request | ns/step | p50 TTFT s "
        "| preemptions/request | peak RSS MB so far |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.cases or CASES:
        print(measure(name, options.requests, options.repeat, watch), flush=True)


if __name__ == "__main__":
    main()
