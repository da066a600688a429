"""Gaps between tokens are counted in bins: nothing is lost, and no gap is off by more than 2^-12."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from kavier.scenario import Engine
from kavier.simulation.compiled import simulate_compiled
from kavier.simulation.record import merge_gaps
from kavier.timing.compiled import AffineTiming

SHORTEST_S, LONGEST_S = 2.0**-32, 2.0**20
"""Of gaps that bins tell apart."""

gaps = st.lists(
    st.tuples(
        st.floats(SHORTEST_S, LONGEST_S, exclude_max=True)
        | st.floats(0.019, 0.021)  # many in a bin, as in a run
        | st.integers(-32, 19).map(lambda power: 2.0**power)
        | st.integers(-31, 20).map(lambda power: np.nextafter(2.0**power, 0.0)),
        st.integers(1, 10**9),
    ),
    max_size=60,
)


def merged(pairs: list[tuple[float, int]]) -> pl.DataFrame:
    return merge_gaps(np.array([gap for gap, _ in pairs], float), np.array([n for _, n in pairs], np.int64))


@given(gaps)
def test_no_count_is_lost_and_no_gap_is_off_by_more_than_2_to_the_minus_12(pairs):
    found = merged(pairs)
    bins = found["gap_s"].to_list()
    assert bins == sorted(set(bins))
    counts: Counter[float] = Counter()
    for gap_s, count in pairs:
        bin_s = bins[bisect_right(bins, gap_s) - 1]  # the nearest that is not longer
        assert bin_s <= gap_s < bin_s * (1 + 2**-12)
        counts[bin_s] += count
    assert found["count"].to_list() == [counts[bin_s] for bin_s in bins]
    assert set(bins) <= {gap_s for gap_s, _ in pairs}


@given(gaps)
def test_counting_again_changes_nothing(pairs):
    once = merged(pairs)
    assert merge_gaps(once["gap_s"].to_numpy(), once["count"].to_numpy()).equals(once)


@given(gaps, gaps)
def test_gaps_counted_apart_and_then_together_are_as_gaps_counted_at_once(some, more):
    parts = pl.concat([merged(some), merged(more)])
    assert merge_gaps(parts["gap_s"].to_numpy(), parts["count"].to_numpy()).equals(merged([*some, *more]))


@given(st.lists(st.floats(0.0, SHORTEST_S, exclude_max=True), min_size=1, max_size=9))
def test_gaps_too_short_to_tell_apart_are_one(values):
    found = merged([(value, 1) for value in values])
    assert found.rows() == [(min(values), len(values))]


@given(st.lists(st.floats(LONGEST_S, 1e12), min_size=1, max_size=9))
def test_no_gap_that_is_too_long_is_lost(values):
    found = merged([(value, 1) for value in values])
    assert found.rows() == [(min(values), len(values))]


def test_gaps_of_a_run_that_differ_by_less_than_a_bin_are_one():
    """A step for each token behind the first: 0.3 s and 1 ns for each token of context."""
    timing = AffineTiming(0.3, 0.0, 0.0, 1e-9)
    engine = Engine(max_model_len=64, max_num_seqs=1, max_num_batched_tokens=64)
    table = pl.DataFrame({"arrival_s": [0.0], "prompt_tokens": [4], "output_tokens": [11]})
    found = simulate_compiled(table, engine, timing, num_gpu_blocks=9).token_gaps
    assert found["count"].to_list() == [10]
    assert 0.3 <= found["gap_s"][0] < 0.3 * (1 + 2**-12)
