"""The engines do, step for step, what the real vLLM was recorded to do; and `kavier conformance` says so."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kavier.ecosystem.vllm_versions import resolve_version
from kavier.scenario import Engine
from kavier.timing.compiled import AffineTiming
from kavier.validation.conformance import REPLAYS, Comparison, EngineName, Setup, conform
from kavier.validation.recording import read_recording
from tests.command_line import Ended, kavier
from tests.oracle import FOLDERS, ORACLE, RUNS, files_of, flags_of

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "recording"
TINY_FLAGS = shlex.split("--num-gpu-blocks 9 --block-size 4 --max-num-batched-tokens 16 --max-num-seqs 4")
ENGINES: list[EngineName] = ["reference", "kernel"]

SYNCHRONOUS = """\
{"step": 0, "t": 0.0, "dt": 0.00518009, "sched": [["a", 9, 0]], "preempted": [], "free": 5, "evicted": 0, "running": 1, "waiting": 0}
{"step": 1, "t": 0.00518009, "dt": 0.00536031, "sched": [["a", 1, 9], ["b", 2, 8, 8], ["c", 11, 0]], "preempted": [], "free": 1, "evicted": 0, "running": 3, "waiting": 0}
{"step": 2, "t": 0.0105404, "dt": 0.00530034, "sched": [["a", 1, 10], ["b", 1, 10], ["c", 1, 11]], "preempted": [], "free": 1, "evicted": 0, "running": 3, "waiting": 0}
{"step": 3, "t": 0.01584074, "dt": 0.00530037, "sched": [["a", 1, 11], ["b", 1, 11], ["c", 1, 12]], "preempted": [], "free": 0, "evicted": 0, "running": 3, "waiting": 0}
{"step": 4, "t": 0.021141109999999998, "dt": 0.00520027, "sched": [["a", 1, 12], ["c", 1, 13]], "preempted": [], "free": 0, "evicted": 1, "running": 2, "waiting": 0}
{"step": 5, "t": 0.026341379999999998, "dt": 0.00510014, "sched": [["a", 1, 13]], "preempted": [], "free": 4, "evicted": 0, "running": 1, "waiting": 0}
"""  # noqa: E501
SYNCHRONOUS_REQUESTS = """\
{"id": "a", "first_sched_s": 0.0, "first_token_s": 0.00518009, "finish_s": 0.03144152, "cached_tokens": 0, "preemptions": 0}
{"id": "b", "first_sched_s": 0.00518009, "first_token_s": 0.0105404, "finish_s": 0.021141109999999998, "cached_tokens": 8, "preemptions": 0}
{"id": "c", "first_sched_s": 0.00518009, "first_token_s": 0.0105404, "finish_s": 0.026341379999999998, "cached_tokens": 0, "preemptions": 0}
"""  # noqa: E501
"""The workload of examples/recording in the synchronous scheduler of vLLM 0.33.0."""

needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="needs the recordings in ../shared/oracle")


# ---------------------------------------------------------------- the recorded runs

RECORDED = [
    (folder, run)
    for folder, (version, _) in FOLDERS.items()
    for run in RUNS
    if (version, run) != ("0.11", "priority")  # not mirrored: a victim stays in the batch it was taken from
]


def compare(
    folder: str, run: str, engines: list[EngineName], *, as_recorded: bool = True
) -> list[Comparison]:
    version, asynchronous = FOLDERS[folder]
    _, num_gpu_blocks, settings = RUNS[run]
    engine = resolve_version(
        Engine(max_model_len=131072, vllm_version=version, async_scheduling=asynchronous, **settings)
    )
    setup = Setup(engine, AffineTiming(0.005, 2e-5, 1e-4, 1e-8), num_gpu_blocks, as_recorded)
    recording = read_recording(*files_of(folder, run), 512)
    assert recording.overlaps == asynchronous
    return [conform(recording, setup, name) for name in engines]


def test_there_are_26_recorded_runs():
    assert len(RECORDED) == 26


@needs_oracle
@pytest.mark.parametrize(("folder", "run"), RECORDED)
def test_every_step_and_request_is_identical_to_the_recorded_vllm(folder, run):
    for compared in compare(folder, run, ENGINES):
        assert compared.is_identical, compared
        for log in (compared.steps, compared.requests):
            assert log.identical == log.recorded == log.replayed > 0


@needs_oracle
@pytest.mark.parametrize(("run", "requests"), [("chunked", 14), ("chunked_lpt", 2), ("priority", 0)])
def test_as_many_requests_differ_in_vllm_s_own_loop_as_the_page_says(run, requests):
    (compared,) = compare("vllm-0.33.0-async", run, ["kernel"], as_recorded=False)
    assert compared.requests.recorded - compared.requests.identical == requests
    if requests:
        page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
        assert f"| `{run}` | {requests} of {compared.requests.recorded} |" in page


# ---------------------------------------------------------------- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny recording: w.jsonl, s.jsonl, r.jsonl."""
    monkeypatch.chdir(tmp_path)
    for name, original in (("w", "workload"), ("s", "steps"), ("r", "requests")):
        (tmp_path / f"{name}.jsonl").write_bytes((TINY / f"{original}.jsonl").read_bytes())
    return tmp_path


def conformance(*flags: str, w: str = "w.jsonl", s: str = "s.jsonl", r: str = "r.jsonl") -> Ended:
    files = ("--workload", w, "--oracle-steps", s, "--oracle-requests", r)
    return kavier("conformance", *files, *TINY_FLAGS, *flags)


def change(name: str, line: int, changed: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite one line of a file."""
    lines = Path(name).read_text().splitlines()
    row = json.loads(lines[line - 1])
    changed(row)
    lines[line - 1] = json.dumps(row)
    Path(name).write_text("\n".join(lines))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_identical_replay_says_so_and_ends_with_0(here, engine):
    ended = conformance("--engine", engine)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(
        f"vLLM 0.33, asynchronous scheduling in the recorded loop, replayed by the {engine}"
    )
    assert re.search(r"steps +10 +10 +10 ", ended.out)
    assert re.search(r"requests +3 +3 +3 ", ended.out)
    assert ended.out.endswith("\nIdentical.\n")
    assert ("sched," in ended.out) == (engine == "reference")
    assert ("prefill_tokens, decodes" in ended.out) == (engine == "kernel")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_synchronous_recording_is_told_by_its_log(here, engine):
    (here / "s.jsonl").write_text(SYNCHRONOUS)
    (here / "r.jsonl").write_text(SYNCHRONOUS_REQUESTS)
    told = conformance("--engine", engine, "--json")
    assert (told.status, json.loads(told.out)["async_scheduling"]) == (0, False)
    assert conformance("--engine", engine, "--no-async-scheduling").status == 0
    assert conformance("--engine", engine, "--async-scheduling").status == 1


def test_gzipped_files_and_those_of_the_recording_script_are_read(here):
    for name in ("w", "s", "r"):
        (here / f"{name}.gz").write_bytes(gzip.compress((here / f"{name}.jsonl").read_bytes()))
    assert conformance(w="w.gz", s="s.gz", r="r.gz").status == 0
    rows = [json.loads(line) for line in (here / "s.jsonl").read_text().splitlines()]
    for row in rows:
        row["free_after"] = row.pop("free")
        row["sched"] = [
            {"id": name, "n": tokens, "computed": before, "cached": (hit or [0])[0], "kind": "new"}
            for name, tokens, before, *hit in row["sched"]
        ]
    (here / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert conformance().status == 0


def test_the_same_as_json(here):
    ended = conformance("--json", "--vllm-version", "0.33.0")
    described = json.loads(ended.out)
    assert ended.status == 0
    assert described["identical"]
    assert described["vllm_version"] == "0.33"
    assert described["engine_loop"] == "oracle"
    assert described["steps"]["recorded"] == described["steps"]["identical"] == 10
    assert described["requests"]["first_difference"] is None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_step_that_differs_is_shown_with_both_sides(here, engine):
    change("s.jsonl", 5, lambda row: row.update(free=2))
    change("s.jsonl", 8, lambda row: row.update(waiting=7))
    ended = conformance("--engine", engine)
    assert (ended.status, ended.err) == (1, "")
    assert re.search(r"steps +10 +10 +8 ", ended.out)
    assert "The first step that differs is 4:" in ended.out
    assert re.search(r"^!= +free +2 +3 *$", ended.out, re.MULTILINE)
    assert re.search(r"^ +waiting +1 +1 *$", ended.out, re.MULTILINE)
    assert ended.out.count("!=") == 1
    assert ended.out.endswith("\nNot identical.\n")
    first = json.loads(conformance("--engine", engine, "--json").out)["steps"]["first_difference"]
    assert (first["name"], first["fields"]) == (4, ["free"])
    assert (first["recorded"]["free"], first["replayed"]["free"]) == (2, 3)


FILES = ("--workload", "w.jsonl", "--oracle-steps", "s.jsonl", "--oracle-requests", "r.jsonl")


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_another_run_are_hinted_at(here, engine):
    ended = kavier("conformance", *FILES, "--engine", engine)
    assert ended.status == 1
    assert "recorded with another --num-gpu-blocks or --block-size?" in ended.out
    found = re.search(
        r"--num-gpu-blocks (\d+) leaves\s+as many", kavier("conformance", *FILES, "--block-size", "4").out
    )
    assert found
    flags = ("--num-gpu-blocks", found[1], "--block-size", "4", "--max-num-batched-tokens", "16")
    assert kavier("conformance", *FILES, "--engine", engine, *flags, "--max-num-seqs", "4").status == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hint_names_what_comes_first(here, engine):
    assert (
        "another --max-num-batched-tokens"
        in conformance("--engine", engine, "--max-num-batched-tokens", "5").out
    )
    assert "another --step-time?" in conformance("--engine", engine, "--step-time", "0.006,0,0,0").out
    assert "hint" in json.loads(conformance("--engine", engine, "--json").out)
    change("s.jsonl", 5, lambda row: row.update(free=2))
    assert "recorded with another" not in conformance("--engine", engine).out


def test_the_settings_that_are_shown_are_flags_that_replay_the_same(here):
    shown = conformance("--engine", "kernel").out.partition(" engine with\n")[2].partition("\n\n")[0]
    assert kavier("conformance", *FILES, "--engine", "kernel", *shown.split()).status == 0
    assert "--no-enable-prefix-caching" in conformance("--no-enable-prefix-caching").out


def test_the_command_of_the_help_is_complete(monkeypatch):
    shown = kavier("conformance", "--help").out.partition("Example")[2].partition("Options:")[0]
    (line,) = re.findall(r"kavier (conformance .*)", shown.replace("\\\n", " "))
    monkeypatch.chdir(TINY)
    assert kavier(*shlex.split(line)).status == 0


def test_a_batch_is_shown_from_where_it_differs(here):
    change("s.jsonl", 4, lambda row: row["sched"].reverse())
    shown = conformance().out
    assert re.search(
        r'^!= +sched +3 in all +3 in all *\n +\["c", 1, 11\] +\["a", 1, 11\]', shown, re.MULTILINE
    )
    change("s.jsonl", 4, lambda row: row["sched"].reverse())
    change("s.jsonl", 4, lambda row: row["sched"].pop())
    shown = conformance().out
    line = r'^!= +sched +2 in all, from number 3 on: +3 in all, from number 3 on: *\n +\["c", 1, 11\] *$'
    assert re.search(line, shown, re.MULTILINE)


def test_a_long_batch_is_cut(here):
    change("s.jsonl", 1, lambda row: row.update(sched=[["a", 9, 0], *(["a", 1, i] for i in range(90))]))
    lines = conformance().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "from number 2 on:" in line)
    shown = [" ".join(line.split()) for line in lines[start + 1 : start + 5]]
    assert shown == ['["a", 1, 0]', '["a", 1, 1]', '["a", 1, 2]', "..."]


def test_the_first_request_that_differs_is_shown(here):
    change("r.jsonl", 2, lambda row: row.update(cached_tokens=4, first_token_s=None))
    ended = conformance("--engine", "kernel")
    assert ended.status == 1
    assert "The first request that differs is b:" in ended.out
    assert re.search(r"^!= +cached_tokens +4 +8 *$", ended.out, re.MULTILINE)
    assert re.search(r"^!= +first_token_s +null +0.015640510000000003 *$", ended.out, re.MULTILINE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_log_that_ends_early_or_late_differs(here, engine):
    log = (here / "s.jsonl").read_text().splitlines()
    (here / "s.jsonl").write_text("\n".join(log[:-2]))
    ended = conformance("--engine", engine)
    assert ended.status == 1
    assert "Behind its last step the recorded run ends; the replayed one goes on with this:" in ended.out
    more = {**json.loads(log[-1]), "step": 99, "t": 1.0}
    (here / "s.jsonl").write_text("\n".join([*log, json.dumps(more)]))
    ended = conformance("--engine", engine)
    assert ended.status == 1
    assert "Behind its last step the replayed run ends; the recorded one goes on with this:" in ended.out


def test_the_engine_loop_of_vllm_sleeps_elsewhere(here):
    ended = conformance("--engine-loop", "vllm")
    assert "asynchronous scheduling in vLLM's own loop" in ended.out
    assert re.search(r"^!= +t +0.04144152 +0.04244152 *$", ended.out, re.MULTILINE)
    change("s.jsonl", 10, lambda row: row.update(t=0.04244152))  # as recorded in EngineCoreProc's own loop
    assert conformance("--engine-loop", "vllm").status == 0
    assert conformance("--engine-loop", "oracle").status == 1


def test_settings_change_the_replay(here):
    assert conformance("--step-time", "0.005,2e-5,1e-4,2e-8").status == 1
    assert conformance("--hash-block-size", "9").status == 0  # the row says its own
    for flags in (["--no-enable-prefix-caching"], ["--max-num-seqs", "2"], ["--num-gpu-blocks", "10"]):
        assert conformance(*flags).status == 1


def test_arrivals_may_be_given_by_step(here):
    change("w.jsonl", 1, lambda row: row.update(arrival_step=0))
    for line in (2, 3):
        change("w.jsonl", line, lambda row: row.update(arrival_step=2))
    assert conformance().status == 0


def test_answers_that_max_model_len_cuts_are_told(here):
    ended = conformance("--max-model-len", "13")
    assert ended.status == 1
    assert "2 requests have their answer cut at max_model_len, 13, as vLLM cuts it." in ended.out


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["w", "s", "r"])
def test_a_file_that_is_not_there_or_empty_is_named(here, name):
    assert conformance(**{name: "no.jsonl"}).error == "no.jsonl: cannot read it: No such file or directory"
    (here / "empty").write_text("\n")
    assert conformance(**{name: "empty"}).error == "empty: no rows; expected JSON lines"


@pytest.mark.parametrize("name", ["w", "s", "r"])
def test_a_line_that_is_not_json_is_named(here, name):
    file = here / f"{name}.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-1], *lines[2:]]))
    assert conformance().error.startswith(f"{name}.jsonl, line 2: not JSON: ")
    file.write_text("[]")
    assert conformance().error == f"{name}.jsonl, line 1: not a JSON object (got [])"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("s", "free", "freee"),
        ("s", "sched", "schedule"),
        ("r", "finish_s", "finished_s"),
        ("r", "id", "idd"),
        ("w", "output_len", "output_length"),
        ("w", "arrival_s", "arrivals"),
        ("w", "prompt_token_ids", "prompt_tokens_ids"),
    ],
)
def test_a_missing_field_offers_the_nearest_name(here, name, old, new):
    change(f"{name}.jsonl", 2, lambda row: row.update({new: row.pop(old)}))
    error = conformance().error
    assert error.startswith(f"{name}.jsonl, line 2: no field {old!r}; did you mean {new}")


BAD_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("s", {"free": "x"}, "bad 'free' (got 'x'); expected a whole number from 0"),
    ("s", {"free": 1.5}, "bad 'free' (got 1.5); expected a whole number"),
    ("s", {"t": -1}, "bad 't' (got -1); expected seconds from 0"),
    ("s", {"t": float("nan")}, "bad 't' (got nan); expected seconds"),
    ("s", {"step": 0}, "bad 'step' (got 0); expected more than the 0 of the line before"),
    ("s", {"sched": "a"}, "bad 'sched' (got 'a'); expected a list of parts"),
    ("s", {"sched": [["a", 1]]}, "bad 'sched' (got ['a', 1]); expected parts of [id, tokens"),
    (
        "s",
        {"sched": [["aa", 1, 0]]},
        "request 'aa' is not in w.jsonl; expected files of one run; did you mean a?",
    ),
    ("s", {"preempted": 1}, "bad 'preempted' (got 1); expected a list of ids"),
    ("r", {"first_sched_s": "x"}, "bad 'first_sched_s' (got 'x'); expected seconds"),
    ("r", {"preemptions": True}, "bad 'preemptions' (got True); expected a whole number"),
    ("r", {"id": "a"}, "request 'a' a second time"),
    ("r", {"id": "bb"}, "request 'bb' is not in w.jsonl"),
    ("w", {"id": "a"}, "request 'a' a second time"),
    ("w", {"output_len": 0}, "bad 'output_len' (got 0); expected a whole number from 1"),
    ("w", {"arrival_s": 1e12}, "bad 'arrival_s' (got 1000000000000.0); expected seconds from 0 to 1e+09"),
    ("w", {"prompt_token_ids": []}, "bad 'prompt_token_ids' (got []); expected 1 to"),
    (
        "w",
        {"prompt_token_ids": ["1"]},
        "bad 'prompt_token_ids' (got ['1']); expected a list of whole numbers",
    ),
    ("w", {"arrival_step": 3}, "arrival_step in some lines only"),
]


@pytest.mark.parametrize(("name", "values", "said"), BAD_VALUES)
def test_a_bad_value_is_named(here, name, values, said):
    change(f"{name}.jsonl", 2, lambda row: row.update(values))
    assert conformance().error.startswith(f"{name}.jsonl, line 2: {said}")


def test_a_request_that_has_no_result_is_named(here):
    (here / "r.jsonl").write_text("".join((here / "r.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert conformance().error.startswith("w.jsonl, line 3: request 'c' is not in r.jsonl")


def test_an_arrival_at_a_step_that_is_not_in_the_log_is_named(here):
    for line in (1, 2, 3):
        change("w.jsonl", line, lambda row: row.update(arrival_step=77))
    assert conformance().error.startswith("w.jsonl, line 1: bad 'arrival_step' (got 77)")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--step-time 1,2,3",
            "--step-time: bad value (got '1,2,3'); expected four numbers of seconds A,B,C,D",
        ),
        ("--step-time 1,2,3,x", "--step-time: bad value"),
        ("--step-time 0,0,0,0", "--step-time: bad value"),
        ("--step-time 1,-1,0,0", "--step-time: bad value"),
        (
            "--engine kernl",
            "--engine: unknown value (got 'kernl'); expected reference, kernel; did you mean kernel?",
        ),
        (
            "--engine-loop vlm",
            "--engine-loop: unknown value (got 'vlm'); expected oracle, vllm; did you mean vllm?",
        ),
        (
            "--vllm-version 0.34",
            "--vllm-version: unknown value (got '0.34'); expected 0.11, 0.14, 0.20, 0.25, 0.33",
        ),
        (
            "--scheduling-policy fcfc",
            "--scheduling-policy: unknown value (got 'fcfc'); expected fcfs, priority",
        ),
        ("--num-gpu-blocks 1", "--num-gpu-blocks: bad value (got 1); expected a number from 2"),
        ("--hash-block-size 0", "--hash-block-size: bad value (got 0); expected a number from 1"),
        ("--max-num-seqs 0", "command line: max_num_seqs: bad value (got 0)"),
        ("--max-num-seqs 17", "engine: max_num_batched_tokens is smaller than max_num_seqs (17)"),
        (
            "--no-enable-chunked-prefill",
            "engine: max_num_batched_tokens is smaller than max_model_len (131072)",
        ),
        ("--max-model-len 9", "w.jsonl: the prompt of request 'c' leaves no room for a token (got 11)"),
        (
            "--vllm-version 0.20 --watermark 0.1",
            "engine.watermark: vLLM 0.20 has no option watermark (got 0.1)",
        ),
        (
            "--vllm-version 0.11",
            "engine.async_scheduling: async_scheduling of vLLM 0.11 is not mirrored (got True)",
        ),
        (
            "--vllm-version 0.20 --scheduling-policy priority --engine kernel",
            "the kernel does not play this: scheduling_policy priority by the rules of vLLM 0.20; expected",
        ),
        ("--max-num-seq 3", "No such option: --max-num-seq; did you mean"),
    ],
)
def test_a_bad_flag_is_named(here, flags, said):
    assert conformance(*flags.split()).error.startswith(said)


def test_all_files_are_checked_before_anything_is_played(here, monkeypatch):
    for name in ENGINES:
        monkeypatch.delitem(REPLAYS, name)
    change("r.jsonl", 3, lambda row: row.pop("preemptions"))
    assert "r.jsonl, line 3: no field 'preemptions'" in conformance().error


# ---------------------------------------------------------------- through the command, all the way


@needs_oracle
@pytest.mark.parametrize(
    ("folder", "run", "engine"),
    [
        ("vllm-0.33.0", "chunked_lpt", "kernel"),
        ("vllm-0.33.0-async", "priority", "reference"),
        ("vllm-0.11.0", "samestep", "reference"),
    ],
)
def test_recorded_runs_through_the_command_plain_and_gzipped(tmp_path, folder, run, engine):
    flags = [*flags_of(run), "--engine", engine, "--vllm-version", FOLDERS[folder][0]]
    flags.append("--async-scheduling" if FOLDERS[folder][1] else "--no-async-scheduling")
    names = ("--workload", "--oracle-steps", "--oracle-requests")
    files = files_of(folder, run)
    assert (
        kavier("conformance", *flags, *(x for pair in zip(names, files, strict=True) for x in pair)).status
        == 0
    )
    plain = [tmp_path / file.stem for file in files]
    for file, to in zip(files, plain, strict=True):
        to.write_bytes(gzip.decompress(file.read_bytes()))
    assert (
        kavier("conformance", *flags, *(x for pair in zip(names, plain, strict=True) for x in pair)).status
        == 0
    )


# ---------------------------------------------------------------- the page


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_page_shows_what_the_commands_print(monkeypatch):
    monkeypatch.chdir(ROOT)
    example, differing, _ = blocks("bash")
    for command, shown, status in zip((example, differing), blocks("text"), (0, 1), strict=True):
        ended = kavier(*shlex.split(command.replace("\\\n", " "))[1:])
        assert (ended.status, stripped(ended.out)) == (status, stripped(shown))


def test_the_page_shows_the_lines_of_the_recording():
    lines = [line for block in blocks("json") for line in block.splitlines()]
    files = [(TINY / f"{name}.jsonl").read_text().splitlines() for name in ("workload", "steps", "requests")]
    assert lines
    assert all(any(line in file for file in files) for line in lines)


def test_the_loop_of_the_page_names_every_run_and_its_settings(tmp_path):
    (loop,) = blocks("bash")[2:]
    stub = 'kavier() { echo "$@" >&2; }\n'
    done = subprocess.run(
        ["bash", "-euc", stub + loop], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"ORACLE": str(ORACLE), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    named = {frozenset(line.split()[1:]) for line in done.stderr.splitlines()}
    expected = {
        frozenset(
            ["--engine", engine, "--vllm-version", FOLDERS[folder][0], *flags_of(run),
             "--workload", "--oracle-steps", "--oracle-requests", *map(str, files_of(folder, run))]
        )
        for folder, run in RECORDED for engine in ENGINES
    }  # fmt: skip
    assert named == expected
