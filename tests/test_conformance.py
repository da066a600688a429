"""The reference engine does, step for step, what the real vLLM 0.33 scheduler was recorded to do."""

from __future__ import annotations

import pytest

from tests.oracle import ORACLE, RUNS, read_jsonl, replay

pytestmark = pytest.mark.skipif(not ORACLE.exists(), reason="needs the recorded oracle in ../shared/oracle")

STEP_FIELDS = ("t", "dt", "sched", "preempted", "free", "evicted", "running", "waiting")
REQUEST_FIELDS = ("id", "first_sched_s", "cached_tokens", "first_token_s", "finish_s", "preemptions")


@pytest.mark.parametrize("run", RUNS)
def test_every_step_and_request_is_identical_to_vllm_0_33(run):
    recorded_steps = read_jsonl(ORACLE / "vllm-0.33.0" / f"{run}.steps.jsonl.gz")
    recorded_requests = read_jsonl(ORACLE / "vllm-0.33.0" / f"{run}.requests.jsonl.gz")
    ours = replay(run)
    for index, (mine, theirs) in enumerate(zip(ours.steps, recorded_steps, strict=False)):
        assert mine == {name: theirs[name] for name in STEP_FIELDS}, f"step {index}"
    assert len(ours.steps) == len(recorded_steps)
    theirs = {row["id"]: {name: row[name] for name in REQUEST_FIELDS} for row in recorded_requests}
    assert {row["id"]: row for row in ours.requests} == theirs
