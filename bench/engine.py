"""How fast the compiled engine is: requests, steps and KV blocks a second on one core.

    python bench/engine.py [-n REQUESTS] [-k RUNS] [-m] [--json FILE] [CASE ...]
    python bench/engine.py -f [-k RUNS]

Llama-3.1-8B on one H100 (datasheet level) with 256 seats and 8192 tokens a step; power and a timeline of 1 s
are added up on the way. Each case has a process of its own and several runs; figures are medians. The time of
the engine is CPU time of the calls that play, in compiled code; "with tables" is wall time of
`simulate_compiled`, which makes records of tables before and tables of records after. -m prints Markdown. -f
plays one case, near saturation, with 10^4 to 10^7 requests: cost a request may not grow, and memory has to
stay under 2 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from process import aligned, machine, markdown, verdict

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.metrics.power import saturating
from kavier.scenario import Engine
from kavier.simulation.compiled import CompiledResult, simulate_compiled
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.sampling import Sampling
from kavier.timing.datasheet import DatasheetTiming

Keys = tuple[NDArray[np.int64], NDArray[np.int64]]

BLOCK = 16
SYSTEM_PROMPTS = 20
"""A replica; each is 8 blocks long."""
SESSIONS_IN_FLIGHT = 200
"""A replica."""
TURNS = 4


@dataclass(frozen=True)
class Case:
    """A load.

    Attributes:
        rate_per_s: Requests a second and replica. Capacity is 26 without prefix cache, 55 with it.
        blocks: KV blocks a replica.
        sessions: Prompts share prefixes, and these are cached.
        replicas: Behind the router.
        router: Its name.
        max_concurrency: Closed loop: most requests in flight; None = no limit.
    """

    rate_per_s: float
    blocks: int = 30_000
    sessions: bool = False
    replicas: int = 1
    router: str = "round-robin"
    max_concurrency: int | None = None


ROUTERS = ("round-robin", "least-outstanding", "longest-prefix-match", "power-of-two-choices")
FLEETS = {
    f"1000 replicas, {router}{', prefix cache' if sessions else ''}": Case(
        25.0 if sessions else 20.0, sessions=sessions, replicas=1000, router=router
    )
    for sessions in (False, True)
    for router in ROUTERS
}
CASES = {
    "light": Case(2.0),
    "mid": Case(12.0),
    "near saturation": Case(25.0),
    "overload": Case(40.0),
    "preempting": Case(19.0, blocks=6_000),
    "closed loop": Case(40.0, max_concurrency=128),
    "prefix cache, light": Case(5.0, sessions=True),
    "prefix cache, near saturation": Case(52.0, sessions=True),
    "prefix cache, evicting": Case(38.0, sessions=True, blocks=6_000),
    **FLEETS,
}

MUST_SHOW = {
    "near saturation": 5.0,
    "prefix cache, near saturation": 0.6,
    "1000 replicas, least-outstanding": 0.5,
    "1000 replicas, longest-prefix-match": 0.5,
    "1000 replicas, least-outstanding, prefix cache": 0.2,
    "1000 replicas, longest-prefix-match, prefix cache": 0.2,
}
"""Least millions of requests a second in the engine."""

FLAT = "near saturation"
FLAT_REQUESTS = (10_000, 100_000, 1_000_000, 10_000_000)
MOST_GROWTH = 1.25
"""Cost a request with the most requests over that with the fewest."""


@dataclass(frozen=True)
class Figures:
    """What was measured. Levels are means over the run and, where there are several, a replica."""

    case: str
    requests: int
    engine_s: float
    call_s: float
    steps: int
    kv_blocks: int
    prompt_blocks: int
    peak_mb: float
    running: float
    waiting: float
    queued_early_s: float
    queued_late_s: float
    median_ttft_s: float
    preemptions: int
    hit_rate: float


# --- Loads


def conversations(count: int, rate_per_s: float) -> pl.DataFrame:
    """Lognormal lengths, mean 1000 in and 210 out; Poisson arrivals."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
            "prompt_tokens": _lognormal(rng, 1000, 1.0, 8000, count),
            "output_tokens": _lognormal(rng, 210, 0.8, 1500, count),
        }
    )


def conversations_in_turns(count: int, rate_per_s: float, replicas: int) -> tuple[pl.DataFrame, Keys]:
    """Interleaved sessions of four turns behind a system prompt: 37 blocks a prompt."""
    rng = np.random.default_rng(0)
    delayed = np.arange(count) + rng.uniform(0, SESSIONS_IN_FLIGHT * TURNS * replicas, count)
    session = np.argsort(delayed) // TURNS
    order = np.argsort(session, kind="stable")
    turn = np.empty(count, np.int64)
    turn[order] = np.arange(count) % TURNS
    blocks = 14 + 13 * turn + rng.integers(0, 9, count)
    starts = np.r_[0, np.cumsum(blocks)]
    position = np.arange(starts[-1]) - np.repeat(starts[:-1], blocks)
    owner = np.repeat(session, blocks)
    prompts = SYSTEM_PROMPTS * replicas
    keys = np.where(position < 8, owner % prompts, prompts + owner) * 128 + position
    table = pl.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
            "prompt_tokens": blocks * BLOCK + rng.integers(0, BLOCK, count),
            "output_tokens": _lognormal(rng, 210, 0.8, 1500, count),
        }
    )
    return table, (_numbered(keys), starts)


def _numbered(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers from 0 on in the order in which keys turn up, as those of a trace have."""
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(len(firsts), np.int64)
    numbers[np.argsort(firsts)] = np.arange(len(firsts))
    return numbers[inverse]


def _lognormal(
    rng: np.random.Generator, mean: float, sigma: float, most: int, count: int
) -> NDArray[np.int64]:
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(drawn, 1, most).astype(np.int64)


# --- Measuring, in a process for each case


PLAYING = (operations.PLAY_REPLICA, operations.PLAY_FLEET)


class Stopwatch:
    """CPU seconds that this thread spends playing, in compiled code."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        call = LIBRARY.call

        def timed(*arguments: int) -> int:
            began_s = time.thread_time()
            answer = call(*arguments)
            if arguments[0] in PLAYING:
                self.spent_s += time.thread_time() - began_s
            return answer

        LIBRARY.call = timed  # type: ignore[method-assign]


def player(case: Case, count: int) -> Callable[[], CompiledResult]:
    """Everything ready to be played."""
    engine = Engine(
        max_model_len=16384,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        enable_prefix_caching=case.sessions,
    )
    gpu, keys, rate_per_s = find_gpu("H100-SXM"), None, case.rate_per_s * case.replicas
    if case.sessions:
        table, keys = conversations_in_turns(count, rate_per_s, case.replicas)
    else:
        table = conversations(count, rate_per_s)
    timing = DatasheetTiming(find_model("meta-llama/Llama-3.1-8B"), gpu, engine)
    sampling = Sampling(0.0, 1.0, saturating(gpu, gpu.flops_per_s["bf16"]).record(1))
    return lambda: simulate_compiled(
        table, engine, timing, num_gpu_blocks=case.blocks + 1, replicas=case.replicas, router=case.router,
        max_concurrency=case.max_concurrency, sampling=sampling, keys=keys, workers=1,
    )  # fmt: skip


def measure(name: str, count: int, repeat: int) -> Figures:
    """Median of several runs in this process."""
    case = CASES[name]
    play, watch = player(case, count), Stopwatch()
    player(case, 1)()  # machine code is linked, or even compiled
    engine_s: list[float] = []
    call_s: list[float] = []
    result = None
    forget_peak()
    for _ in range(repeat):
        del result  # or the next would not have the memory to itself
        watch.spent_s, began_s = 0.0, time.perf_counter()
        result = play()
        call_s.append(time.perf_counter() - began_s)
        engine_s.append(watch.spent_s)
    peak_mb = read_peak_mb()
    assert result is not None, "at least one run"
    return Figures(
        case=name,
        requests=count,
        engine_s=statistics.median(engine_s),
        call_s=statistics.median(call_s),
        peak_mb=peak_mb,
        **_levels(result, case),
        **_counts(result),
    )


def _levels(result: CompiledResult, case: Case) -> dict[str, Any]:
    cells = [piece for pieces in result.cells for piece in pieces]
    replica_s = (result.end_s or 1.0) * case.replicas
    return {
        "steps": sum(int(piece["steps"].sum()) for piece in cells),
        "running": sum(float(piece["running"].sum()) for piece in cells) / replica_s,
        "waiting": sum(float(piece["waiting"].sum()) for piece in cells) / replica_s,
    }


def _counts(result: CompiledResult) -> dict[str, Any]:
    requests = result.requests
    queued_s = (requests["first_scheduled_s"] - requests["arrival_s"]).to_numpy()
    ttft_s = (requests["first_token_s"] - requests["arrival_s"]).to_numpy()
    prompts, outputs = requests["prompt_tokens"], requests["output_tokens"]
    quarters = np.array_split(queued_s, 4)
    return {
        "kv_blocks": int(-(-(prompts + outputs - 1) // BLOCK).sum()),
        "prompt_blocks": int((prompts // BLOCK).sum()),
        "queued_early_s": float(quarters[1].mean()),
        "queued_late_s": float(quarters[3].mean()),
        "median_ttft_s": float(np.median(ttft_s)),
        "preemptions": int(requests["preemptions"].sum()),
        "hit_rate": int(requests["cached_tokens"].sum()) / int(prompts.sum()),
    }


def forget_peak() -> None:
    """Let the peak of memory start at what is resident now: loads take more to make than to keep."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_apart(name: str, count: int, repeat: int) -> Figures:
    """The same in a process of its own."""
    options = ["--child", name, "--requests", str(count), "--repeat", str(repeat)]
    answer = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, check=True)
    return Figures(**json.loads(answer.stdout))


# --- Showing

HEAD = (
    "case", "M requests/s", "with tables", "M steps/s", "M blocks/s", "ns/request", "ns/step",
    "steps/request", "peak MB", "running", "waiting", "queued ms: 2nd, 4th quarter", "TTFT p50 ms",
    "preempted %", "hit %",
)  # fmt: skip


def row(f: Figures) -> tuple[str, ...]:
    return (
        f.case,
        f"{f.requests / f.engine_s / 1e6:.2f}",
        f"{f.requests / f.call_s / 1e6:.2f}",
        f"{f.steps / f.engine_s / 1e6:.1f}",
        f"{f.kv_blocks / f.engine_s / 1e6:.0f}",
        f"{f.engine_s / f.requests * 1e9:,.0f}",
        f"{f.engine_s / f.steps * 1e9:,.0f}",
        f"{f.steps / f.requests:.2f}",
        f"{f.peak_mb:,.0f}",
        f"{f.running:.0f}",
        f"{f.waiting:,.0f}",
        f"{f.queued_early_s * 1e3:,.0f}, {f.queued_late_s * 1e3:,.0f}",
        f"{f.median_ttft_s * 1e3:,.0f}",
        f"{f.preemptions / f.requests * 100:.1f}",
        f"{f.hit_rate * 100:.0f}",
    )


def verdicts(found: Sequence[Figures]) -> list[str]:
    """Each published target and what became of it."""
    lines = []
    for f in found:
        if least := MUST_SHOW.get(f.case):
            reached = f.requests / f.engine_s / 1e6
            blocks = f", {f.prompt_blocks / f.requests:.1f} blocks a prompt" if CASES[f.case].sessions else ""
            what = f"{f.case}, at least {least} M requests/s: {reached:.2f}{blocks}"
            lines.append(verdict(what, shown=reached >= least))
    return lines


def flat_verdicts(found: Sequence[Figures]) -> list[str]:
    """Whether cost and memory stay flat."""
    first, last = found[0], found[-1]
    growth = last.engine_s / last.requests / (first.engine_s / first.requests)
    counts = f"{last.requests:,} over {first.requests:,}"
    return [
        verdict(f"cost a request is flat, {counts} requests: {growth:.2f}", shown=growth < MOST_GROWTH),
        verdict(
            f"{last.requests:,} requests in less than 2 GB: {last.peak_mb:,.0f} MB", shown=last.peak_mb < 2000
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"Of: {'; '.join(CASES)}.")
    parser.add_argument("-f", "--flatness", action="store_true", help="One case with ever more requests.")
    parser.add_argument("-n", "--requests", type=int, help="Of each case.  [10^6; with -f: at most 10^7]")
    parser.add_argument("-k", "--repeat", type=int, default=5, help="Runs of each case.  [5]")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("-m", "--markdown", action="store_true", help="Print a Markdown table.")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if options.child:
        figures = measure(options.cases[0], options.requests, options.repeat)
        print(json.dumps(asdict(figures)))
        return
    about = machine()
    print(f"{about}\n", file=sys.stderr)
    found = list(measure_all(options.cases or CASES, options))
    print((markdown if options.markdown else aligned)(HEAD, [row(figures) for figures in found]))
    print("", *(flat_verdicts if options.flatness else verdicts)(found), sep="\n")
    if options.json:
        told = {"machine": about, "cases": [asdict(figures) for figures in found]}
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def measure_all(names: Sequence[str] | dict[str, Case], options: argparse.Namespace) -> list[Figures]:
    jobs = [(name, options.requests or 1_000_000) for name in names]
    if options.flatness:
        jobs = [(FLAT, count) for count in FLAT_REQUESTS if count <= (options.requests or FLAT_REQUESTS[-1])]
    found = []
    for name, count in jobs:
        print(f"{name}, {count:,} requests ...", file=sys.stderr, flush=True)
        found.append(measure_apart(name, count, options.repeat))
    return found


if __name__ == "__main__":
    main()
