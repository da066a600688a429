"""Workload statistics: hand-made tables whose numbers are known, and the Mooncake trace."""

import json
from pathlib import Path

import polars as pl
import pytest

from kavier.workload.read import read_trace
from kavier.workload.statistics import describe
from kavier.workload.table import Workload, make_workload

MOONCAKE = Path(__file__).parents[2] / "shared" / "data" / "mooncake" / "conversation_trace.jsonl"


def table(**columns) -> Workload:
    frame = pl.DataFrame(columns)
    for name in ("prompt_tokens", "output_tokens"):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(10, pl.Int64).alias(name))
    return make_workload(frame, source="by hand", format="test", counts={"dropped": 3})


def test_rate_and_burstiness_come_from_the_gaps():
    described = describe(table(arrival_s=[5.0, 6.0, 9.0]))  # gaps 1 and 3: mean 2, deviation 1
    assert described["requests"] == 3
    assert described["duration_s"] == 4.0
    assert described["rate_per_s"] == 0.5
    assert described["gap_cv"] == 0.5
    assert described["burstiness"] == 4.0


@pytest.mark.parametrize("times", [[1.0], [1.0, 1.0, 1.0]])
def test_what_has_no_gaps_has_no_rate(times):
    described = describe(table(arrival_s=times))
    assert (described["rate_per_s"], described["gap_cv"], described["burstiness"]) == (None, None, None)


def test_constant_gaps_have_no_burstiness():
    described = describe(table(arrival_s=[0.0, 1.0, 2.0]))
    assert (described["gap_cv"], described["burstiness"]) == (0.0, None)


def test_lengths_are_summed_up():
    described = describe(table(arrival_s=[0.0] * 5, prompt_tokens=[1, 2, 3, 4, 100]))
    assert described["prompt_tokens"] == {
        "mean": 22.0, "p50": 3.0, "p90": pytest.approx(61.6), "p99": pytest.approx(96.16),
        "max": 100, "total": 110,
    }  # fmt: skip
    assert described["counts"] == {"dropped": 3}


def test_it_is_plain_json():
    workload = table(
        arrival_s=[0.0, 1.0],
        block_hashes=[[1], [1]],
        block_tokens=[16, 16],
        session_id=["a", "a"],
        parent=[None, 0],
    )
    described = describe(workload)
    assert json.loads(json.dumps(described)) == described


def test_sessions_are_counted_by_name_or_else_by_roots():
    named = describe(table(arrival_s=[0.0, 1.0, 2.0, 3.0], session_id=["a", "b", "a", None]))
    assert named["sessions"] == {"count": 2, "mean_turns": 1.5, "max_turns": 2}
    linked = describe(table(arrival_s=[0.0, 1.0, 2.0], parent=[None, 0, None]))
    assert linked["sessions"] == {"count": 2, "mean_turns": 1.5}
    assert "sessions" not in describe(table(arrival_s=[0.0]))


def test_a_block_hits_only_behind_a_chain_that_was_seen():
    prefix = describe(
        table(
            arrival_s=[0.0, 1.0, 2.0, 3.0],
            prompt_tokens=[30, 30, 30, 25],
            block_hashes=[[1, 2, 3], [1, 2, 4], [9, 2, 3], [1, 2, 3]],
            block_tokens=[10] * 4,
        )
    )["prefix"]
    assert (prefix["blocks"], prefix["block_tokens"]) == (12, 10)
    assert prefix["infinite_cache_hit_ratio_blocks"] == 5 / 12  # 0, then 1 2, then none behind 9, then all
    assert prefix["infinite_cache_hit_ratio_tokens"] == (20 + 25) / 115
    assert prefix["distinct_blocks"] == 7


def test_a_block_that_repeats_inside_its_own_prompt_is_no_hit():
    prefix = describe(
        table(arrival_s=[0.0], prompt_tokens=[30], block_hashes=[[1, 1, 1]], block_tokens=[10])
    )["prefix"]
    assert prefix["infinite_cache_hit_ratio_blocks"] == 0


def test_prompts_without_hashes_count_as_tokens_that_miss():
    prefix = describe(
        table(
            arrival_s=[0.0, 1.0, 2.0],
            block_hashes=[[1], None, [1]],
            block_tokens=pl.Series([10, None, 10], dtype=pl.Int64),
        )
    )["prefix"]
    assert prefix["infinite_cache_hit_ratio_blocks"] == 0.5
    assert prefix["infinite_cache_hit_ratio_tokens"] == pytest.approx(1 / 3)


def test_the_mooncake_conversation_trace_would_hit_36_6_percent_of_its_blocks():
    if not MOONCAKE.exists():
        pytest.skip("the Mooncake trace is not here (../shared/data)")
    described = describe(read_trace(MOONCAKE))
    assert described["requests"] == 12_031
    assert described["prompt_tokens"]["mean"] == pytest.approx(12_035, abs=0.5)
    assert described["prefix"]["blocks"] == 288_500
    assert described["prefix"]["infinite_cache_hit_ratio_blocks"] == pytest.approx(105_710 / 288_500)
