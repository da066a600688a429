"""`kavier validate`: measured runs, case files, and what is compared."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import kavier as package
from kavier.errors import InputError
from kavier.metrics.client import CLIENT_CONSTANTS, client_time_s, streamed_tokens_per_s
from kavier.scenario import parse_scenario
from kavier.validation.ablation import VARIANTS, ablate
from kavier.validation.case import NamedCase, read_cases
from kavier.validation.closed_loop import ClosedLoop
from kavier.validation.compare import Metrics, errors_over, summary
from kavier.validation.measured import LEAST_REQUESTS, Measured, read_measured
from kavier.validation.validate import validate_case
from tests.command_line import LLAMA, kavier

ROOT = Path(__file__).parents[1]
CASES = ROOT / "validation" / "cases"
DATA = Path(__file__).parents[2] / "shared" / "data"
HEADER = "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s"
GOOD = [f"{i},{100 + i},{10 + i},0.05,{0.3 + i / 100}" for i in range(8)]


def load(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the measured runs in ../shared/data")


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "measured.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def validated(*arguments: str | Path) -> Any:
    ended = kavier("validate", *arguments, "--json")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def simulated(folder: Path, **changes: object) -> Path:
    """The requests table of a run, as a measured file."""
    tree = {
        "model": LLAMA[1],
        "fleet": {"gpu": "H100", "replicas": 2},
        "workload": {"synthetic": {"preset": "azure-conversation", "num_prompts": 300,
                                   "arrivals": {"request_rate": 20}}},
    } | changes  # fmt: skip
    path = folder / "requests.parquet"
    package.simulate(tree).requests.write_parquet(path)
    return path


# What comes out of a simulation is simulated without error.


@pytest.mark.parametrize("client", ["engine", "http"])
def test_a_simulated_run_is_reproduced_exactly(tmp_path, client):
    path = simulated(tmp_path, client=client)
    found = validated("--measured", path, *LLAMA, "--replicas", "2", "--client", client)
    (case,) = found["cases"]
    assert case["requests"] == 300
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        for pair in case["metrics"][metric].values():
            assert pair["simulated"] == pytest.approx(pair["measured"], rel=1e-12)
            assert pair["error"] == pytest.approx(0, abs=1e-12)
        assert case["per_request_median_error"][metric] <= 1e-12


def test_another_machine_is_not_the_same(tmp_path):
    path = simulated(tmp_path)
    (case,) = validated("--measured", path, "--model", LLAMA[1], "--gpu", "A100", "--replicas", "2")["cases"]
    assert case["metrics"]["tpot_s"]["mean"]["error"] > 0.2


def test_json_has_the_shape_of_the_specification(tmp_path):
    found = validated("--measured", table(tmp_path, *GOOD), *LLAMA)
    assert found.keys() == {"cases", "summary"}
    (case,) = found["cases"]
    assert {"case", "level", "metrics", "overloaded"} <= case.keys()
    assert case["level"] == "kernels"
    assert case["overloaded"] is False
    assert case["metrics"].keys() == {"ttft_s", "tpot_s", "e2e_s"}
    for points in case["metrics"].values():
        assert points.keys() == {"mean", "p50", "p90", "p99"}
        for pair in points.values():
            assert pair.keys() == {"measured", "simulated", "error"}
            error = (pair["simulated"] - pair["measured"]) / pair["measured"]
            assert pair["error"] == pytest.approx(error, rel=1e-12)
    assert case["metrics"]["ttft_s"]["mean"]["measured"] == pytest.approx(0.05)
    tpot_s = np.mean([(0.3 + i / 100 - 0.05) / (9 + i) for i in range(8)])
    assert case["metrics"]["tpot_s"]["mean"]["measured"] == pytest.approx(tpot_s)


def test_rows_may_come_in_any_order_and_container(tmp_path):
    frame = pl.read_csv(table(tmp_path, *GOOD))
    first = validated("--measured", table(tmp_path, *GOOD), *LLAMA)["cases"][0]["metrics"]
    for path, write in ((tmp_path / "t.parquet", "write_parquet"), (tmp_path / "t.jsonl", "write_ndjson")):
        getattr(frame.reverse(), write)(path)
        assert validated("--measured", path, *LLAMA)["cases"][0]["metrics"] == first


def test_the_page_shows_both_sides_and_the_summary(tmp_path):
    ended = kavier("validate", "--measured", table(tmp_path, *GOOD), *LLAMA)
    assert ended.status == 0
    assert not ended.err
    for word in ("measured", "simulated", "error", "median of requests", "Absolute error over 1 case"):
        assert word in ended.out


# Bad input


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2,100,10,0.5,0.4", "row 9 (line 10), column 'e2e_s': e2e_s = 0.4 is below ttft_s = 0.5"),
        ("2,100,10,-0.5,0.4", "row 9 (line 10), column 'ttft_s': negative value (got -0.5)"),
        ("2,100,10,,0.4", "row 9 (line 10), column 'ttft_s': no time (empty)"),
        ("2,100,10,nan,0.4", "row 9 (line 10), column 'ttft_s': no time (nan)"),
        ("2,100,10,0.1,", "row 9 (line 10), column 'e2e_s': no time (empty)"),
        ("2,100,10,0,0.4", "row 9 (line 10), column 'ttft_s': no time (0.0)"),
        ("2,100,10,0.1,inf", "row 9 (line 10), column 'e2e_s': not a finite number"),
        ("2,100,10,fast,1", "row 9 (line 10), column 'ttft_s': not a number"),
        ("2,100,1,0.03,0.5", "row 9 (line 10), column 'e2e_s': e2e_s = 0.5 is long after ttft_s = 0.03"),
        ("2,100,0,0.1,0.4", "row 9 (line 10), column 'output_tokens': 0 tokens of a request"),
        ("2,0,10,0.1,0.4", "row 9 (line 10), column 'prompt_tokens': 0 tokens"),
        ("2,100,1.5,0.1,0.4", "row 9 (line 10), column 'output_tokens': not a whole number"),
        (",100,10,0.1,0.4", "row 9 (line 10), column 'arrival_s': no value"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, problem):
    path = table(tmp_path, *GOOD, row)
    assert f"{path}, {problem}" in kavier("validate", "--measured", path, *LLAMA).error


def test_prompts_alone_have_no_time_per_token(tmp_path):
    rows = [f"{i},{100 + i},1,0.05,0.05" for i in range(8)]
    (case,) = validated("--measured", table(tmp_path, *rows), *LLAMA)["cases"]
    assert case["metrics"]["tpot_s"]["mean"] == {"measured": None, "simulated": None, "error": None}
    assert "tpot_s" not in case["per_request_median_error"]
    assert not case["overloaded"], "all of their lives is prefill, not waiting"


def test_a_failure_that_is_marked_needs_no_times(tmp_path):
    rows = [*(f"{row},false" for row in GOOD), "3,100,10,,,true", "4,0,0,nan,12.5,TRUE"]
    path = table(tmp_path, *rows, header=f"{HEADER},failed")
    (case,) = validated("--measured", path, *LLAMA)["cases"]
    assert case["requests"] == 8
    assert {
        "2 measured requests failed, and are left out",
        "1 of them were not simulated: their lengths are not known",
    } <= set(case["notes"])
    assert case["overloaded"], "a fifth of them failed"


def test_the_reason_for_overload_is_told_and_counts_beyond_the_skipped(tmp_path):
    lost = "0,100,10,,,true", "0,0,0,,,true"
    path = table(tmp_path, *lost, *(f"{row},false" for row in GOOD), header=f"{HEADER},failed")
    (case,) = validated("--measured", path, *LLAMA)["cases"]
    assert "overloaded: 2 of 10 failed, more than 1 %" in case["notes"]
    assert "2 of 10 failed, more than 1 %" in kavier("validate", "--measured", path, *LLAMA).out
    error = kavier("calibrate", "--measured", path, *LLAMA).error
    assert "measured.csv: overloaded: 2 of 10 failed, more than 1 %" in error
    (case,) = validated("--measured", path, *LLAMA, "--skip-first", "1")["cases"]
    assert not case["overloaded"]
    assert not any("failed" in note for note in case["notes"])


def test_an_answer_of_one_token_may_end_a_little_after_it(tmp_path):
    rows = [*(f"{i},100,1,0.03,0.08" for i in range(3)), *(f"{i},100,1,2.0,2.1" for i in range(4))]
    (case,) = validated("--measured", table(tmp_path, *rows), *LLAMA)["cases"]
    assert case["requests"] == 7


def test_milliseconds_are_told(tmp_path):
    rows = [f"{i},100,10,36.7,{200 + i}" for i in range(8)]
    path = table(tmp_path, *rows)
    (case,) = validated("--measured", path, *LLAMA)["cases"]
    (hint,) = [note for note in case["notes"] if "milliseconds" in note]
    assert hint.startswith("the median ttft_s is 36.7 as measured and 0.0")
    assert "not milliseconds?" in kavier("calibrate", "--measured", path, *LLAMA).error
    (case,) = validated("--measured", table(tmp_path, *GOOD), *LLAMA)["cases"]
    assert not any("milliseconds" in note for note in case["notes"])


def test_failed_as_json_lines_have_it(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [
        {"arrival_s": i, "prompt_tokens": 10, "output_tokens": 5, "ttft_s": 0.1 if i else None, "e2e_s": 0.5,
         "failed": i == 0}
        for i in range(7)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validated("--measured", path, *LLAMA)["cases"][0]["requests"] == 6
    path.write_text("".join(json.dumps(row | {"failed": "perhaps"}) + "\n" for row in rows))
    assert (
        "row 1 (line 1), column 'failed': not true or false"
        in kavier("validate", "--measured", path, *LLAMA).error
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{HEADER}\n{GOOD[0]}\n", "too short to say anything (got '1 requests that did not fail')"),
        ("arrival_s,prompt_tokens,output_tokens,ttft,e2e_s\n1,2,3,4,5\n", "missing column 'ttft_s'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\n", "missing column 'ttft_s' of a measured run"),
        (HEADER + "\n" + "1,100,10,0.5,0.5\n" * LEAST_REQUESTS, "the answers were not streamed"),
        ("", "the trace is empty"),
    ],
)
def test_a_table_that_does_not_do(tmp_path, text, problem):
    path = tmp_path / "m.csv"
    path.write_text(text)
    assert problem in kavier("validate", "--measured", path, *LLAMA).error


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no measured run; expected case files, or --measured FILE"),
        (("nowhere.yaml",), "nowhere.yaml: cannot read the case file"),
        (("good.csv",), "a table is no case file (YAML): good.csv; expected --measured good.csv"),
        (("case.yaml", "--max-num-seqs", "3"), "--max-num-seqs describes the run of --measured FILE"),
        (("case.yaml", "--skip-first", "3"), "--skip-first describes the run of --measured FILE"),
        (("--measured", "good.csv"), "no model; expected --model NAME"),
        (("--measured", "good.csv", *LLAMA, "--level", "quantum"), "timing: bad value (got 'quantum')"),
        (("--measured", "good.csv", *LLAMA, "--client", "grpc"), "client: bad value (got 'grpc')"),
        (
            ("--measured", "good.csv", *LLAMA, "--skip-first", "4"),
            "'4 requests that did not fail, beyond the first 4'",
        ),
        (("--measured", "away.csv", *LLAMA), "away.csv: cannot read the trace: No such file"),
    ],
)
def test_a_command_that_does_not_do(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text("\n".join([HEADER, *GOOD]))
    (tmp_path / "case.yaml").write_text(CASE)
    assert problem in kavier("validate", *arguments).error


# Case files

CASE = f"""
scenario:
  model: {LLAMA[1]}
  fleet: {{ gpu: H100 }}
measured: {{ file: good.csv }}
"""


def case_file(folder: Path, text: str) -> Path:
    (folder / "good.csv").write_text("\n".join([HEADER, *GOOD]))
    path = folder / "case.yaml"
    path.write_text(text)
    return path


def test_a_case_file_and_flags_say_the_same(tmp_path):
    path = case_file(tmp_path, CASE.replace("scenario:", "scenario:\n  client: http"))
    by_case = validated(path)["cases"][0]
    by_flags = validated("--measured", tmp_path / "good.csv", *LLAMA)["cases"][0]
    assert by_case["metrics"] == by_flags["metrics"]
    assert by_case["case"] == "case"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1\n", "case.yaml: the case file is not a mapping"),
        ("scenario: {}\n", "case.yaml: the scenario: give either measured requests or aggregates"),
        (CASE + "skip: 3\n", "unknown key 'skip'"),
        (CASE + "aggregates: { ttft_s: { mean: 0.1 } }\n", "give either measured requests or aggregates"),
        (CASE + "closed_loop: { concurrency: 2, input_len: 1, output_len: 1 }\n", "closed_loop is a"),
        (CASE.replace("good", "bad"), "the measured data are not there; expected --data DIR"),
        (CASE.replace("H100", "H1000"), "unknown GPU 'H1000'"),
        (CASE.replace("file:", "columns: { ttft: a }, file:"), "columns: unknown quantity 'ttft'"),
        (CASE.replace("file:", "columns: { ttft_s: a }, file:"), "no column 'a'"),
        (CASE.replace("file:", "where: { gpu: X }, file:"), "no column 'gpu'"),
        (CASE.replace("file:", "where: { prompt_tokens: 7 }, file:"), "no row whose prompt_tokens is 7"),
        (CASE.replace("file:", "where: { prompt_tokens: 100, output_tokens: 11 }, file:"), "no row is all"),
        (CASE.replace("file:", "columns: { ttft_s: { column: e2e_s, pattern: 'x' } }, file:"), "one group"),
        (CASE.replace("file:", "columns: { ttft_s: { column: e2e_s, pattern: '(x)' } }, file:"), "no number"),
    ],
)  # fmt: skip
def test_a_case_file_that_does_not_do(tmp_path, text, problem):
    assert problem in kavier("validate", case_file(tmp_path, text)).error


def test_cases_of_a_file_share_what_they_do_not_say(tmp_path):
    text = CASE + "cases:\n  a: {}\n  b: { scenario: { engine: { max_num_seqs: 1 } }, warmup_requests: 2 }\n"
    a, b = read_cases(case_file(tmp_path, text))
    assert (a.name, b.name) == ("a", "b")
    assert a.scenario.engine.max_num_seqs is None
    assert b.scenario.engine.max_num_seqs == 1
    assert validate_case(b).requests == 6
    assert any("the first 2 requests" in note for note in validate_case(b).notes)


def test_columns_are_found_scaled_read_out_of_text_and_filled(tmp_path):
    rows = ["a,0,len=20,7,50,300,x", "b,1,len=30,0,50,300,x", "c,2,len=40,0,50,300,y"] * 3
    (tmp_path / "m.csv").write_text("\n".join(["id,arrival_s,text,n,ttft_ms,e2e_ms,kind", *rows]))
    section = Measured.model_validate({
        "file": "m.csv",
        "where": {"id": ["a", "b"]},
        "columns": {
            "prompt_tokens": {"column": "text", "pattern": r"len=(\d+)"},
            "output_tokens": {"column": "n", "fill_by": "kind"},
            "ttft_s": {"column": "ttft_ms", "scale": 1e-3},
            "e2e_s": {"column": "e2e_ms", "scale": 1e-3},
        },
    })  # fmt: skip
    run = read_measured(section, tmp_path)
    assert run.workload.requests["prompt_tokens"].to_list() == [20, 20, 20, 30, 30, 30]
    assert run.workload.requests["output_tokens"].to_list() == [7] * 6
    assert run.times["ttft_s"].to_list() == pytest.approx([0.05] * 6)
    words = section.model_copy(update={"where": {"kind": "x"}, "columns": {
        **section.columns, "prompt_tokens": section.columns["output_tokens"].model_copy(
            update={"column": "id", "fill_by": None, "numbers": {"a": 5, "b": 6}})}})  # fmt: skip
    assert set(read_measured(words, tmp_path).workload.requests["prompt_tokens"]) == {5, 6}


def test_equal_prompts_share_their_full_blocks_and_no_others(tmp_path):
    rows = [f"{i},{40 + i % 2},5,0.1,0.5,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "m.csv").write_text("\n".join([f"{HEADER},prompt", *rows]))
    run = read_measured(Measured(file=Path("m.csv"), same_prompt="prompt"), tmp_path)
    hashes = run.workload.requests["block_hashes"].to_list()
    assert [len(one) for one in hashes] == [3] * 6
    assert hashes[0] == hashes[2]
    assert not set(hashes[0]) & set(hashes[1])


def test_hashes_of_another_file_are_joined_and_made_complete(tmp_path):
    rows = [f"{i},{40},5,0.1,0.5,r{i}" for i in range(6)]
    (tmp_path / "m.csv").write_text("\n".join([f"{HEADER},id", *rows]))
    lines = [{"id": f"r{i}", "hash_ids": [7, i]} for i in range(6)]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, lines)))
    section = Measured.model_validate({"file": "m.csv", "hashes": {"file": "h.jsonl", "by": "id"}})
    hashes = read_measured(section, tmp_path).workload.requests["block_hashes"].to_list()
    assert [one[:2] for one in hashes] == [[7, i] for i in range(6)]
    assert len({one[2] for one in hashes} | {7, *range(6)}) == 13
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, lines[1:])))
    with pytest.raises(InputError, match=r"row 1 \(line 2\), column 'id': not in h.jsonl"):
        read_measured(section, tmp_path)


def test_a_row_each_makes_a_case_each(tmp_path):
    (tmp_path / "rows.csv").write_text("tp,in,ms,source\n1,64,9,n=2\n2,64,7,n=3\n2,64,7,n=3\n2,64,8,n=3\n")
    text = f"""
scenario: {{ model: {LLAMA[1]}, fleet: {{ gpu: H100 }} }}
closed_loop: {{ concurrency: 1, input_len: 1, output_len: 20 }}
each_row:
  file: rows.csv
  label: "TP{{tp}} {{in}}"
  set:
    scenario.engine.tensor_parallel_size: tp
    closed_loop.input_len: in
    closed_loop.concurrency: {{ column: source, pattern: 'n=(\\d+)' }}
    aggregates.tpot_s.mean: {{ column: ms, scale: 1.0e-3 }}
"""
    cases = read_cases(case_file(tmp_path, text))
    assert [case.name for case in cases] == ["case TP1 64", "case TP2 64", "case TP2 64 (2)"]
    assert [case.scenario.engine.tensor_parallel_size for case in cases] == [1, 2, 2]
    assert [case.scenario.workload.max_concurrency for case in cases] == [2, 3, 3]
    one = validate_case(cases[0])
    assert one.metrics["tpot_s"].keys() == {"mean"}
    assert one.metrics["tpot_s"]["mean"]["measured"] == pytest.approx(0.009)
    page = kavier("validate", tmp_path / "case.yaml")
    assert "case: 3 cases" in page.out
    (tmp_path / "rows.csv").write_text("tp,in,ms,source\n1,64,9,n=2\n2,64,,n=3\n")
    assert "row 2 (line 3), column 'ms': no number" in kavier("validate", tmp_path / "case.yaml").error


def test_a_label_names_columns(tmp_path):
    text = CASE.replace(
        "measured: { file: good.csv }", "each_row: { file: good.csv, label: '{', set: { note: x } }"
    )
    assert (
        "a label needs names of columns in its braces" in kavier("validate", case_file(tmp_path, text)).error
    )


def test_columns_that_nobody_reads_are_told(tmp_path):
    rows = [f"{row},x,y" for row in GOOD]
    (case,) = validated("--measured", table(tmp_path, *rows, header=f"{HEADER},user,sucess"), *LLAMA)["cases"]
    assert "columns that were not read: user, sucess" in case["notes"]
    assert any("the prefix cache never hits" in note for note in case["notes"])


@pytest.mark.parametrize("length", ["nan", "1.5", "", "-3"])
def test_a_length_that_is_none_is_named_before_blocks_are_made_of_it(tmp_path, length):
    rows = [f"{row},p" for row in GOOD] + [f"9,{length},5,0.1,0.2,p"]
    (tmp_path / "m.csv").write_text("\n".join([f"{HEADER},id", *rows]))
    (tmp_path / "h.jsonl").write_text('{"id": "p", "hash_ids": [1, 2]}')
    for where in ({"same_prompt": "id"}, {"hashes": {"file": "h.jsonl", "by": "id"}}):
        with pytest.raises(InputError, match=r"row 9 \(line 10\), column 'prompt_tokens': "):
            read_measured(Measured.model_validate({"file": "m.csv", **where}), tmp_path)


# Closed loops


def test_a_closed_loop_draws_lengths_and_leaves_out_the_first_of_each_client():
    loop = ClosedLoop(concurrency=4, input_len=1000, output_len=200)
    assert (loop.requests, loop.warmup) == (36, 4)
    tree = {"model": LLAMA[1], "fleet": {"gpu": "H100"}, "workload": loop.workload()}
    requests = package.simulate(tree).requests
    for column, nominal in (("prompt_tokens", 1000), ("output_tokens", 200)):
        assert requests[column].is_between(0.95 * nominal, 1.05 * nominal).all()
        assert requests[column].n_unique() > 8, "no lock step"
    starts, ends = requests["arrival_s"].to_numpy(), requests["finish_s"].to_numpy()
    in_flight = [(starts <= at).sum() - (ends <= at).sum() for at in starts]
    assert max(in_flight) == 4
    assert "lengths drawn uniformly from 0.95 to 1.05" in loop.note()


@pytest.mark.parametrize(
    "wrong", [{"range": (1.0, 0.8)}, {"warmup_requests": 9}, {"concurrency": 0}, {"range": (0.0, 1.0)}]
)
def test_a_closed_loop_that_cannot_be(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own
        ClosedLoop(**({"concurrency": 1, "input_len": 1, "output_len": 1} | wrong))


def test_what_a_closed_loop_cannot_serve_is_told(tmp_path):
    text = f"""
scenario: {{ model: {LLAMA[1]}, fleet: {{ gpu: H100 }}, engine: {{ max_model_len: 1000 }} }}
closed_loop: {{ concurrency: 2, input_len: 1000, output_len: 5, warmup_requests: 3 }}
aggregates: {{ tpot_s: {{ mean: 0.01 }} }}
"""
    (case,) = validated(case_file(tmp_path, text))["cases"]
    assert case["metrics"].keys() == {"tpot_s"}
    assert "the first 3 requests are left out (warm-up)" in case["notes"]
    assert any("simulated requests are rejected, and left out" in note for note in case["notes"])


# Overload, warm-up, clients that give up


def as_case(path: Path, **keys: object) -> NamedCase:
    from kavier.validation.case import Case

    case = Case.model_validate({"scenario": {}, "measured": {"file": path.name}, **keys})
    tree = {"model": LLAMA[1], "fleet": {"gpu": "H100"}, "workload": {"trace": str(path)}}
    return NamedCase("case", "case", case, parse_scenario(tree), path.parent)


def test_waiting_for_half_of_its_life_is_overload_as_measured(tmp_path):
    busy = [f"{i},100,10,{i},{i + 1.5}" for i in range(1, 9)]
    case = as_case(table(tmp_path, *busy))
    reason = validate_case(case).overload or ""
    assert reason.startswith("overloaded: measured requests wait 4.")
    assert reason.endswith("s of 6 s on average, more than 50 %")
    calm = [f"{i},100,10,0.4,1.5" for i in range(1, 9)]
    assert not validate_case(as_case(table(tmp_path, *calm))).overloaded
    assert validate_case(as_case(table(tmp_path, *calm), overloaded=True)).overloaded


def test_overloaded_cases_are_in_no_average_of_the_others(tmp_path):
    calm = [f"{i},100,10,0.4,1.5" for i in range(1, 9)]
    good = validate_case(as_case(table(tmp_path, *calm)))
    bad = validate_case(as_case(table(tmp_path, *calm), overloaded=True))
    groups = summary([good, bad])
    assert [(group["overloaded"], group["cases"]) for group in groups] == [(False, 1), (True, 1)]
    assert groups[0]["metrics"] == errors_over([good])


def test_requests_that_the_client_would_have_given_up_are_left_out(tmp_path):
    path = table(tmp_path, *GOOD)
    limit_s = float(np.median(validate_case(as_case(path)).simulated["e2e_s"].to_numpy()))
    one = validate_case(as_case(path, client_timeout_s=limit_s))
    assert one.requests == 8
    assert len(one.simulated) == 4
    assert (one.simulated["e2e_s"] <= limit_s).all()
    assert any("4 requests that did not fail take longer" in note for note in one.notes)


def test_cases_of_one_name_count_each(tmp_path):
    one = validate_case(as_case(table(tmp_path, *GOOD)))
    other = replace(one, metrics={"ttft_s": {"mean": {"measured": 1.0, "simulated": 4.0, "error": 3.0}}})
    spread = errors_over([one, other])["ttft_s"]["mean"]
    assert spread["cases"] == 2
    assert spread["worst"] == 3


# The client term


def test_a_client_sees_a_constant_up_to_some_rate_and_then_a_line():
    fixed_s = CLIENT_CONSTANTS["fixed_s"]
    assert client_time_s(np.array([0.0, 2500.0])).tolist() == [fixed_s] * 2 == [7e-3] * 2
    assert client_time_s(np.array([5000.0])) == pytest.approx(fixed_s + 5e-3)


def test_streams_are_counted_from_first_token_to_last():
    first, last, tokens = np.array([0.0, 1.0, 3.0]), np.array([2.0, 3.0, 3.0]), np.array([21, 41, 1])
    assert streamed_tokens_per_s(first, last, tokens).tolist() == [10, 30, 0]


def test_http_adds_the_same_to_ttft_and_e2e_and_nothing_to_tpot():
    tree = {
        "model": LLAMA[1],
        "fleet": {"gpu": "H100", "replicas": 2},
        "workload": {"synthetic": {"preset": "azure-conversation", "num_prompts": 50}},
    }
    engine, http = package.simulate(tree), package.simulate({**tree, "client": "http"})
    client_s = http.requests["client_s"].to_numpy()
    assert "client_s" not in engine.requests.columns
    assert (client_s >= 7e-3).all()
    for name, share in (("ttft_s", 1), ("e2e_s", 1), ("tpot_s", 0), ("finish_s", 0)):
        more = http.requests[name].to_numpy() - engine.requests[name].to_numpy()
        np.testing.assert_allclose(np.nan_to_num(more), share * client_s, atol=1e-12)
    mean = [result.summary["ttft_s"]["mean"] for result in (engine, http)]
    assert mean[1] == pytest.approx(mean[0] + client_s.mean())
    notes = [" ".join(result.summary["trust"]["notes"]) for result in (engine, http)]
    assert "latencies are in-engine: an HTTP client sees about 7 ms more" in notes[0]
    assert "TTFT and E2E are an HTTP client's: 7 ms a request" in notes[1]


def test_what_is_rejected_has_no_client():
    tree = {
        "model": LLAMA[1], "fleet": {"gpu": "H100"}, "client": "http", "engine": {"max_model_len": 1000},
        "workload": {"synthetic": {"num_prompts": 20, "prompt_tokens": {"kind": "uniform", "mean": 1000,
                     "range_ratio": 0.5}, "output_tokens": {"kind": "fixed", "mean": 5}}},
    }  # fmt: skip
    requests = package.simulate(tree).requests
    rejected = requests["status"] != "finished"
    assert rejected.any()
    assert (requests["client_s"].is_null() == rejected).all()


# Ablation


def test_without_a_term_its_share_is_missing(tmp_path):
    path = simulated(tmp_path, client="http")
    case = as_case(path)
    tree = case.scenario.model_dump() | {"client": "http"}
    tree["fleet"]["replicas"] = 2
    rows = ablate([NamedCase("case", "case", case.case, parse_scenario(tree), case.root)])
    assert [row["removed"] for row in rows] == ["nothing", *VARIANTS]
    errors = {row["removed"]: row["metrics"]["ttft_s"]["mean"]["worst"] for row in rows}
    assert errors["nothing"] < 1e-9
    assert errors["client term"] > 0.05
    assert errors["asynchronous scheduling"] > 0.05


def test_overloaded_cases_are_no_part_of_an_ablation(tmp_path):
    calm = as_case(table(tmp_path, *GOOD))
    rows = ablate([calm, as_case(tmp_path / "measured.csv", overloaded=True)])
    assert {row["cases"] for row in rows} == {1}


def test_ablation_on_the_command_line(tmp_path):
    ended = kavier("validate", case_file(tmp_path, CASE), "--ablate")
    assert ended.status == 0
    assert "client term" in ended.out
    rows = json.loads(kavier("validate", tmp_path / "case.yaml", "--ablate", "--json").out)["ablation"]
    assert rows[0]["removed"] == "nothing"


# The page


def test_the_page_is_made_of_comparisons(tmp_path, monkeypatch):
    """All parts but the ablation, of a run and of an average, at two levels; each part has its place."""
    page = load("validate")
    monkeypatch.setattr(page, "PLOTS", tmp_path)
    calm = [f"{i},100,10,0.4,1.5" for i in range(1, 9)]
    whole = validate_case(as_case(table(tmp_path, *calm)))
    metrics: Metrics = {"tpot_s": {"mean": {"measured": 0.01, "simulated": 0.02, "error": 1.0}}}
    average = replace(whole, metrics=metrics, measured=None, case="x TP2 1/2 x3", of="x")
    results = {
        "vllm_h100_runs": {"a": [whole], "b": [whole]},
        "surf_a10_prefill": {"a": [average], "b": [average]},
    }
    overview = page.overview(results)
    assert overview.count("| vllm_h100_runs | a | 1 |") == 2
    assert "| surf_a10_prefill | b | 1 | mean | - | 100.0% / 100.0% / 100.0% | - |" in overview
    assert "| surf_a10_prefill | a | TPOT mean | 1 of 1 | +100.0% |" in page.failures(results)
    sections = page.sections(results)
    for name in ("vllm_h100_runs-case", "surf_a10_prefill"):
        assert f"(validation/{name}.svg)" in sections
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    text = (ROOT / "docs" / "validation.md").read_text()
    for part in ("overview", "failures", "sets", "trust", "ablation", "calibrations"):
        assert text.count(f"<!-- generated: {part} -->") == 1


# The sets of ../shared/data


@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_without_the_data_a_case_file_says_what_is_missing(path, tmp_path):
    error = kavier("validate", path, "--data", tmp_path).error
    assert "the measured data are not there; expected --data DIR" in error


@needs_data
@pytest.mark.parametrize(
    ("stem", "count"),
    [
        ("vllm_h100_runs", 8), ("llmservingsim", 2), ("surf_a10_prefill", 8), ("surf_a10_decode", 9),
        ("silicon_llama_70b", 30), ("silicon_qwen3_32b", 90), ("silicon_gpt_oss_120b", 45),
        ("silicon_minimax_m2.5", 15),
    ],
)  # fmt: skip
def test_case_files_hold_the_cases_of_their_set(stem, count):
    assert len(read_cases(CASES / f"{stem}.yaml")) == count


@needs_data
@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("vllm_h100_runs", "llama-2-7b-codegen"),
        ("vllm_h100_runs", "llama-2-7b-reasoning"),
        ("llmservingsim", "rtx-pro-6000-llama-3.1-8b"),
        ("surf_a10_prefill", "surf_a10_prefill 512 words"),
        ("surf_a10_decode", "surf_a10_decode 128 tokens"),
        ("silicon_llama_70b", "silicon_llama_70b TP2 1024/1024 x4"),
        ("silicon_qwen3_32b", "silicon_qwen3_32b TP8 4096/128 x8"),
        ("silicon_gpt_oss_120b", "silicon_gpt_oss_120b TP8 1024/1024 x4"),
        ("silicon_minimax_m2.5", "silicon_minimax_m2.5 TP4 1024/1024 x4"),
    ],
)
def test_a_case_of_each_set_comes_out_near_what_was_measured(stem, name):
    """No worse than a factor of four: units, columns and engine are right; how near: docs/validation.md."""
    (case,) = [case for case in read_cases(CASES / f"{stem}.yaml") if case.name == name]
    one = validate_case(case)
    assert one.overloaded == (name == "llama-2-7b-reasoning")
    for points in one.metrics.values():
        for pair in points.values():
            assert pair["simulated"] == pytest.approx(pair["measured"], rel=0.75)


@needs_data
def test_the_traps_of_the_h100_runs_are_heeded():
    """Forced lengths, not those of re-tokenised text; a hundred prompts that repeat; 4,068 failures."""
    cases = {case.name: case for case in read_cases(CASES / "vllm_h100_runs.yaml")}
    codegen = cases["llama-2-7b-codegen"]
    run = read_measured(codegen.case.measured or pytest.fail("no table"), codegen.root)
    assert run.workload.requests["output_tokens"].unique().to_list() == [247]
    firsts = run.workload.requests["block_hashes"].list.first()
    assert firsts.n_unique() == 100
    reasoning = cases["llama-2-7b-reasoning"]
    run = read_measured(reasoning.case.measured or pytest.fail("no table"), reasoning.root)
    assert int(run.times["failed"].sum()) == 4068
    assert run.unknown == 0
    assert "block_hashes" not in run.workload.requests.columns
