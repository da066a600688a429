"""Benchmarks run and measure what they say, at a tiny size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

BENCH = Path(__file__).parents[1] / "bench"

STAND_IN = """#!/bin/sh
for report; do :; done
echo '{"completed_requests": 20}' > "$report"
"""
"""For DynoSim's Python, which is not installed: the report's path comes last."""


def run(script: str, *options: object, folder: Path) -> tuple[str, dict[str, Any]]:
    """What it prints, and the figures that it leaves."""
    told = folder / "figures.json"
    command = [sys.executable, str(BENCH / f"{script}.py"), *map(str, options), "--json", str(told)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder).stdout
    return printed, json.loads(told.read_text())


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("peer")


def test_engine_cases(tmp_path):
    cases = ["near saturation", "prefix cache, evicting", "1000 replicas, longest-prefix-match"]
    printed, told = run("engine", *cases, "--requests", 400, "--repeat", 1, "--markdown", folder=tmp_path)
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:5]] == [f"| {case}" for case in cases]
    assert "near saturation, at least 5.0 M requests/s" in printed
    plain, cached, fleet = told["cases"]
    assert plain["requests"] == 400
    assert plain["hit_rate"] == 0
    assert 0 < plain["engine_s"] < plain["call_s"]
    assert cached["prompt_blocks"] / 400 == pytest.approx(37.5, abs=0.5)
    assert cached["hit_rate"] > 0.3
    assert fleet["running"] < 1


def test_engine_flatness(tmp_path):
    printed, told = run("engine", "-f", "-n", 10_000, "--repeat", 1, folder=tmp_path)
    assert [figures["requests"] for figures in told["cases"]] == [10_000]
    assert "shown: cost a request is flat, 10,000 over 10,000 requests: 1.00" in printed


def test_engine_refuses_an_unknown_case():
    command = [sys.executable, str(BENCH / "engine.py"), "heavy"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no such case: heavy" in refused.stderr


def test_startup(tmp_path):
    printed, told = run("startup", "--repeat", 1, "--skip-first", folder=tmp_path)
    assert "kavier --help" in printed
    assert all(wall_s > 0 for walls in told["wall_s"].values() for wall_s in walls)
    assert {"numpy", "polars", "kavier"} <= told["imports_ms"].keys()


def test_scale(tmp_path):
    printed, told = run("scale", "--requests", 40, "--repeat", 1, folder=tmp_path)
    assert "timeline MB" in printed
    assert told["mean prompt tokens"] == pytest.approx(10_756, rel=0.001)
    assert told["mean output tokens"] == pytest.approx(316, rel=0.01)
    assert told["GPU-hours simulated"] == pytest.approx(
        502 * 40 / 96_870, rel=0.5
    )  # the last answers take longer
    assert told["timeline rows"] > told["steps"] > 0
    trace = pl.read_parquet(tmp_path / ".bench" / "scale-40.parquet")
    assert trace["arrival_s"].is_sorted()


@pytest.mark.parametrize(("hash_tokens", "hashes"), [(16, 32), (512, 1)])
def test_peer_trace(peer, tmp_path, hash_tokens, hashes):
    path = tmp_path / "trace.jsonl"
    peer.write_trace(path, 600, hash_tokens)
    rows = pl.read_ndjson(path)
    assert rows["timestamp"].is_sorted()
    assert rows["timestamp"][-1] == pytest.approx(100_000, rel=0.15)
    assert set(rows["input_length"]) == {512}
    assert set(rows["output_length"]) == {128}
    assert rows["hash_ids"].explode(empty_as_null=False).to_list() == list(range(600 * hashes))


def test_peer_commands_say_the_same(peer):
    theirs = peer.dynosim_command(Path("python"), Path("t.jsonl"), 16, Path("rep.json"))
    ours = peer.kavier_command(Path("t.jsonl"), 16)
    engine = json.loads(theirs[theirs.index("--extra-engine-args") + 1])
    assert theirs[1:6] == ["-m", "dynamo.replay", "t.jsonl", "--trace-block-size", "16"]
    assert theirs[-2:] == ["--report-json", "rep.json"]
    flags = {
        "block_size": "--block-size",
        "num_gpu_blocks": "--num-gpu-blocks-override",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
    }
    assert engine == {name: int(ours[ours.index(flag) + 1]) for name, flag in flags.items()}
    assert "workload.block_tokens=16" in ours


def test_peer_pairs(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    options = ("--requests", 20, "--repeat", 2, "--peer-repeat", 1, "--venv", tmp_path / "venv")
    printed, told = run("peer", *options, folder=tmp_path)
    assert (len(told["DynoSim"]), len(told["Kavier"])) == (1, 2)
    assert "DynoSim / Kavier: " in printed
