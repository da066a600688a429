"""Readers: each format from a small file, every bad file with its place, and the public traces when given."""

from __future__ import annotations

import contextlib
import gzip
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kavier.errors import InputError
from kavier.workload.read import FORMATS, read_trace, write_trace
from kavier.workload.table import make_workload

DATA = Path(__file__).parents[2] / "shared" / "data"

NATIVE = "arrival_s,prompt_tokens,output_tokens\n0,10,1\n1.5,20,2\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951691,396,109\n"
)
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,a,1.0,ChatGPT,472,18,490,Conversation log\n"
    "45,,1.0,GPT-4,1087,0,1087,API log\n"
    "118,a,1.0,GPT-4,417,276,693,Conversation log\n"
)
MOONCAKE = [
    {"timestamp": 0, "input_length": 1025, "output_length": 5, "hash_ids": [0, 1, 2**64 - 1]},
    {"timestamp": 3001, "input_length": 512, "output_length": 7, "hash_ids": [0]},
]
BAILIAN = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 17, "output_length": 4,
     "type": "text", "turn": 1, "hash_ids": [1, 2]},
    {"chat_id": 9, "parent_chat_id": 7, "timestamp": 70, "input_length": 33, "output_length": 4,
     "type": "text", "turn": 2, "hash_ids": [1, 3, 4]},
    {"chat_id": 3, "parent_chat_id": 55, "timestamp": 71.5, "input_length": 5, "output_length": 4,
     "type": "text", "turn": 2, "hash_ids": [8]},
    {"chat_id": 4, "parent_chat_id": 9, "timestamp": 80.0, "input_length": 48, "output_length": 4,
     "type": "text", "turn": 3, "hash_ids": [1, 3, 5]},
]  # fmt: skip
VLLM_BENCH = {
    "duration": 3.0,
    "completed": 2,
    "input_lens": [100, 200, 300],
    "output_lens": [10, 0, 30],
    "start_times": [5000.25, 0.0, 5001.75],
    "errors": ["", "Connection refused", ""],
    "mean_ttft_ms": 12.0,
}
SHAREGPT = [
    {"id": "x", "conversations": [{"from": "human", "value": "a", "tokens": 5}, {"from": "gpt", "tokens": 7},
                                  {"from": "human", "tokens": 3}, {"from": "gpt", "tokens": 2}]},
    {"id": "y", "conversations": [], "prompt_tokens": 40, "output_tokens": 6},
]  # fmt: skip


def jsonl(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def trace(tmp_path):
    """Writes a trace file and reads it."""

    def read(content: str | bytes, format: str = "auto", name: str = "t.trace"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_trace(path, format)

    return read


@pytest.fixture
def refusal(trace):
    """The message with which a trace file is refused, without its folder."""

    def message(content: str | bytes, format: str = "auto") -> str:
        with pytest.raises(InputError) as caught:
            trace(content, format)
        return str(caught.value).split("/")[-1] if "/t.trace" in str(caught.value) else str(caught.value)

    return message


EXAMPLES = {
    "native": NATIVE,
    "azure": AZURE,
    "burstgpt": BURSTGPT,
    "mooncake": jsonl(MOONCAKE),
    "bailian": jsonl(BAILIAN),
    "marconi": "num_input_tokens,num_output_tokens\n3,4\n",
    "vllm_bench": json.dumps(VLLM_BENCH),
    "sharegpt": json.dumps(SHAREGPT),
}


def test_every_format_has_an_example():
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_header_tells_the_format_whatever_the_file_is_called(name, trace):
    assert trace(EXAMPLES[name]).format == name
    assert trace(EXAMPLES[name], name).requests.equals(trace(EXAMPLES[name]).requests)


@pytest.mark.parametrize("name", EXAMPLES)
def test_gzip_and_byte_order_mark_and_windows_lines_make_no_difference(name, trace):
    plain = trace(EXAMPLES[name])
    text = EXAMPLES[name]
    for variant in (
        gzip.compress(text.encode()),
        b"\xef\xbb\xbf" + text.encode(),
        text.replace("\n", "\r\n"),
    ):
        assert trace(variant).requests.equals(plain.requests)


def test_native_jsonl_reads_numbers_of_either_kind_and_missing_keys(trace):
    records = [
        {"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 1},
        {
            "arrival_s": 0.5,
            "prompt_tokens": 17.0,
            "output_tokens": 1,
            "block_hashes": [2**64 - 1, 3],
            "block_tokens": 16,
        },
    ]
    requests = trace(jsonl(records)).requests
    assert requests["arrival_s"].to_list() == [0.0, 0.5]
    assert requests["block_hashes"].to_list() == [None, [2**64 - 1, 3]]
    assert trace(json.dumps(records)).requests.equals(requests)
    assert trace(json.dumps(records, indent=2)).requests.equals(requests)


def test_native_csv_takes_hashes_as_json_text(trace):
    text = 'arrival_s,prompt_tokens,output_tokens,block_hashes,block_tokens\n0,17,1,"[1, 2]",16\n1,5,1,,\n'
    assert trace(text).requests["block_hashes"].to_list() == [[1, 2], None]


full_rows = st.fixed_dictionaries(
    {
        "arrival_s": st.floats(0, 1e9, allow_subnormal=False),
        "prompt_tokens": st.integers(1, 2**40),
        "output_tokens": st.integers(1, 10**6),
        "session_id": st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
        "think_s": st.one_of(st.none(), st.floats(0, 1e6)),
        "priority": st.one_of(st.none(), st.integers(-(2**62), 2**62)),
        "hash": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    }
)


@settings(deadline=None)
@given(rows=st.lists(full_rows, min_size=1, max_size=8), suffix=st.sampled_from(["parquet", "jsonl"]))
def test_a_written_trace_reads_back_exactly(tmp_path_factory, rows, suffix):
    frame = pl.DataFrame(
        {
            "arrival_s": pl.Series([row["arrival_s"] for row in rows], dtype=pl.Float64),
            "prompt_tokens": [row["prompt_tokens"] for row in rows],
            "output_tokens": [row["output_tokens"] for row in rows],
            "block_hashes": pl.Series([row["hash"] if row["hash"] is None else [row["hash"]] for row in rows],
                                      dtype=pl.List(pl.UInt64)),
            "block_tokens": pl.Series([2**40] * len(rows)),
            "session_id": pl.Series([row["session_id"] for row in rows], dtype=pl.String),
            "parent": pl.Series([None, *range(len(rows) - 1)], dtype=pl.Int64),
            "think_s": pl.Series([row["think_s"] for row in rows], dtype=pl.Float64),
            "priority": pl.Series([row["priority"] for row in rows], dtype=pl.Int64),
        }
    )  # fmt: skip
    workload = make_workload(frame, source="t", format="test")
    path = tmp_path_factory.mktemp("traces") / f"t.{suffix}"
    write_trace(workload, path)
    again = read_trace(path)
    assert again.requests.equals(workload.requests)
    assert again.requests.schema == workload.requests.schema
    assert (again.format, again.counts) == ("native", {})


def test_writing_refuses_other_suffixes_and_places_that_are_not_there(trace, tmp_path):
    workload = trace(NATIVE)
    with pytest.raises(InputError, match=r"expected \.parquet or \.jsonl"):
        write_trace(workload, tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="cannot write the trace: No such file or directory"):
        write_trace(workload, tmp_path / "nowhere" / "t.jsonl")


def test_azure_2023_times_are_exact_to_100_nanoseconds(trace):
    requests = trace(AZURE).requests
    assert requests["arrival_s"].to_list() == [0.0, 4.3145791]
    assert requests["prompt_tokens"].to_list() == [374, 396]
    assert requests["output_tokens"].to_list() == [44, 109]


def test_azure_2024_times_have_zones_and_fewer_digits(trace):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,10,5\n2024-05-16T23:59:59.5Z,10,5\n2024-05-17 02:00:00+02:00,10,5\n"
    )
    assert trace(text).requests["arrival_s"].to_list() == [0.0, 0.99007, 604799.49007, 604799.99007]


def test_azure_requests_out_of_order_count_from_the_earliest(trace):
    text = AZURE + "2023-11-16 18:15:46.0000000,9,9\n"
    workload = trace(text)
    assert workload.requests["arrival_s"].to_list() == [0.0, 0.68059, 4.9951691]
    assert workload.counts == {"sorted_rows": 1}


def test_azure_renamed_columns_are_azure_too(trace):
    workload = trace("arrival_s,input_tokens,output_tokens\n0.0,374,44\n4.3,396,109\n")
    assert workload.format == "azure"
    assert workload.requests["prompt_tokens"].to_list() == [374, 396]


def test_burstgpt_is_read_by_name_and_failed_requests_are_counted(trace):
    workload = trace(BURSTGPT)
    assert workload.counts == {"dropped_zero_output_tokens": 1}
    assert workload.requests.to_dict(as_series=False) == {
        "arrival_s": [5.0, 118.0],
        "prompt_tokens": [472, 417],
        "output_tokens": [18, 276],
        "session_id": ["a", "a"],
        "model": ["ChatGPT", "GPT-4"],
    }
    first_version = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,4,8,12,API log\n"
    )
    assert trace(first_version).requests.row(0) == (5.0, 4, 8, "GPT-4")


def test_mooncake_has_milliseconds_and_512_token_hashes_of_64_bits(trace):
    requests = trace(jsonl(MOONCAKE)).requests
    assert requests["arrival_s"].to_list() == [0.0, 3.001]
    assert requests["block_hashes"].to_list() == [[0, 1, 2**64 - 1], [0]]
    assert requests["block_tokens"].to_list() == [512, 512]


def test_a_key_in_some_lines_only_and_a_name_with_wildcards(tmp_path):
    """Read from the disk by polars, which drops unknown keys and expands patterns."""
    lines = [{key: value for key, value in record.items() if key != "hash_ids"} for record in MOONCAKE]
    path = tmp_path / "t[1].jsonl"
    (tmp_path / "t1.jsonl").write_text(jsonl(lines[:1]))
    path.write_text(jsonl(lines))
    assert len(read_trace(path).requests) == len(lines)
    path.write_text(jsonl([*lines[:-1], {**lines[-1], "other": 1}]))
    assert read_trace(path).unread_columns == ("other",)


def test_mooncake_lines_without_hashes_have_none(trace):
    records = [{key: value for key, value in record.items() if key != "hash_ids"} for record in MOONCAKE]
    assert trace(jsonl(records)).requests.columns == ["arrival_s", "prompt_tokens", "output_tokens"]


def test_bailian_turns_become_parents_and_sessions(trace):
    workload = trace(jsonl(BAILIAN))
    requests = workload.requests
    assert requests["parent"].to_list() == [None, 0, None, 1]
    assert requests["session_id"].to_list() == ["7", "7", "55", "7"]
    assert requests["block_tokens"].unique().to_list() == [16]
    assert requests["arrival_s"].to_list() == [61.114, 70.0, 71.5, 80.0]
    assert workload.counts == {"parents_not_in_trace": 1}


def test_marconi_without_times_arrives_at_once_and_says_so(trace):
    workload = trace("num_input_tokens,num_output_tokens\n3,4\n5,6\n")
    assert workload.requests.rows() == [(0.0, 3, 4), (0.0, 5, 6)]
    assert workload.counts == {"no_timestamps": 2}


def test_marconi_tokens_become_chained_hashes_of_16_token_blocks(trace):
    first, second = list(range(20)), [*range(16), 99]
    other = [1, *range(1, 20)]
    lines = [f'{len(t)},1,s,{i},{i},"{t}"\n' for i, t in enumerate([first, second, other])]
    text = "num_input_tokens,num_output_tokens,session_id,turn_id,ts,input_tokens\n" + "".join(lines)
    hashes = trace(text).requests["block_hashes"].to_list()
    assert [len(h) for h in hashes] == [2, 2, 2]
    assert hashes[0][0] == hashes[1][0] != hashes[2][0]
    assert len({hashes[0][1], hashes[1][1], hashes[2][1]}) == 3
    block = b"".join(token.to_bytes(8, "little") for token in range(16))
    head = blake2b(block, digest_size=8).digest()
    tail = blake2b(
        head + b"".join(token.to_bytes(8, "little") for token in range(16, 20)), digest_size=8
    ).digest()
    assert hashes[0] == [int.from_bytes(head, "little"), int.from_bytes(tail, "little")]


def test_marconi_turns_are_chained_where_the_prompt_can_hold_the_last_turn(trace):
    text = (
        "num_input_tokens,num_output_tokens,session_id,turn_id,ts\n"
        "10,5,a,0,0.0\n15,5,a,1,5.0\n8,1,b,0,1.0\n19,1,a,2,9.0\n"
    )
    requests = trace(text).requests
    assert requests["session_id"].to_list() == ["a", "b", "a", "a"]
    assert requests["parent"].to_list() == [None, None, 0, None]


def test_marconi_turns_without_times_follow_each_other_at_once(trace):
    rows = "session_id,turn_id,num_input_tokens,num_output_tokens\ns,0,10,5\ns,1,20,5\n"
    requests = trace(rows).requests
    assert requests["parent"].to_list() == [None, 0]
    assert requests["think_s"].to_list() == [None, 0.0]


def test_marconi_parquet_reads_like_its_csv(trace, tmp_path):
    frame = pl.DataFrame(
        {
            "num_input_tokens": [3, 4],
            "num_output_tokens": [1, 2],
            "input_tokens": ["[1, 2, 3]", "[1, 2, 3, 4]"],
            "output_tokens": ["[9]", "[9, 9]"],
            "session_id": [1, 1],
            "turn_id": [0, 1],
            "ts": [0.0, 2.5],
        }
    )
    frame.write_parquet(tmp_path / "m.parquet")
    frame.write_csv(tmp_path / "m.csv")
    workload = read_trace(tmp_path / "m.parquet")
    assert workload.format == "marconi"
    assert workload.requests.equals(read_trace(tmp_path / "m.csv").requests)
    lists = frame.with_columns(pl.Series("input_tokens", [[1, 2, 3], [1, 2, 3, 4]]))
    lists.write_parquet(tmp_path / "lists.parquet")
    assert workload.requests.equals(read_trace(tmp_path / "lists.parquet").requests)


def test_vllm_bench_drops_failed_requests_and_starts_at_zero(trace):
    workload = trace(json.dumps(VLLM_BENCH))
    assert workload.requests.rows() == [(0.0, 100, 10), (1.5, 300, 30)]
    assert workload.counts == {"dropped_failed_requests": 1}


def test_sharegpt_prompts_hold_all_that_was_said_before(trace):
    workload = trace(json.dumps(SHAREGPT))
    assert workload.counts == {"no_timestamps": 3}
    rows = workload.requests.select("prompt_tokens", "output_tokens", "session_id", "parent").rows()
    assert rows == [(5, 7, "x", None), (15, 2, "x", 0), (40, 6, "y", None)]


def with_field(record: dict[str, Any], **changes) -> str:
    return jsonl([MOONCAKE[0], {**record, **changes}])


NATIVE_HEADER = "arrival_s,prompt_tokens,output_tokens\n"
NATIVE_LINE = '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.trace: the trace is empty"),
        (" \n\n", "t.trace: the trace is empty"),
        (gzip.compress(b"", mtime=0), "t.trace: the trace is empty"),
        (b"\x1f\x8bxx", "t.trace: not valid gzip"),
        (gzip.compress(NATIVE.encode(), mtime=0)[:-6], "t.trace: not valid gzip"),
        (b"\x7fELF\x00\x01", "t.trace: a binary file; expected CSV, JSON, JSON lines or Parquet"),
        (b"PAR1 and no more", "t.trace: not valid Parquet"),
        (NATIVE.encode() + b"2,3,\xff\n", "t.trace, line 4: not UTF-8 text"),
        (b"arrival_s\xff,b\n", "t.trace, line 1: not UTF-8 text"),
        (NATIVE_HEADER, "t.trace: no request"),
        (NATIVE_HEADER + "0,10,0\n", "t.trace: no request left"),
        (NATIVE + "2,3,4,5\n", "t.trace, line 4: 4 fields; expected 3"),
        (NATIVE_HEADER + "2,3,4,5\n", "t.trace, line 2: 4 fields; expected 3"),
        (NATIVE + "2,3\n", "t.trace, row 3 (line 4), column 'output_tokens': no value"),
        (
            NATIVE + "\n\n2,x,4\n",
            "t.trace, row 3 (line 6), column 'prompt_tokens': not a whole number (got 'x')",
        ),
        (NATIVE + ",,\n", "t.trace, row 3 (line 4), column 'arrival_s': no value"),
        (
            NATIVE + "nan,3,4\n",
            "t.trace, row 3 (line 4), column 'arrival_s': not a finite number (got 'nan')",
        ),
        (NATIVE + "-2,3,4\n", "t.trace, row 3 (line 4), column 'arrival_s': negative value (got '-2')"),
        ("arrival_s,prompt_tokens,prompt_tokens\n1,2,3\n", "line 1: two columns are called 'prompt_tokens'"),
        ("arrival_s,promt_tokens,output_tokens\n1,2,3\n", "missing column 'prompt_tokens' of native"),
        ("arrival_s,promt_tokens,output_tokens\n1,2,3\n", "did you mean promt_tokens?"),
        ("arrival_s,prompt_tokens\n1,2\n", "missing column 'output_tokens' of native"),
        (
            "arrival_s,prompt_tokens,output_tokens,sesion_id\n1,2,3,a\n",
            "unknown column 'sesion_id'; expected arrival_s, prompt_tokens, output_tokens",
        ),
        ("a,b\n1,2\n", "no trace format has these columns (columns found: 'a', 'b'); expected native: "),
        ("TIMESTAMP,ContextTokens\n", "missing column 'GeneratedTokens' of azure"),
        (AZURE + "yesterday,1,2\n", "row 3 (line 4), column 'TIMESTAMP': not a time (got 'yesterday')"),
        (AZURE + ",1,2\n", "row 3 (line 4), column 'TIMESTAMP': no value"),
        (
            AZURE + "2023-11-16 18:15:46,-1,2\n",
            "row 3 (line 4), column 'ContextTokens': negative value (got '-1')",
        ),
        (AZURE.split("\n")[0] + "\n", "t.trace: no request"),
        (
            BURSTGPT + "9,,,,x,1,1,l\n",
            "row 4 (line 5), column 'Request tokens': not a whole number (got 'x')",
        ),
        (NATIVE_LINE + "nonsense\n", "t.trace, line 2: not valid JSON"),
        (NATIVE_LINE + "\n[1]\n", "t.trace, line 3: not a JSON object (got '[1]')"),
        (
            NATIVE_LINE + NATIVE_LINE.strip() + "," + NATIVE_LINE,
            "t.trace, line 2: not valid JSON: Extra data",
        ),
        (NATIVE_LINE + NATIVE_LINE.replace("}", ', "x": 1}'), "t.trace: unknown column 'x'"),
        ('{"arrival_s": 0,\n "prompt_tokens": }', "t.trace, line 2: not valid JSON"),
        ("[]", "t.trace: not a JSON object"),
        ("[1, 2]", "t.trace: not a JSON object"),
        (
            with_field(MOONCAKE[1], timestamp=-5),
            "row 2 (line 2), column 'timestamp': negative value (got -5.0)",
        ),
        (
            with_field(MOONCAKE[1], timestamp="noon"),
            "row 2 (line 2), column 'timestamp': value of an unexpected kind",
        ),
        (
            with_field(MOONCAKE[1], timestamp=float("nan")),
            "column 'timestamp': not a finite number (got nan)",
        ),
        (with_field(MOONCAKE[1], timestamp=None), "row 2 (line 2), column 'timestamp': no value"),
        (
            with_field(MOONCAKE[1], input_length=True),
            "row 2 (line 2), column 'input_length': value of an unexpected",
        ),
        (
            with_field(MOONCAKE[1], input_length=512.5),
            "column 'input_length': not a whole number (got 512.5)",
        ),
        (with_field(MOONCAKE[1], input_length=10**30), "column 'input_length': value not understood"),
        (
            with_field(MOONCAKE[1], hash_ids=[0, 1]),
            "row 2 (line 2), column 'block_hashes': 2 block hashes for a",
        ),
        (
            with_field(MOONCAKE[1], hash_ids=[2**64]),
            "row 2 (line 2), column 'hash_ids': value not understood",
        ),
        (with_field(MOONCAKE[1], hash_ids=[-1]), "row 2 (line 2), column 'hash_ids': value not understood"),
        (
            with_field(MOONCAKE[1], hash_ids=5),
            "row 2 (line 2), column 'hash_ids': value of an unexpected kind",
        ),
        (
            jsonl([*BAILIAN, BAILIAN[0]]),
            "row 5 (line 5), column 'chat_id': this chat was in an earlier row (got 7)",
        ),
        (jsonl([{**BAILIAN[0], "parent_chat_id": 7}]), "column 'parent': the request is its own ancestor"),
        (
            'num_input_tokens,num_output_tokens,input_tokens\n3,1,"[1, 2]"\n',
            "row 1 (line 2), column 'num_input_tokens'",
        ),
        (
            "num_input_tokens,num_output_tokens,input_tokens\n1,1,[1]\n1,1,[\n",
            "row 2 (line 3), column 'input_tokens'",
        ),
        (
            json.dumps({**VLLM_BENCH, "start_times": [1.0]}),
            "'start_times' and 'input_lens' differ in length (1 against 3)",
        ),
        (json.dumps({**VLLM_BENCH, "output_lens": 3}), "'output_lens' is no array"),
        (json.dumps({**VLLM_BENCH, "start_times": [1, 2, None]}), "row 3, column 'start_times': no value"),
        (jsonl([VLLM_BENCH, VLLM_BENCH]), "several results in one file"),
        (
            json.dumps([{"id": "x", "conversations": [{"from": "human", "value": "hello"}]}]),
            "entry 1, turn 1: ShareGPT text has no token counts; expected counts from your model's tokenizer",
        ),
        (
            json.dumps([{"conversations": [{"from": "gpt", "tokens": -1}]}]),
            "entry 1, turn 1: not a token count (got -1)",
        ),
        (json.dumps([{"conversations": 4}]), "entry 1: 'conversations' is no list"),
        (
            json.dumps([{"conversations": [], "prompt_tokens": "x", "output_tokens": 1}]),
            "entry 1, 'prompt_tokens': not",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_place(content, message, refusal):
    assert message in refusal(content)


def test_an_unknown_format_offers_the_nearest(refusal):
    assert "unknown trace format 'moonkake'" in refusal(NATIVE, "moonkake")
    assert refusal(NATIVE, "moonkake").endswith("did you mean mooncake?")


def test_a_named_format_says_what_the_file_lacks(refusal):
    message = refusal(NATIVE, "azure")
    assert "missing column 'input_tokens' of azure" in message
    assert "no trace format has these columns" in refusal(NATIVE, "sharegpt")


def test_a_file_of_two_formats_must_be_named(trace, refusal):
    both = "arrival_s,input_tokens,prompt_tokens,output_tokens\n0,1,2,3\n"
    assert "could be native or azure; expected a format by name" in refusal(both)
    assert trace(both, "azure").requests["prompt_tokens"].to_list() == [1]


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot read the trace: No such file or directory"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot read the trace: Is a directory"):
        read_trace(tmp_path)


def test_a_damaged_parquet_file_is_read_or_refused_but_never_a_traceback(tmp_path, capfd):
    path = tmp_path / "t.parquet"
    frame = pl.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [1, 2]})
    frame.write_parquet(path)
    data = path.read_bytes()
    refused = 0
    for position in range(4, len(data), 9):
        path.write_bytes(data[:position] + b"\x01" + data[position + 1 :])
        try:
            read_trace(path)
        except InputError:
            refused += 1
    assert refused > 0
    capfd.readouterr()  # polars' own panic messages


def test_blank_lines_are_no_requests(trace):
    assert len(trace(NATIVE.replace("\n", "\n\n")).requests) == 2
    assert len(trace(jsonl(MOONCAKE).replace("\n", "\n\n")).requests) == 2


def test_the_line_is_named_beyond_the_first_chunk_of_a_long_file(trace, refusal):
    lines = NATIVE_LINE * 70000
    assert len(trace(lines).requests) == 70000
    bad = lines + NATIVE_LINE.replace('"output_tokens": 1', '"output_tokens": -1')
    assert "row 70001 (line 70001), column 'output_tokens': negative value (got -1)" in refusal(bad)


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("azure_2023/conv.csv", "azure", 19366),
        ("azure_2023/code.csv", "azure", 8819),
        ("mooncake/conversation_trace.jsonl", "mooncake", 12031),
    ],
)
def test_public_traces_read_whole(name, format, count):
    if not (DATA / name).exists():
        pytest.skip(f"{name} of the shared data is not here")
    workload = read_trace(DATA / name)
    assert (workload.format, len(workload.requests), workload.counts) == (format, count, {})


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_milliseconds_become_the_nearest_double_of_their_decimal_seconds(tmp_path_factory, stamps_ms):
    records = [{"timestamp": stamp, "input_length": 1, "output_length": 1} for stamp in sorted(stamps_ms)]
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    path.write_text(jsonl(records))
    expected = [float(f"{stamp // 1000}.{stamp % 1000:03}") for stamp in sorted(stamps_ms)]
    assert read_trace(path).requests["arrival_s"].to_list() == expected


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(EXAMPLES)),
    cut=st.tuples(st.integers(0, 400), st.integers(0, 30)),
    insert=st.one_of(
        st.binary(max_size=6), st.sampled_from([b",", b"\n", b'"', b"-1", b"[", b"{}", b"null", b"1e999"])
    ),
)
def test_a_damaged_file_is_read_or_refused_but_never_a_traceback(tmp_path_factory, name, cut, insert):
    text, (start, length) = EXAMPLES[name].encode(), cut
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(text[:start] + insert + text[start + length :])
    with contextlib.suppress(InputError):
        assert len(read_trace(path).requests) > 0
