"""The timeline: what is in the steps is in the rows, whatever the interval, replica by replica."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from math import ceil, floor

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kavier.metrics.course import BINS, Course
from kavier.metrics.timeline import AVERAGED, COUNTED, SPREAD
from kavier.simulation.record import STEP_SCHEMA
from tests.timelines import timeline

IDLE_W = 122.0
TOLD = tuple(name for name in COUNTED if name != "steps")
"""Whole numbers that a step tells of itself."""
RENAMED = {"decodes": "decode_tokens", "preempted": "preemptions"}
CLOSE, NARROW = 1e-9, 1e-6
"""Relative: of columns of 64 and of 32 bits."""


@dataclass(frozen=True)
class Spell:
    """A pause, then a step of random content."""

    pause_s: float
    duration_s: float
    counts: tuple[int, ...]
    levels: tuple[int, ...]
    amounts: tuple[float, ...]


def table(replica_spells, start_s) -> pl.DataFrame:
    """The steps table of some replicas, each of whose steps follow one another."""
    rows = []
    for replica, spells in enumerate(replica_spells):
        now_s = start_s
        for spell in spells:
            _, duration_s, counts, levels, amounts = astuple(spell)
            now_s += spell.pause_s
            named = dict(zip((*TOLD, *AVERAGED, *SPREAD), (*counts, *levels, *amounts), strict=True))
            rest = dict.fromkeys(STEP_SCHEMA.keys() - named.keys(), 0)
            when = {"replica": replica, "scheduled_s": now_s, "start_s": now_s, "duration_s": duration_s}
            rows.append({**rest, **named, **when})
            now_s += duration_s
    schema = {**STEP_SCHEMA, "energy_j": pl.Float64()}
    return pl.DataFrame(rows, schema=schema).sort("start_s", "replica", maintain_order=True)


# Multiples of intervals are as likely as any other length, so that steps begin and end on boundaries.
durations = st.sampled_from([0.125, 0.25, 0.5, 1.0, 0.1]) | st.floats(1e-4, 2.5)
working = st.builds(
    Spell,
    pause_s=st.sampled_from([0.0, 0.0, 0.25, 1.0]) | st.floats(0, 2),
    duration_s=durations,
    counts=st.tuples(*[st.integers(0, 10_000)] * len(TOLD)),
    levels=st.tuples(*[st.integers(0, 1_000)] * len(AVERAGED)),
    amounts=st.tuples(*[st.floats(0, 1e15)] * len(SPREAD)),
)
empty = st.builds(
    Spell,
    pause_s=st.sampled_from([0.0, 0.0, 0.25, 1.0]),
    duration_s=st.just(0.0),
    counts=st.tuples(*[st.integers(0, 10_000)] * len(TOLD)),
    levels=st.tuples(*[st.integers(0, 1_000)] * len(AVERAGED)),
    amounts=st.just((0.0,) * len(SPREAD)),
)
"""A step of the asynchronous scheduler in which nothing runs."""
spells = working | working | working | empty
fleets = st.lists(st.lists(spells, max_size=5), min_size=1, max_size=3).filter(any)
intervals = st.sampled_from([0.001, 0.01, 0.1, 0.25, 1.0, 7.0, 100.0]) | st.floats(0.01, 100)
starts = st.sampled_from([0.0, 0.0, 3.5, 1e5])
tails = st.sampled_from([0.0, 0.0, 0.3, 2.0])


def end_of(steps):
    return max(start_s + duration_s for start_s, duration_s in steps["start_s", "duration_s"].iter_rows())


def rows_of(steps, fleet, start_s, tail_s, interval_s) -> pl.DataFrame:
    window_s = (start_s, end_of(steps) + tail_s)
    return timeline(steps, replicas=len(fleet), window_s=window_s, interval_s=interval_s, idle_w=IDLE_W)


@given(fleets, starts, tails, intervals)
def test_rows_add_up_to_the_steps_replica_by_replica(fleet, start_s, tail_s, interval_s):
    steps = table(fleet, start_s)
    rows = rows_of(steps, fleet, start_s, tail_s, interval_s)
    window_s = end_of(steps) + tail_s - start_s
    for replica in range(len(fleet)):
        mine, ours = steps.filter(pl.col("replica") == replica), rows.filter(pl.col("replica") == replica)
        assert ours["steps"].sum() == len(mine)
        for name in TOLD:
            assert ours[RENAMED.get(name, name)].sum() == mine[name].sum()
        for name in ("flops", "bytes"):
            assert ours[name].cast(pl.Float64).sum() == pytest.approx(mine[name].sum(), rel=NARROW)
        assert ours["interval_s"].sum() == pytest.approx(window_s, rel=CLOSE)
        assert ours["busy_s"].sum() == pytest.approx(mine["duration_s"].sum(), rel=CLOSE, abs=CLOSE)
        for name in AVERAGED:
            level_s = (ours[name] * ours["interval_s"]).sum()
            expected = (mine[name] * mine["duration_s"]).sum()
            assert level_s == pytest.approx(expected, rel=NARROW, abs=CLOSE)


@given(fleets, starts, tails, intervals)
def test_energy_is_that_of_the_steps_and_of_the_time_between_them(fleet, start_s, tail_s, interval_s):
    steps = table(fleet, start_s)
    rows = rows_of(steps, fleet, start_s, tail_s, interval_s)
    idle_s = len(fleet) * (end_of(steps) + tail_s - start_s) - steps["duration_s"].sum()
    expected_j = steps["energy_j"].sum() + idle_s * IDLE_W
    assert rows["energy_j"].sum() == pytest.approx(expected_j, rel=CLOSE, abs=1e-6)
    by_replica = rows.group_by("replica").agg(pl.col("energy_j").sum())  # law 3
    assert by_replica["energy_j"].sum() == pytest.approx(rows["energy_j"].sum(), rel=1e-12)


@given(fleets, starts, tails, intervals)
def test_no_row_is_busy_for_longer_than_it_lasts(fleet, start_s, tail_s, interval_s):
    rows = rows_of(table(fleet, start_s), fleet, start_s, tail_s, interval_s)
    assert (rows["busy_s"] >= 0).all()
    assert (rows["busy_s"] <= rows["interval_s"]).all()
    assert (rows["energy_j"] >= 0).all()


@given(fleets, starts, tails, intervals)
def test_rows_tile_the_window_for_every_replica(fleet, start_s, tail_s, interval_s):
    steps = table(fleet, start_s)
    rows = rows_of(steps, fleet, start_s, tail_s, interval_s)
    assert rows["replica"].unique(maintain_order=True).to_list() == list(range(len(fleet)))
    for (_,), ours in rows.group_by("replica", maintain_order=True):
        begin, length = ours["start_s"].to_numpy(), ours["interval_s"].to_numpy()
        assert begin[0] == start_s
        assert np.allclose(begin[1:], (begin + length)[:-1], rtol=0, atol=1e-9)
        intervals = length[:-1] / interval_s
        assert (intervals > 0.5).all()
        assert np.allclose(intervals, np.round(intervals), rtol=1e-9, atol=1e-9)
        assert begin[-1] + length[-1] == pytest.approx(end_of(steps) + tail_s, abs=1e-9)


@given(fleets, st.sampled_from([2**-10, 0.25, 0.5, 1.0]))
def test_a_row_starts_where_something_happens(fleet, interval_s):
    """With binary fractions, so that what is on a boundary is exactly on it."""
    exact = eighths(fleet)
    steps = table(exact, 0.0)
    rows = rows_of(steps, exact, 0.0, 1.0, interval_s)
    for replica in range(len(exact)):
        mine = steps.filter(pl.col("replica") == replica)
        begins = {floor(s / interval_s) for s in mine["start_s"]}
        ends = {floor(s / interval_s) for s in mine["start_s"] + mine["duration_s"]}
        found = {round(s / interval_s) for s in rows.filter(pl.col("replica") == replica)["start_s"]}
        assert found >= {0} | begins
        assert found <= {0} | begins | ends | {end + 1 for end in ends}


def eighths(fleet: list[list[Spell]]) -> list[list[Spell]]:
    """Pauses and steps of multiples of 1/8 s."""
    return [
        [replace(s, pause_s=round(s.pause_s * 8) / 8, duration_s=ceil(s.duration_s * 8) / 8) for s in spells]
        for spells in fleet
    ]


@given(fleets, starts, tails, st.tuples(intervals, intervals))
def test_the_interval_changes_no_total(fleet, start_s, tail_s, two_intervals):
    steps = table(fleet, start_s)
    fine, coarse = (rows_of(steps, fleet, start_s, tail_s, interval_s) for interval_s in two_intervals)
    totals = [name for name in fine.columns if name not in ("replica", "start_s", *AVERAGED)]
    for name in totals:
        close = NARROW if name in ("flops", "bytes") else CLOSE
        sums = [rows[name].cast(pl.Float64).sum() for rows in (fine, coarse)]
        assert sums[0] == pytest.approx(sums[1], rel=close, abs=1e-6), name


def brute_force(steps, replica, begin_s, length_s):
    """One row, from every step's overlap with it."""
    row = dict.fromkeys(("busy_s", *AVERAGED, *SPREAD), 0.0)
    for step in steps.filter(pl.col("replica") == replica).iter_rows(named=True):
        end_s = step["start_s"] + step["duration_s"]
        overlap_s = max(0.0, min(end_s, begin_s + length_s) - max(step["start_s"], begin_s))
        row["busy_s"] += overlap_s
        for name in AVERAGED:
            row[name] += step[name] * overlap_s / length_s
        for name in SPREAD:
            row[name] += step[name] * overlap_s / (step["duration_s"] or 1.0)
    row["energy_j"] += (length_s - row["busy_s"]) * IDLE_W
    return row


@given(fleets, st.sampled_from([0.0, 3.5]), tails, st.sampled_from([0.1, 0.25, 1.0, 7.0, 100.0]))
def test_every_row_is_what_brute_force_finds(fleet, start_s, tail_s, interval_s):
    steps = table(fleet, start_s)
    rows = rows_of(steps, fleet, start_s, tail_s, interval_s)
    for row in rows.iter_rows(named=True):
        if row["interval_s"] < 1e-6:
            continue  # slivers have a test of their own
        expected = brute_force(steps, row["replica"], row["start_s"], row["interval_s"])
        for name, value in expected.items():
            size = max(steps[name]) if name in steps.columns else 1.0
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6 * (1 + size)), name


@given(fleets, st.sampled_from([0.25, 0.5, 1.0]))
def test_whole_numbers_belong_to_the_interval_in_which_their_step_starts(fleet, interval_s):
    """With binary fractions, so that a start on a boundary is exactly on it."""
    exact = eighths(fleet)
    steps = table(exact, 0.0)
    rows = rows_of(steps, exact, 0.0, 1.0, interval_s)
    found = {(r, s): n for r, s, n in rows.select("replica", "start_s", "prefill_tokens").iter_rows() if n}
    expected: dict[tuple[int, float], int] = {}
    for replica, begin_s, tokens in steps.select("replica", "start_s", "prefill_tokens").iter_rows():
        cell = (replica, floor(begin_s / interval_s) * interval_s)
        expected[cell] = expected.get(cell, 0) + tokens
    assert found == {cell: tokens for cell, tokens in expected.items() if tokens}


# --- The course ---------------------------------------------------------------------------------------

spans = st.tuples(st.floats(0.0, 1000.0), st.floats(1e-3, 300.0) | st.floats(1e-3, 0.1), st.floats(0.0, 1e6))


@given(st.lists(spans, min_size=1, max_size=30), st.sampled_from([1e-3, 0.1, 7.0]), st.integers(1, 60))
def test_a_course_is_what_lies_in_each_piece_but_for_a_bin(found, bin_s, pieces):
    course = Course(("energy_j",), bin_s)
    for part in (found[:7], found[7:]):
        if part:
            starts, lengths, amounts = (np.array(column) for column in zip(*part, strict=True))
            course.add(starts, starts + lengths, {"energy_j": amounts})
    end_s = max(start_s + length_s for start_s, length_s, _ in found)
    means, edges = course.means(pieces)["energy_j"], np.linspace(0.0, end_s, pieces + 1)
    assert means.sum() * end_s / pieces == pytest.approx(sum(amount for *_, amount in found), rel=CLOSE)
    widest = max(bin_s, 2 * end_s / BINS)  # less than half of the bins are never in use
    for piece in range(pieces):
        low, high = edges[piece], edges[piece + 1]
        least, most = (within(found, low + by, high - by) for by in (widest, -widest))
        slack = 1e-6 * (1 + most)
        assert least - slack <= means[piece] * (high - low) <= most + slack


def within(found, low, high):
    """What lies between two times."""
    return sum(
        amount * max(0.0, min(start_s + length_s, high) - max(start_s, low)) / length_s
        for start_s, length_s, amount in found
    )


def test_a_course_of_no_time_is_nothing():
    course = Course(("energy_j",), 1.0)
    course.add(np.zeros(1), np.zeros(1), {"energy_j": np.zeros(1)})
    assert course.means(3)["energy_j"].tolist() == [0.0] * 3


# --- Known cases --------------------------------------------------------------------------------------


def spell(pause_s, duration_s, running=2, energy_j=100.0, tokens=7) -> Spell:
    counts = tuple([tokens] * len(TOLD))
    return Spell(pause_s, duration_s, counts, (running, 0, 3), (1e12, 1e9, energy_j))


def one_row(frame):
    assert len(frame) == 1
    return frame.row(0, named=True)


def test_a_step_that_fills_an_interval_leaves_nothing_to_its_neighbours():
    steps = table([[spell(1.0, 1.0)]], 0.0)
    rows = timeline(steps, replicas=1, window_s=(0.0, 3.0), interval_s=1.0, idle_w=10.0)
    assert rows["busy_s"].to_list() == [0.0, 1.0, 0.0]
    assert rows["energy_j"].to_list() == [10.0, 100.0, 10.0]
    assert rows["steps"].to_list() == [0, 1, 0]
    assert rows["running"].to_list() == [0.0, 2.0, 0.0]


def test_a_step_across_a_boundary_is_split_by_time_and_counted_once():
    steps = table([[spell(0.75, 1.0)]], 0.0)
    rows = timeline(steps, replicas=1, window_s=(0.0, 2.0), interval_s=1.0, idle_w=10.0)
    assert rows["busy_s"].to_list() == [0.25, 0.75]
    assert rows["energy_j"].to_list() == [25 + 7.5, 75 + 2.5]
    assert rows["prefill_tokens"].to_list() == [7, 0]
    assert rows["running"].to_list() == [0.5, 1.5]


def test_a_window_shorter_than_an_interval_is_one_short_row():
    steps = table([[spell(0.0, 0.25)]], 5.0)
    row = one_row(timeline(steps, replicas=1, window_s=(5.0, 5.5), interval_s=60.0, idle_w=10.0))
    assert (row["start_s"], row["interval_s"], row["busy_s"]) == (5.0, 0.5, 0.25)
    assert row["running"] == 1.0
    assert row["energy_j"] == 100 + 2.5


def test_a_replica_that_never_ran_idles_through_all_rows():
    steps = table([[spell(0.0, 2.0)], [], []], 0.0)
    rows = timeline(steps, replicas=3, window_s=(0.0, 2.0), interval_s=1.0, idle_w=10.0)
    idle = rows.filter(pl.col("replica") > 0)
    assert idle["replica"].to_list() == [1, 2]  # one row each
    assert idle["interval_s"].to_list() == [2.0, 2.0]
    assert idle["energy_j"].to_list() == [20.0, 20.0]
    assert idle.select(pl.exclude("replica", "start_s", "interval_s", "energy_j")).to_numpy().sum() == 0


@pytest.mark.parametrize("end_s", [0.0, 2.5])
def test_no_steps_at_all_is_idle_time(end_s):
    rows = timeline(table([[]], 0.0), replicas=2, window_s=(0.0, end_s), interval_s=1.0, idle_w=10.0)
    assert rows["energy_j"].sum() == pytest.approx(2 * end_s * 10.0)
    assert rows["busy_s"].sum() == 0.0
    assert rows["running"].to_list() == [0.0] * len(rows)


def test_a_step_that_begins_where_the_last_row_ends_spoils_nothing():
    """The last token was at 0.5 s; at 1 s a request is rejected in an empty step."""
    steps = table([[spell(0.0, 0.5), spell(0.5, 0.001, running=0, energy_j=0.122)]], 0.0)
    rows = timeline(steps, replicas=1, window_s=(0.0, 0.5), interval_s=1.0, idle_w=10.0)
    assert rows["energy_j"].sum() == pytest.approx(100.0, abs=0.2)
    assert rows.select(pl.all().is_finite().all()).row(0) == (True,) * len(rows.columns)


@given(st.floats(0.0, 50.0))
@example(0.0)
def test_a_step_behind_the_window_changes_no_mean(later_s):
    """A step that only rejects holds no request and no block."""
    late = spell(later_s + 0.6, 0.001, running=0, energy_j=0.122)
    late = Spell(late.pause_s, late.duration_s, late.counts, (0, 0, 0), late.amounts)
    steps = table([[spell(0.0, 0.5), late]], 0.0)
    rows = timeline(steps, replicas=1, window_s=(0.0, 0.5), interval_s=1.0, idle_w=10.0)
    assert one_row(rows)["running"] == pytest.approx(2.0)
    assert one_row(rows)["busy_s"] == 0.5


@given(
    st.integers(1, 400), st.sampled_from([0.1, 0.01, 0.7, 1 / 3]), st.sampled_from([0.0, 606.4265540611151])
)
@example(187, 0.01, 606.4265540611151)
def test_no_mean_is_above_the_highest_level_nor_power_above_that_of_the_steps(count, interval_s, start_s):
    """The window ends within rounding of a boundary."""
    end_s = start_s + interval_s * count
    steps = table([[spell(0.0, end_s - start_s, running=5)]], start_s)
    rows = timeline(steps, replicas=1, window_s=(start_s, end_s), interval_s=interval_s, idle_w=1.0)
    assert max(rows["running"]) <= 5 * (1 + 1e-6)
    watts = 100.0 / (end_s - start_s)
    assert (rows["energy_j"] <= watts * rows["interval_s"] * (1 + 1e-6) + 1e-15).all()
    assert (rows["interval_s"] > 0).all()
