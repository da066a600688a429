"""The traces people already have, through the real command line; needs ../shared/data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
LLAMA = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "H100-SXM", "--json")

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs the measured traces in ../shared/data")


def run(trace: str, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kavier", "run", "--trace", str(DATA / trace), *LLAMA, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.parametrize(("trace", "requests"), [("conv.csv", 19_366), ("code.csv", 8_819)])
def test_every_request_of_the_azure_traces_finishes(trace, requests):
    summary = run(f"azure_2023/{trace}", "--replicas", "2")
    assert summary["requests"] == {
        "arrived": requests,
        "finished": requests,
        "rejected": 0,
        "unfinished": 0,
        "rejected_by_reason": {},
    }


def test_mooncake_with_very_large_kv_memory_approaches_the_infinite_cache_bound():
    trace = "mooncake/conversation_trace.jsonl"
    summary = run(trace, "--max-model-len", "131072", "--num-gpu-blocks-override", "8000000")
    assert summary["requests"]["arrived"] == summary["requests"]["finished"] == 12_031
    command = [sys.executable, "-m", "kavier", "workload", "info", str(DATA / trace), "--json"]
    info = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    bound = info["prefix"]["infinite_cache_hit_ratio_tokens"]
    assert info["prefix"]["infinite_cache_hit_ratio_blocks"] == pytest.approx(0.366, abs=5e-4)
    # Below the bound: the tail behind the last full engine block is never cached.
    assert bound - 0.01 < summary["cache"]["hit_ratio"] <= bound
