"""How long Kavier takes to start: its page of help, its import, a small run, and the first run on a machine.

    python bench/startup.py [-k RUNS] [--json FILE] [--skip-first]

Each figure is of whole processes; bytecode and machine code are kept from an earlier run, as a user has
them. Imports are the interpreter's own count (-X importtime), by package. The first run starts with an empty
cache folder, so it compiles the engine: it must take less than 20 s, and has to tell the user.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from process import aligned, environment, machine, spend, verdict

KAVIER = (sys.executable, "-m", "kavier")
RUN = (*KAVIER, "run", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "H100-SXM", "--num-prompts", "100")
STAGES: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import numpy, polars": (sys.executable, "-c", "import numpy, polars"),
    "import kavier": (sys.executable, "-c", "import kavier"),
    "kavier --help": (*KAVIER, "--help"),
    "kavier run, 100 requests": (*RUN, "--request-rate", "6"),
}
FIRST_RUN_S = 20.0
SHOWN = 8
"""Packages in the table of imports."""


def time_stages(repeat: int) -> dict[str, list[float]]:
    """Wall seconds of each stage, in turn so that all see the same machine."""
    for command in STAGES.values():
        spend(command, env=environment())
    walls: dict[str, list[float]] = {name: [] for name in STAGES}
    for _ in range(repeat):
        for name, command in STAGES.items():
            walls[name].append(spend(command, env=environment()).wall_s)
    return walls


def imports(command: Sequence[str]) -> dict[str, float]:
    """Package -> ms in its modules themselves, not in what they import."""
    options = (command[0], "-X", "importtime", *command[1:])
    told = subprocess.run(options, env=environment(), capture_output=True, text=True, check=True).stderr
    spent: Counter[str] = Counter()
    for own_us, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", told, re.MULTILINE):
        package = module.partition(".")[0]
        spent["(standard library)" if package in sys.stdlib_module_names else package] += int(own_us)
    return {package: us / 1000 for package, us in spent.most_common()}


def first_run() -> tuple[float, str]:
    """Wall seconds with nothing compiled, and what the user is told meanwhile."""
    with tempfile.TemporaryDirectory() as empty:
        log = Path(empty) / "log"
        changed = environment(KAVIER_CACHE_DIR=f"{empty}/kavier", XDG_CACHE_HOME=f"{empty}/cache")
        shell = ("sh", "-c", 'exec "$@" 2> "$0"', str(log), *STAGES["kavier run, 100 requests"])
        wall_s = spend(shell, env=changed).wall_s
        return wall_s, log.read_text(encoding="utf-8").strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-k", "--repeat", type=int, default=10, help="Runs of each stage.  [10]")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--skip-first", action="store_true", help="Leave out the first run.")
    options = parser.parse_args()
    about = machine()
    print(f"{about}\n", file=sys.stderr)
    told: dict[str, object] = {"machine": about}
    walls = time_stages(options.repeat)
    rows = [
        (name, f"{statistics.median(found) * 1000:.0f}", f"{min(found) * 1000:.0f}")
        for name, found in walls.items()
    ]
    print(aligned(("stage", "median ms", "least ms"), rows), flush=True)
    spent = imports(STAGES["kavier run, 100 requests"])
    rows = [(package, f"{ms:.0f}", f"{ms / sum(spent.values()):.0%}") for package, ms in spent.items()]
    print("\nImports of a run, slowed down by the counting")
    print(aligned(("package", "ms", "share"), rows[:SHOWN]), flush=True)
    told |= {"wall_s": walls, "imports_ms": spent}
    if not options.skip_first:
        wall_s, log = first_run()
        what = f"first run on a machine, told to the user, less than {FIRST_RUN_S:.0f} s: {wall_s:.1f} s"
        print(f"\n{verdict(what, shown=wall_s < FIRST_RUN_S and 'compiling' in log)}\n{log}")
        told |= {"first_run_s": wall_s, "first_run_says": log}
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
