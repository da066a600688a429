"""The canonical table: what is refused, dropped, sorted and renumbered."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kavier.errors import InputError
from kavier.workload.table import SCHEMA, Workload, make_workload, root_rows

BASE = {"arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [10, 20, 30], "output_tokens": [1, 2, 3]}


def make(**columns) -> Workload:
    return make_workload(pl.DataFrame({**BASE, **columns}, strict=False), source="t", format="test")


def refusal(**columns) -> str:
    with pytest.raises(InputError) as caught:
        make(**columns)
    return str(caught.value)


def test_a_plain_table_passes_unchanged():
    workload = make()
    assert workload.requests.to_dict(as_series=False) == BASE
    assert workload.counts == {}
    assert (workload.source, workload.format) == ("t", "test")


def test_every_column_gets_its_canonical_type_and_order():
    everything = {
        "slo_class": ["a", None, "b"],
        "priority": [-1.0, None, 3.0],
        "model": ["m", "m", None],
        "tenant": [1, 2, 3],
        "think_s": [None, 1, 2],
        "parent": ["", None, 0],
        "session_id": [7, 7, 7],
        "block_tokens": [16, 16, 16],
        "block_hashes": [[1], None, [2**64 - 1, 5]],
    }
    everything["parent"] = [None, 0, 1]
    requests = make(**everything).requests
    assert dict(requests.schema) == SCHEMA
    assert requests["block_hashes"].to_list() == [[1], None, [2**64 - 1, 5]]
    assert requests["session_id"].to_list() == ["7", "7", "7"]
    assert requests["priority"].to_list() == [-1, None, 3]


def test_absent_optional_columns_stay_absent():
    assert make(tenant=["a", "b", "c"]).requests.columns == [*BASE, "tenant"]


def test_a_missing_column_is_named_with_those_that_are_there():
    frame = pl.DataFrame(BASE).rename({"prompt_tokens": "promt_tokens"})
    with pytest.raises(
        InputError, match=r"missing column 'prompt_tokens'; expected it beside .*promt_tokens"
    ):
        make_workload(frame, source="t", format="test")


def test_an_unknown_column_is_named_with_the_nearest_known_one():
    told = refusal(sesion_id=["a", "b", "c"])
    assert told.startswith("t: unknown column 'sesion_id'; expected arrival_s, prompt_tokens, ")
    assert told.endswith("; did you mean session_id?")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("arrival_s", [0.0, None, 2.0], "row 2, column 'arrival_s': no value; expected a number >= 0"),
        ("arrival_s", [0.0, 1.0, math.nan], "row 3, column 'arrival_s': not a finite number (got nan)"),
        ("arrival_s", [math.inf, 1.0, 2.0], "row 1, column 'arrival_s': not a finite number (got inf)"),
        ("arrival_s", [-1.5, 1.0, 2.0], "row 1, column 'arrival_s': negative value (got -1.5)"),
        ("prompt_tokens", [1, -2, 3], "row 2, column 'prompt_tokens': negative value (got -2)"),
        ("prompt_tokens", [1, None, 3], "row 2, column 'prompt_tokens': no value"),
        ("prompt_tokens", [1.0, 2.5, 3.0], "row 2, column 'prompt_tokens': not a whole number (got 2.5)"),
        (
            "prompt_tokens",
            [1.0, math.nan, 3.0],
            "row 2, column 'prompt_tokens': not a whole number (got nan)",
        ),
        ("output_tokens", ["1", "x", "3"], "row 2, column 'output_tokens': not a whole number (got 'x')"),
        ("output_tokens", ["1", "2", "3.5"], "row 3, column 'output_tokens': not a whole number (got '3.5')"),
        ("output_tokens", [1.0, 1e30, 3.0], "row 2, column 'output_tokens': not a whole number (got 1e+30)"),
        ("output_tokens", [True, True, True], "column 'output_tokens': values of type Boolean"),
        ("think_s", [None, -0.1, None], "row 2, column 'think_s': negative value (got -0.1)"),
        ("priority", [0.5, 1.0, 2.0], "row 1, column 'priority': not a whole number (got 0.5)"),
        ("tenant", [["a"], ["b"], ["c"]], "column 'tenant': values of type List(String)"),
        (
            "parent",
            [None, 3, None],
            "row 2, column 'parent': no such row (got 3); expected a row index from 0",
        ),
        ("parent", [None, -1, None], "row 2, column 'parent': no such row (got -1)"),
        ("parent", [None, 1, None], "row 2, column 'parent': the request is its own ancestor (got 1)"),
        ("parent", [None, 2, 1], "row 2, column 'parent': the request is its own ancestor (got 2)"),
        ("parent", [1, 2, 0], "row 1, column 'parent': the request is its own ancestor (got 1)"),
    ],
)
def test_a_bad_value_is_refused_with_row_column_and_value(column, values, message):
    assert message in refusal(**{column: values})


@pytest.mark.parametrize(
    ("hashes", "sizes", "message"),
    [
        (
            [[1], [1, 2, 3], [1, 2]],
            [16] * 3,
            "row 2, column 'block_hashes': 3 block hashes for a prompt of 20 tokens",
        ),
        (
            [[1], [1], [1, 2]],
            [16] * 3,
            "1 block hashes for a prompt of 20 tokens; expected 2, one for each 16-token",
        ),
        ([[1], [1, 2], [1, 2]], [16, 0, 16], "row 2, column 'block_tokens': no block size (got 0)"),
        ([[1], [1, 2], [1, 2]], [16, None, 16], "row 2, column 'block_tokens': no block size"),
        ([[1], [1, 2], [1]], [16, 16, 32], "row 3, column 'block_tokens': a second block size (got 32)"),
        ([[1], [1, -2], [1, 2]], [16] * 3, "row 2, column 'block_hashes': a missing or impossible value"),
        ([[1], [1, None], [1, 2]], [16] * 3, "row 2, column 'block_hashes': a missing or impossible value"),
        ([[1.0], [1.0, 2.0], [1.0, 2.0]], [16] * 3, "column 'block_hashes': values of type List(Float64)"),
        (["[1]", "[1, 2", "[1,2]"], [16] * 3, "row 2, column 'block_hashes': value"),
    ],
)
def test_hashes_that_do_not_cover_the_prompt_are_refused(hashes, sizes, message):
    assert message in refusal(block_hashes=hashes, block_tokens=sizes)


def test_hashes_without_a_block_size_are_refused():
    assert "block_hashes without block_tokens" in refusal(block_hashes=[[1], None, None])


def test_rows_without_hashes_need_no_block_size():
    requests = make(block_hashes=[None, [1, 2], None], block_tokens=[None, 16, None]).requests
    assert requests["block_hashes"].to_list() == [None, [1, 2], None]


def test_hashes_may_be_json_text_as_in_csv():
    requests = make(block_hashes=["[1]", None, "[18446744073709551615, 2]"], block_tokens=[16] * 3).requests
    assert requests["block_hashes"].to_list() == [[1], None, [2**64 - 1, 2]]


def test_a_table_where_no_request_has_hashes_is_fine():
    assert make(block_hashes=[None] * 3, block_tokens=[None] * 3).requests["block_hashes"].null_count() == 3


def test_requests_without_tokens_are_dropped_and_counted_once_each():
    workload = make(prompt_tokens=[0, 0, 5], output_tokens=[4, 0, 6])
    assert len(workload.requests) == 1
    assert workload.counts == {"dropped_zero_output_tokens": 1, "dropped_zero_prompt_tokens": 1}


def test_no_request_is_an_error():
    with pytest.raises(InputError, match="t: no request; expected at least one"):
        make_workload(pl.DataFrame(BASE).clear(), source="t", format="test")
    assert "no request left" in refusal(output_tokens=[0, 0, 0])
    assert "dropped_zero_output_tokens 3" in refusal(output_tokens=[0, 0, 0])


def test_requests_out_of_order_are_sorted_stably_and_counted():
    workload = make(arrival_s=[5.0, 1.0, 1.0])
    assert workload.requests["prompt_tokens"].to_list() == [20, 30, 10]
    assert workload.counts == {"sorted_rows": 1}


def test_parents_follow_their_rows_through_drop_and_sort():
    workload = make_workload(
        pl.DataFrame(
            {
                "arrival_s": [9.0, 1.0, 2.0, 3.0],
                "prompt_tokens": [10, 11, 12, 13],
                "output_tokens": [1, 0, 1, 1],
                "parent": [2, None, 1, 0],
            }
        ),
        source="t",
        format="test",
    )
    assert workload.requests["prompt_tokens"].to_list() == [12, 13, 10]
    assert workload.requests["parent"].to_list() == [None, 2, 0]
    assert workload.counts == {"dropped_zero_output_tokens": 1, "sorted_rows": 1, "dropped_parents": 1}


def test_what_the_reader_counted_is_kept_and_zeros_are_not():
    frame = pl.DataFrame(BASE)
    workload = make_workload(frame, source="t", format="test", counts={"no_timestamps": 3, "failed": 0})
    assert workload.counts == {"no_timestamps": 3}


def test_the_reader_may_say_where_a_row_is():
    frame = pl.DataFrame({**BASE, "prompt_tokens": [1, -2, 3]})
    with pytest.raises(InputError, match="t, line 17, column"):
        make_workload(frame, source="t", format="test", place=lambda row: f"line {16 + row}")


rows = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2), st.integers(0, 100)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(rows)
def test_no_request_is_lost_and_every_parent_stays_the_same_request(drawn):
    """Model: rows carry their identity as tenant; parents point to any earlier row, or none."""
    parent = [draw % (row + 1) for row, (*_, draw) in enumerate(drawn)]
    parent = [None if above == row else above for row, above in enumerate(parent)]
    frame = pl.DataFrame(
        {
            "arrival_s": [float(arrival) for arrival, *_ in drawn],
            "prompt_tokens": [prompt for _, prompt, *_ in drawn],
            "output_tokens": [output for _, _, output, _ in drawn],
            "parent": pl.Series(parent, dtype=pl.Int64),
            "tenant": [str(row) for row in range(len(drawn))],
        }
    )
    kept = [row for row, (_, prompt, output, _) in enumerate(drawn) if prompt and output]
    if not kept:
        with pytest.raises(InputError):
            make_workload(frame, source="t", format="test")
        return
    workload = make_workload(frame, source="t", format="test")
    requests, counts = workload.requests, workload.counts
    tenant = [int(name) for name in requests["tenant"]]
    assert tenant == sorted(kept, key=lambda row: drawn[row][0])
    dropped = counts.get("dropped_zero_output_tokens", 0) + counts.get("dropped_zero_prompt_tokens", 0)
    assert len(requests) + dropped == len(drawn)
    for row, above in zip(tenant, requests["parent"], strict=True):
        assert (None if above is None else tenant[above]) == (parent[row] if parent[row] in kept else None)
    lost = sum(parent[row] is not None and parent[row] not in kept for row in kept)
    assert counts.get("dropped_parents", 0) == lost


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_circles_are_found_exactly_when_there_are_some(draws):
    parent = [draw % len(draws) if draw % 3 else None for draw in draws]

    def circular(row: int) -> bool:
        above, steps = parent[row], 0
        while above is not None and steps <= len(parent):
            above, steps = parent[above], steps + 1
        return above is not None

    count = len(draws)
    frame = pl.DataFrame(
        {
            "arrival_s": np.zeros(count),
            "prompt_tokens": np.ones(count),
            "output_tokens": np.ones(count),
            "parent": pl.Series(parent, dtype=pl.Int64),
        }
    )
    if any(circular(row) for row in range(count)):
        with pytest.raises(InputError, match="its own ancestor"):
            make_workload(frame, source="t", format="test")
    else:
        assert make_workload(frame, source="t", format="test").requests["parent"].to_list() == parent


def test_the_root_of_a_long_chain_is_its_first_row():
    chain = pl.Series([None, *range(999)], dtype=pl.Int64)
    assert root_rows(chain).tolist() == [0] * 1000
