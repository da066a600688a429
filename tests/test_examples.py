"""The examples run as they are and show what their comments say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kavier
from kavier.scenario import parse_scenario
from kavier.scenario_file import read_scenario_tree

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> list[list[str]]:
    """The words of each line that the example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    assert not list(folder.iterdir()), "an example leaves nothing behind"
    return [line.split() for line in done.stdout.splitlines()]


def number(word: str) -> float:
    return float(word.rstrip("%"))


def test_prefix_caching_hits_and_answers_sooner(tmp_path):
    _, on, off = run("prefix_cache.py", tmp_path)
    assert (on[0], off[0]) == ("on", "off")
    assert number(on[1]) > 90
    assert number(off[1]) == 0
    assert number(on[2]) < number(off[2]) / 5
    assert number(on[6]) < number(off[6])


def test_the_fleet_grows_until_it_meets_the_objective(tmp_path):
    objective, _, *tried, verdict = run("fleet_size.py", tmp_path)
    assert "ttft_s at most 0.5 s, tpot_s at most 0.05 s, for 99% of" in " ".join(objective)
    shares = [number(row[1]) for row in tried]
    assert shares == sorted(shares)
    assert all(share < 99 for share in shares[:-1])
    assert shares[-1] >= 99
    assert verdict == [tried[-1][0], "replicas", "are", "enough"]


def test_without_kv_caching_every_request_takes_longer():
    tree = read_scenario_tree(EXAMPLES / "no-kv-cache.yaml")
    off = kavier.simulate(tree)
    on = kavier.simulate(tree | {"engine": {"kv_cache": True}})
    assert off.summary["requests"]["finished"] == on.summary["requests"]["finished"] == 40
    assert (off.requests["e2e_s"] > on.requests["e2e_s"]).all()
    assert off.summary["energy"]["gpu_kwh"] > 4 * on.summary["energy"]["gpu_kwh"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_scenarios_are_sound_and_say_how_to_run_them(path):
    parse_scenario(read_scenario_tree(path), where=str(path))
    assert f"kavier run examples/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_programs_are_short_and_say_how_to_run_them(path):
    text = path.read_text()
    assert f"Run it: .venv/bin/python examples/{path.name} " in text
    assert len([line for line in text.splitlines() if line.strip()]) < 45


def test_a_router_of_ones_own_runs_compiled_and_beats_those_that_see_half(tmp_path):
    _, blind, longest, own = run("own_router.py", tmp_path)
    assert (blind[0], longest[0], own[0]) == ("least-outstanding", "longest-prefix-match", "least_work")
    assert own[-1] == "kernel"
    assert number(own[1]) > number(blind[1]) + 20
    p50, p99 = 2, 4
    assert number(own[p50]) < number(longest[p50]) / 3 < number(blind[p50]) / 100
    assert number(own[p99]) < number(longest[p99]) / 10
    assert len((EXAMPLES / "own_router.py").read_text().splitlines()) < 40
