"""Equal keys mean equal tokens, whatever the block sizes of trace and engine."""

from __future__ import annotations

import polars as pl
from hypothesis import example, given
from hypothesis import strategies as st

from kavier.simulation.request import Request
from kavier.workload.blocks import BlockKeys, unknown_key
from kavier.workload.table import SCHEMA

tokens = st.lists(st.integers(0, 1), min_size=1, max_size=14)


def table(prompts, outputs, trace_size: int, parents=None, *, chained: bool = True) -> pl.DataFrame:
    """Prompts as a trace tells them: a hash numbers all tokens so far, or only those of its block."""
    numbers: dict[tuple[int, ...], int] = {}

    def hashes(prompt):
        ends = range(trace_size, len(prompt) + trace_size, trace_size)
        starts = [0 if chained else end - trace_size for end in ends]
        return [
            numbers.setdefault(tuple(prompt[start:end]), len(numbers))
            for start, end in zip(starts, ends, strict=True)
        ]

    rows = {
        "arrival_s": [0.0] * len(prompts),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "output_tokens": outputs,
        "block_hashes": [hashes(prompt) for prompt in prompts],
        "block_tokens": [trace_size] * len(prompts),
        "parent": parents or [None] * len(prompts),
    }
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})


@example([[0, 1], [1, 1]], 1, 1, False)  # a block alike behind blocks that differ
@given(st.lists(tokens, min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_equal_keys_mean_equal_tokens(prompts, trace_size, block_size, chained):
    source = BlockKeys(table(prompts, [1] * len(prompts), trace_size, chained=chained), block_size)
    held: dict[int, tuple[int, ...]] = {}
    for row, prompt in enumerate(prompts):
        keys = source.keys(row)
        assert len(keys) == len(prompt) // block_size
        for index, key in enumerate(keys):
            prefix = tuple(prompt[: (index + 1) * block_size])
            assert key >= 0
            assert held.setdefault(key, prefix) == prefix


@example([[1], [1, 2], [1, 3], [1, 2, 4], [1]], 2, 3)  # chains extended at once, later, and twice
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_chains_are_named_in_the_order_in_which_they_first_occur(rows, trace_size, block_size):
    """What a dictionary of all beginnings says."""
    firsts: dict[tuple[int, ...], int] = {}
    wanted, free = [], 0
    for row in rows:
        keys: list[int] = []
        for depth in range(1, len(row) + 1):
            new = depth * trace_size // block_size - len(keys)
            first = firsts.setdefault(tuple(row[:depth]), free)
            free += new if first == free else 0
            keys += range(first, first + new)
        wanted.append(keys)
    columns = {
        "prompt_tokens": [len(row) * trace_size for row in rows],
        "output_tokens": [1] * len(rows),
        "block_hashes": rows,
        "block_tokens": [trace_size] * len(rows),
    }
    source = BlockKeys(pl.DataFrame(columns, schema={name: SCHEMA[name] for name in columns}), block_size)
    assert [source.keys(row) for row in range(len(rows))] == wanted


@given(tokens, tokens, st.integers(1, 6), st.integers(1, 6))
def test_equal_tokens_have_equal_keys_as_far_as_whole_trace_blocks_agree(one, two, trace_size, block_size):
    source = BlockKeys(table([one, two], [1, 1], trace_size), block_size)
    agree = 0
    while one[: agree + trace_size] == two[: agree + trace_size] and agree < len(one):
        agree += trace_size
    agree = min(agree, len(one))
    shared = agree // block_size
    first, second = source.keys(0), source.keys(1)
    assert first[:shared] == second[:shared]
    assert not set(first[shared:]) & set(second)


@given(tokens, tokens, tokens, st.integers(1, 4))
def test_the_answer_of_a_request_is_known_from_the_prompt_that_extends_it(prompt, answer, more, size):
    follow_up = prompt + answer + more
    source = BlockKeys(table([prompt, follow_up], [len(answer), 1], size, [None, 0]), size)
    known = (len(prompt) + len(answer)) // size
    assert source.keys(0) == source.keys(1)[:known]


@given(
    st.lists(st.tuples(tokens, st.integers(1, 9)), min_size=2, max_size=5),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_the_turns_of_a_conversation_share_all_blocks_that_the_last_one_shows(turns, trace_size, block_size):
    """Whatever the block sizes: only behind the last whole trace block of the conversation is more lost."""
    said: list[int] = []
    prompts, outputs = [], []
    for new, answer in turns:
        said = said + new
        prompts.append(said)
        outputs.append(answer)
        said = said + [7] * answer
    parents = [None, *range(len(turns) - 1)]
    source = BlockKeys(table(prompts, outputs, trace_size, parents), block_size)
    every = source.keys(len(turns) - 1)
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        said_by_then = min(len(prompt) + output, len(prompts[-1]))
        assert source.keys(row) == every[: said_by_then // block_size]


def test_an_answer_is_unknown_when_the_follow_up_does_not_extend_the_prompt():
    source = BlockKeys(table([[0, 0, 0], [0, 1, 0, 0, 0]], [2, 1], 1, [None, 0]), 1)
    assert len(source.keys(0)) == 3


def test_without_hashes_nothing_is_known_and_every_block_is_unlike_any_other():
    frame = table([[0], [0]], [1, 1], 1).drop("block_hashes", "block_tokens")
    assert BlockKeys(frame, 1).keys(1) == []
    unknown = [unknown_key(row, index) for row in range(50) for index in range(50)]
    assert len(set(unknown)) == 2500
    assert max(unknown) < 0
    assert Request(3, 0.0, 8, 1).block_key(2) == unknown_key(3, 2)


def test_a_request_without_hashes_among_others_is_unlike_them():
    frame = table([[0, 0], [0, 0]], [1, 1], 1)
    frame = frame.with_columns(
        pl.when(pl.int_range(2) == 0).then("block_hashes").otherwise(None).alias("block_hashes")
    )
    source = BlockKeys(frame, 1)
    assert (len(source.keys(0)), source.keys(1)) == (2, [])
