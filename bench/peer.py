"""Kavier against DynoSim (NVIDIA Dynamo's offline replay), as whole processes on the same trace.

    python bench/peer.py [-n REQUESTS] [-k RUNS] [-p RUNS] [--venv FOLDER] [--json FILE]

A trace in Mooncake's format, 6 requests a second with 512 tokens in and 128 out, none alike; one replica with
25,000 KV blocks, 256 seats and 2048 tokens a step. Both replay it in turn, each from the start of its process
to its written report, on the same two cores. DynoSim gets a virtual environment of its own at the first time;
--venv takes one that is there. With 1,000,000 requests it needs five to nine minutes: give -p 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from process import Spent, aligned, environment, machine, spend

PINNED = ("ai-dynamo-runtime==1.2.1", "ai-dynamo==1.2.1")
"""Without what they depend on: a replay needs no server."""
NEEDED = ("pydantic", "uvloop", "numpy", "pyyaml", "prometheus_client", "msgspec", "aiohttp")

RATE_PER_S = 6.0
PROMPT_TOKENS = 512
OUTPUT_TOKENS = 128
BLOCK_TOKENS = 16
KV_BLOCKS = 25_000
SEATS = 256
STEP_TOKENS = 2048
CORES = 2


def write_trace(path: Path, requests: int, hash_tokens: int) -> None:
    """Poisson arrivals in whole ms; every prompt has hashes of its own, one for `hash_tokens` tokens."""
    rng, now_s, hashes = random.Random(0), 0.0, PROMPT_TOKENS // hash_tokens
    with path.open("w", encoding="utf-8") as file:
        for row in range(requests):
            now_s += rng.expovariate(RATE_PER_S)
            request = {
                "timestamp": round(now_s * 1000),
                "input_length": PROMPT_TOKENS,
                "output_length": OUTPUT_TOKENS,
                "hash_ids": list(range(row * hashes, (row + 1) * hashes)),
            }
            file.write(json.dumps(request) + "\n")


def kavier_command(trace: Path, hash_tokens: int) -> list[str]:
    return [
        sys.executable, "-m", "kavier", "run", "--trace", str(trace), "--format", "mooncake",
        "--set", f"workload.block_tokens={hash_tokens}",
        "--model", "meta-llama/Llama-3.1-8B", "--gpu", "H100-SXM",
        "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(KV_BLOCKS),
        "--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(STEP_TOKENS), "--json",
    ]  # fmt: skip


def dynosim_command(python: Path, trace: Path, hash_tokens: int, report: Path) -> list[str]:
    engine = {
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks": KV_BLOCKS,
        "max_num_seqs": SEATS,
        "max_num_batched_tokens": STEP_TOKENS,
    }
    return [
        str(python), "-m", "dynamo.replay", str(trace), "--trace-block-size", str(hash_tokens),
        "--replay-mode", "offline", "--num-workers", "1",
        "--extra-engine-args", json.dumps(engine), "--report-json", str(report),
    ]  # fmt: skip


def install(folder: Path) -> Path:
    """Python of DynoSim's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing DynoSim into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "--no-deps", *PINNED], check=True)
        subprocess.run([*pip, *NEEDED], check=True)
    return python


def completed(report: Path) -> int:
    """Requests that a report of either says have finished."""
    told = json.loads(report.read_text(encoding="utf-8"))
    number: int = told["completed_requests"] if "completed_requests" in told else told["requests"]["finished"]
    return number


def take_turns(
    commands: dict[str, tuple[list[str], Path, bool]], runs: dict[str, int]
) -> dict[str, list[Spent]]:
    """Run them one after the other, over and over, each as often as it is to run."""
    found: dict[str, list[Spent]] = {name: [] for name in commands}
    for turn in range(max(runs.values())):
        for name, (command, report, prints) in commands.items():
            if turn < runs[name]:
                found[name].append(spend(command, output=report if prints else None, env=environment()))
                print(f"{name}: {found[name][-1].wall_s:.2f} s", file=sys.stderr, flush=True)
    return found


def ratios(peer: Sequence[Spent], ours: Sequence[Spent]) -> tuple[float, list[float]]:
    """Of the medians, and of each pair that ran one after the other."""
    medians = statistics.median(s.wall_s for s in peer) / statistics.median(s.wall_s for s in ours)
    return medians, [a.wall_s / b.wall_s for a, b in zip(peer, ours, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--requests", type=int, default=10_000, help="[10000]")
    parser.add_argument("-k", "--repeat", type=int, default=5, help="Runs of each.  [5]")
    parser.add_argument("-p", "--peer-repeat", type=int, help="Runs of DynoSim, if other.")
    parser.add_argument(
        "--hash-tokens", type=int, default=BLOCK_TOKENS, help="Tokens of a hash: 16 or 512.  [16]"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".bench"), help="For traces and reports.  [.bench]"
    )
    parser.add_argument("--venv", type=Path, help="DynoSim's environment.  [dynosim in that folder]")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    about = machine()
    print(f"{about}\n", file=sys.stderr)
    folder, hash_tokens = options.folder, options.hash_tokens
    folder.mkdir(parents=True, exist_ok=True)
    python = install(options.venv or folder / "dynosim")
    trace = folder / f"trace-{options.requests}-{hash_tokens}.jsonl"
    write_trace(trace, options.requests, hash_tokens)
    reports = {name: folder / f"{name}.json" for name in ("DynoSim", "Kavier")}
    commands = {
        "DynoSim": (
            dynosim_command(python, trace, hash_tokens, reports["DynoSim"]),
            reports["DynoSim"],
            False,
        ),
        "Kavier": (kavier_command(trace, hash_tokens), reports["Kavier"], True),
    }
    peer_repeat = options.repeat if options.peer_repeat is None else options.peer_repeat
    found = take_turns(commands, {"DynoSim": peer_repeat, "Kavier": options.repeat})
    show(found, reports, options.requests)
    if options.json:
        told = {name: [vars(spent) for spent in runs] for name, runs in found.items()}
        options.json.write_text(json.dumps({"machine": about, **told}, indent=2) + "\n", encoding="utf-8")


def show(found: dict[str, list[Spent]], reports: dict[str, Path], requests: int) -> None:
    rows = []
    for name, runs in found.items():
        if runs:
            done = completed(reports[name])
            assert done == requests, f"{name} completed {done:,} of {requests:,} requests"
            walls = [spent.wall_s for spent in runs]
            peak_mb = max(spent.peak_mb for spent in runs)
            rows.append(
                (name, len(runs), f"{statistics.median(walls):.2f}", f"{min(walls):.2f}", f"{peak_mb:,.0f}")
            )
    print(aligned(("simulator", "runs", "median s", "least s", "peak MB"), rows))
    if all(found.values()):
        medians, pairs = ratios(found["DynoSim"], found["Kavier"])
        print(f"\nDynoSim / Kavier: {medians:.2f} of medians; pairs {', '.join(f'{r:.2f}' for r in pairs)}")


if __name__ == "__main__":
    main()
