"""What a run leaves: a folder that replaces an earlier one, and a page that cuts no number."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import kavier
from kavier.errors import InputError
from kavier.metrics.course import Course
from kavier.report.amounts import amount, duration, latency, level, power
from kavier.report.catalog import print_catalog, print_entry
from kavier.report.console import glossary, print_explanation, print_glossary, print_page
from kavier.report.files import RunFolder, check_folder, summary_json, write_run
from kavier.report.over_time import sparkline
from kavier.report.parquet import ParquetStream
from kavier.report.workload import print_info, print_written
from kavier.runner import Result
from kavier.workload.read import read_trace

KEPT = {"scenario.resolved.yaml", "summary.json", "requests.parquet", "timeline.parquet"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def trace(folder, rows, name="trace.jsonl") -> Path:
    path: Path = Path(folder) / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(arrival_s, prompt_tokens=100, output_tokens=8, **more) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, **more}


def simulate(folder, rows, **sections) -> Result:
    tree: dict[str, Any] = {"model": "meta-llama/Llama-3.1-8B", "fleet": {"gpu": "H100-SXM"}}
    return kavier.simulate({**tree, "workload": {"trace": str(trace(folder, rows))}, **sections})


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    rows = [row(0.1 * i, 200 + i, 5 + i) for i in range(20)] + [row(2.5, 5000)]
    return simulate(
        tmp_path_factory.mktemp("report"), rows, engine={"max_model_len": 4096}, slo={"ttft_s": 1.0}
    )


def with_steps(result):
    return replace(result, steps=pl.DataFrame({"replica": [0], "start_s": [0.5]}))


def files_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- The folder ---------------------------------------------------------------------------------------


def test_a_run_leaves_its_scenario_its_summary_and_its_tables(result, tmp_path):
    out = tmp_path / "deep" / "run"
    write_run(result, out)
    assert files_in(out) == KEPT
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == result.summary
    assert (out / "summary.json").read_text(encoding="utf-8") == summary_json(result)
    assert pl.read_parquet(out / "requests.parquet").equals(result.requests)
    assert pl.read_parquet(out / "timeline.parquet").equals(result.timeline)
    tree = yaml.safe_load((out / "scenario.resolved.yaml").read_text(encoding="utf-8"))
    assert tree["engine"]["max_num_batched_tokens"] == result.scenario.engine.max_num_batched_tokens


def test_steps_are_kept_when_asked_for(result, tmp_path):
    write_run(with_steps(result), tmp_path / "run")
    assert files_in(tmp_path / "run") == KEPT | {"steps.parquet"}
    assert pl.read_parquet(tmp_path / "run" / "steps.parquet").equals(with_steps(result).steps)


def test_an_earlier_run_is_replaced_whole_and_other_files_are_left_alone(result, tmp_path):
    out = tmp_path / "run"
    write_run(with_steps(result), out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    (out / "plots").mkdir()
    other = replace(result, summary={**result.summary, "makespan_s": -1.0}, requests=result.requests.head(1))
    write_run(other, out)
    assert files_in(out) == KEPT | {"notes.txt", "plots"}  # steps.parquet was of the earlier run
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["makespan_s"] == -1.0
    assert len(pl.read_parquet(out / "requests.parquet")) == 1


def test_a_timeline_is_written_while_it_grows(result, tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        for index in range(100):
            folder.add_rows(result.timeline.slice(index, 1))
        folder.add_rows(result.timeline.slice(100))
        assert not (tmp_path / "run").exists()
        assert not folder.finish(result)
    assert pl.read_parquet(tmp_path / "run" / "timeline.parquet").equals(result.timeline)
    assert files_in(tmp_path) == {"run"}


def test_a_run_that_fails_leaves_nothing(result, tmp_path):
    def fail() -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.add_rows(result.timeline)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files_in(tmp_path) == set()


def test_a_full_disk_is_told_at_the_end():
    rows = pl.DataFrame({"a": np.random.default_rng(0).random(1 << 16)})
    stream = ParquetStream(Path("/dev/full"), dict(rows.schema))
    stream.add(rows)
    with pytest.raises(OSError, match=r"^No space left on device"):
        stream.close()


def test_a_file_that_cannot_be_made_is_told_at_the_end(tmp_path):
    stream = ParquetStream(tmp_path / "missing" / "a.parquet", {"a": pl.Float64()})
    with pytest.raises(FileNotFoundError):
        stream.close()


def test_what_a_killed_run_left_is_in_nobodys_way(result, tmp_path):
    (tmp_path / ".kavier-x").mkdir()
    write_run(result, tmp_path)
    assert files_in(tmp_path) == KEPT | {".kavier-x"}


def test_the_error_that_ended_a_run_is_told_and_nothing_stays(result, tmp_path):
    def fail() -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.add_rows(pl.DataFrame({"other": [1]}))  # the writer fails too
            raise KeyError("original")

    with pytest.raises(KeyError, match="original"):
        fail()
    assert files_in(tmp_path) == set()


def test_an_empty_folder_will_do(result, tmp_path):
    write_run(result, tmp_path)
    assert files_in(tmp_path) == KEPT


def test_a_folder_of_something_else_is_refused_and_left_alone(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("\\end", encoding="utf-8")
    for refuse in (check_folder, lambda out: write_run(result, out)):
        with pytest.raises(InputError, match="not empty and holds no earlier run"):
            refuse(tmp_path)
    assert files_in(tmp_path) == {"thesis.tex"}


def test_a_summary_of_another_tool_does_not_make_a_folder_ours(result, tmp_path):
    theirs = '{"accuracy": 0.9}'
    (tmp_path / "summary.json").write_text(theirs, encoding="utf-8")
    with pytest.raises(InputError):
        write_run(result, tmp_path)
    assert (tmp_path / "summary.json").read_text(encoding="utf-8") == theirs


def test_a_file_is_no_folder(result, tmp_path):
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="not a folder"):
        check_folder(tmp_path / "out")


def test_a_folder_inside_a_file_is_refused_before_simulating(tmp_path):
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(InputError):
        check_folder(tmp_path / "out" / "run")


def test_a_folder_inside_a_file_is_bad_input_when_writing(result, tmp_path):
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot write|not a folder"):
        write_run(result, tmp_path / "out" / "run")


def test_a_folder_that_cannot_be_listed_is_bad_input(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        check_folder(tmp_path)


def disk_full(self, path, *_, **__):
    raise OSError(28, "No space left on device", str(path))


def test_a_failure_leaves_the_earlier_run_as_it_was(result, tmp_path, monkeypatch):
    out = tmp_path / "run"
    write_run(result, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(pl.DataFrame, "write_parquet", disk_full)
    with pytest.raises(InputError, match="cannot write: No space left on device"):
        write_run(replace(result, summary={"schema_version": "1"}), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_failure_leaves_no_new_folder(result, tmp_path, monkeypatch):
    monkeypatch.setattr(pl.DataFrame, "write_parquet", disk_full)
    with pytest.raises(InputError):
        write_run(result, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_summary_with_nan_is_never_written(result, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(replace(result, summary={"makespan_s": float("nan")}), tmp_path)
    assert files_in(tmp_path) == set()


# --- The page -----------------------------------------------------------------------------------------


def as_terminal(monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")


def page(result, capsys, monkeypatch, width=None, out=None) -> str:
    """The page as text; with a width, as a terminal of that many columns shows it."""
    if width:
        as_terminal(monkeypatch, width)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    print_page(result, out)
    return ANSI.sub("", capsys.readouterr().out)


LARGE = 12_345_678_901


def huge(result):
    """The same run, with numbers of a year of a large fleet."""
    summary = json.loads(summary_json(result))
    summary["requests"] |= {"arrived": 123_456_789, "finished": 123_456_000, "rejected": 789}
    summary["requests"]["rejected_by_reason"] = {"context": 700, "kv": 89}
    summary["cache"] = {"queried_tokens": LARGE, "hit_tokens": 1_234_567_890, "hit_ratio": 0.1}
    summary["kv"] |= {"blocks": 1_234_567, "peak_used_blocks": 1_234_567, "evicted_blocks": 987_654_321}
    summary["throughput"] = {
        "requests_per_s": 12345.67, "output_tokens_per_s": 1_234_567.0, "total_tokens_per_s": 98_765_432.0,
    }  # fmt: skip
    summary["energy"] |= {
        "gpu_kwh": 7_654_321.125,
        "facility_kwh": 9_185_185.25,
        "j_per_output_token": 1234.0,
    }
    summary["carbon"] |= {"operational_gco2e": 4_344_592_623.0, "gco2e_per_million_tokens": 12_345.0}
    summary["cost"] |= {"usd": 87_654_321.0, "usd_per_million_tokens": 1_234.0, "gpu_hours": 29_713_329.0}
    summary["goodput"] = {"good_requests": 111_222_333, "good_ratio": 0.9, "requests_per_s": 11111.11}
    summary["preemptions"] = 1_234_567
    summary["trust"] = {**summary["trust"], "notes": ["prompts share tokens"]}
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        summary[name] = {"mean": 0.99999, "p50": 1234.5, "p90": 123_456.78, "p99": 1_234_567.89}
    return replace(result, summary=summary)


SHOWN = (
    "123,456,789", "123,456,000", "700", "89", "12,345,678,901", "1,234,567,890", "1,234,567", "987,654,321",
    "98,765,432", "4,344,592,623", "87,654,321", "111,222,333", "123,456.78", "1,234,567.89", "12,345",
)  # fmt: skip


@pytest.mark.parametrize("width", [None, 80, 100, 200])
def test_no_number_of_the_page_is_cut_or_broken(result, capsys, monkeypatch, width):
    text = page(huge(result), capsys, monkeypatch, width)
    assert "…" not in text
    words = set(re.findall(r"[\d.,]*\d", text))
    assert {number for number in SHOWN if number not in words} == set()
    assert max(len(line) for line in text.splitlines()) <= min(width or 100, 100)


@pytest.mark.parametrize("width", [None, 80])
def test_the_page_of_a_plain_run_is_whole(result, capsys, monkeypatch, width):
    text = page(result, capsys, monkeypatch, width)
    assert "…" not in text
    for word in (
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "Queue",
        "Goodput",
        "Preemptions",
        "Operational carbon",
        "Rent",
    ):
        assert word in text
    flat = " ".join(text.split())
    for note in result.summary["trust"]["notes"]:
        assert note in flat
    assert "step times at level 'kernels'. Expected error TTFT" in flat
    assert "Nothing kept" in flat


def test_the_page_counts_rejections_with_their_reason(result, capsys, monkeypatch):
    flat = " ".join(page(result, capsys, monkeypatch).split())
    assert "21 requests" in flat
    assert "20 finished, 1 rejected (context)" in flat


def test_the_page_shows_the_numbers_of_the_summary(result, capsys, monkeypatch):
    text = page(result, capsys, monkeypatch)
    summary = result.summary
    ttft = next(line for line in text.splitlines() if line.startswith("TTFT"))
    assert [float(x) for x in re.findall(r"([\d.]+) ms", ttft)] == [
        round(summary["ttft_s"][point] * 1000, 2) for point in ("mean", "p50", "p90", "p99")
    ]
    rent = next(line for line in text.splitlines() if line.startswith("Rent"))
    assert f"{summary['cost']['usd_per_million_tokens']:.4g} USD" in rent
    facility = next(line for line in text.splitlines() if line.startswith("Facility energy"))
    watts = float(re.findall(r"([\d.,]+) W mean", facility)[0])
    assert watts == pytest.approx(summary["energy"]["facility_kwh"] * 3.6e6 / summary["makespan_s"], rel=2e-3)


def test_the_page_tells_the_fleet_from_a_replica(result, capsys, monkeypatch):
    text, use = page(result, capsys, monkeypatch), result.summary["utilization"]
    fleet, replica, energy = (text.index(w) for w in ("whole fleet\n", "a replica ", "fleet total"))
    assert fleet < text.index("Throughput") < text.index("Prefix cache") < replica
    assert replica < text.index("Running requests") < text.index("KV memory") < energy
    seats = result.scenario.engine.max_num_seqs
    assert re.search(
        rf"Running requests +{use['mean_running_requests']:.3g} +of max_num_seqs = {seats:,}\n", text
    )
    assert re.search(r"Busy +[\d.]+% +of time, if by one request\n", text)


def test_what_one_request_keeps_busy_is_not_full(tmp_path):
    summary = simulate(tmp_path, [row(0.0, 100, 500)]).summary
    assert summary["utilization"]["busy_ratio"] == pytest.approx(1.0)
    assert summary["utilization"]["mean_running_requests"] == pytest.approx(1.0, rel=0.01)


def with_large_fleet(result, times):
    """The same run by so many times as many replicas, each as it was."""
    levels = ("running", "waiting", "used_blocks", "energy_j")
    course, rows = Course(levels, 0.1), result.timeline
    starts_s, lengths_s = rows["start_s"].to_numpy() - rows["start_s"][0], rows["interval_s"].to_numpy()
    amounts = {name: rows[name].to_numpy() * lengths_s * times for name in levels[:3]}
    course.add(starts_s, starts_s + lengths_s, amounts | {"energy_j": rows["energy_j"].to_numpy() * times})
    return replace(result, course=course)


@pytest.mark.parametrize("width", [None, 80, 120])
@pytest.mark.parametrize("times", [1, 3163, 10**9])
def test_plots_are_as_long_as_captions_allow(result, capsys, monkeypatch, width, times):
    text = page(with_large_fleet(result, times), capsys, monkeypatch, width)
    plots = [line for line in text.splitlines() if line.startswith(("running ", "KV use ", "GPU power "))]
    assert len(plots) == 3
    assert not any("…" in line for line in plots)
    assert len({line.index("up to") for line in plots}) == 1
    assert (text == page(result, capsys, monkeypatch, width)) == (times == 1)
    assert max(map(len, plots)) <= min(width or 100, 100)


def test_without_kv_cache_nothing_is_said_of_it(tmp_path, capsys, monkeypatch):
    path = trace(tmp_path, [row(0.1 * i) for i in range(3)])
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "workload": {"trace": str(path)},
        "fleet": {"gpu": "H100"},
        "engine": {"kv_cache": False},
    }
    text = page(kavier.simulate(scenario), capsys, monkeypatch)
    assert "Running requests" in text
    assert "GPU power" in text
    assert not re.search("KV memory|KV use|Prefix cache", text)


def test_units_and_thousands_of_captions():
    assert [power(watts) for watts in (0.0, 998.4, 1000.0, 480_210.0, 1.2e6)] == [
        "0 W", "998 W", "1 kW", "480 kW", "1.2 MW",
    ]  # fmt: skip
    assert [level(one) for one in (0.0, 1e-9, 0.0213, 10.68, 99.96, 3163.4)] == [
        "0", "<0.001", "0.0213", "10.7", "100", "3,163",
    ]  # fmt: skip


def test_nobody_left_waiting_beside_queue_times_is_explained(result, capsys, monkeypatch):
    assert result.summary["queue_s"]["mean"] > 0
    text = page(result, capsys, monkeypatch)
    assert re.search(r"left waiting +none\n", text)
    assert "Queue counts the wait for the next step too" in text


def test_evictions_are_shown_only_where_something_can_hit(result, capsys, monkeypatch):
    kv = {**result.summary["kv"], "evicted_blocks": 1234}
    for notes, shown in ((result.summary["trust"]["notes"], False), ([], True)):
        trust = {**result.summary["trust"], "notes": notes}
        text = page(
            replace(result, summary={**result.summary, "kv": kv, "trust": trust}), capsys, monkeypatch
        )
        assert ("Idle blocks evicted" in text and "1,234" in text) == shown


def test_one_request_is_no_requests(tmp_path, capsys, monkeypatch):
    text = page(simulate(tmp_path, [row(0.0)]), capsys, monkeypatch)
    assert "1 request from" in text
    assert "up to 1 request\n" in text


def test_no_line_ends_in_blanks(result, capsys, monkeypatch):
    assert not re.search(r" +$", page(result, capsys, monkeypatch), re.MULTILINE)


def test_the_page_says_where_the_run_was_kept(result, capsys, monkeypatch):
    assert "Kept in results/run-1" in page(result, capsys, monkeypatch, out=Path("results/run-1"))


MARKUP = "bug: rich reads [brackets] of file names as markup"


def test_a_folder_with_brackets_in_its_name_is_shown_as_it_is(result, capsys, monkeypatch):
    assert "Kept in runs[a]/1" in page(result, capsys, monkeypatch, out=Path("runs[a]/1"))


def test_without_a_price_the_page_shows_a_dash(result, capsys, monkeypatch):
    cost = dict.fromkeys(result.summary["cost"]) | {"gpu_hours": 1.0}
    text = page(replace(result, summary={**result.summary, "cost": cost}), capsys, monkeypatch)
    assert re.search(r"Rent\s+-\s+-\s+no price known", text)


NOTHING = "bug: joules / 0 s is inf or NaN, and round(NaN) in the plot is a traceback"


@pytest.mark.parametrize(("prompt_tokens", "reason"), [(500, "kv"), (1500, "context")])
def test_the_page_of_a_run_that_served_nothing(tmp_path, capsys, monkeypatch, prompt_tokens, reason):
    engine = {"num_gpu_blocks_override": 20, "max_model_len": 1024}
    nothing = simulate(tmp_path, [row(1.0, prompt_tokens)], engine=engine)
    text = page(nothing, capsys, monkeypatch)
    assert f"1 rejected ({reason})" in text
    assert not re.search(r"\b(nan|inf)\b", text)


def test_small_amounts_and_no_amount_are_readable():
    assert amount(None, "USD") == "-"
    assert amount(0.0, "USD") == "0 USD"
    assert amount(12.3456, "gCO2e") == "12.35 gCO2e"
    assert amount(999.96, "Wh") == "1,000 Wh"
    assert amount(1_234_567.8, "Wh") == "1,234,568 Wh"


def test_latencies_are_in_ms_below_a_second_and_in_s_above():
    shown = [latency(seconds) for seconds in (None, 0.0, 0.0123456, 1.0, 1234.5)]
    assert shown == ["-", "0.00 ms", "12.35 ms", "1.00 s", "1,234.50 s"]


def test_durations_are_in_hours_minutes_and_seconds():
    assert [duration(s) for s in (0, 59, 60, 3600, 7322)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "1 h 0 s",
        "2 h 2 min 2 s",
    ]


def test_no_duration_has_sixty_seconds():
    assert duration(3599.7) == "1 h 0 s"


def test_plots_reach_from_nothing_to_the_largest():
    assert sparkline(np.array([0.0, 1.0, 2.0, 4.0, 8.0])) == " ▁▂▄█"
    assert sparkline(np.zeros(2)) == "  "
    assert sparkline(np.full(7, 3.0)) == "█" * 7


def test_what_is_not_zero_is_not_shown_as_zero(result, capsys, monkeypatch):
    summary = json.loads(summary_json(result))
    summary["throughput"] |= {"requests_per_s": 0.002}
    summary["energy"] |= {"gpu_kwh": 0.0001, "facility_kwh": 0.00012}
    summary["cost"] |= {"gpu_hours": 0.0008}
    text = page(replace(result, summary=summary), capsys, monkeypatch)
    assert not re.search(r"\b0\.0+ (kWh|req/s|GPU-h)", text)


# --- Glossary, workload, catalogs ---------------------------------------------------------------------


def test_every_metric_can_be_explained_also_without_its_unit(capsys):
    for name, entry in glossary().items():
        print_explanation(name)
        shown = " ".join(capsys.readouterr().out.split())
        assert " ".join(entry["meaning"].split()) in shown
        assert name in shown
    print_explanation("ttft")
    assert "ttft_s" in capsys.readouterr().out
    print_explanation("energy.gpu_kwh")
    assert "PUE" in capsys.readouterr().out


def test_an_unknown_metric_is_bad_input_that_offers_the_nearest():
    with pytest.raises(InputError, match=r"unknown metric 'ttff'.*ttft_s"):
        print_explanation("ttff")


def test_the_glossary_lists_every_metric(capsys):
    print_glossary()
    shown = capsys.readouterr().out
    assert all(name in shown for name in glossary())
    assert "…" not in shown


def test_a_workload_is_described_whole(tmp_path, capsys, monkeypatch):
    path = trace(tmp_path, [row(float(i), 1_234_567, 1) for i in range(3)])
    for columns in (None, 80):
        if columns:
            as_terminal(monkeypatch, columns)
        print_info(read_trace(path), json=False)
        shown = ANSI.sub("", capsys.readouterr().out)
        prompt = next(line for line in shown.splitlines() if line.startswith("prompt "))
        assert prompt.split()[1:] == ["1,234,567"] * 5 + ["3,703,701"]
        assert not re.search(r" +$", shown, re.MULTILINE)
    print_info(read_trace(path), json=True)
    assert json.loads(capsys.readouterr().out)["requests"] == 3


@pytest.mark.parametrize("name", ["trace[v2].jsonl", "trace[bold].jsonl"])
def test_a_trace_with_brackets_in_its_name_is_shown_as_it_is(tmp_path, capsys, name):
    print_info(read_trace(trace(tmp_path, [row(0.0)], name)), json=False)
    assert name in "".join(capsys.readouterr().out.split())


def test_what_reading_changed_is_printed_with_what_was_written(tmp_path, capsys):
    path = trace(tmp_path, [row(5.0), row(1.0), row(2.0, output_tokens=0)])
    print_written(read_trace(path), Path("out.parquet"))
    assert capsys.readouterr().out == (
        "2 requests written to out.parquet; dropped zero output tokens: 1; sorted rows: 1\n"
    )
    print_written(read_trace(trace(tmp_path, [row(5.0)])), Path("out.parquet"))
    assert capsys.readouterr().out == "1 request written to out.parquet\n"


@pytest.mark.parametrize(
    "kind",
    ["gpus", "models", "regions", "prices"],
)
def test_no_name_of_a_catalog_is_cut(capsys, monkeypatch, kind):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_catalog(kind, json=True)
    rows = json.loads(capsys.readouterr().out)
    for columns in (None, 80, 120):  # a file, and terminals
        if columns:
            as_terminal(monkeypatch, columns)
        print_catalog(kind, json=False)
        shown = ANSI.sub("", capsys.readouterr().out)
        assert "…" not in shown
        assert all(str(next(iter(entry.values()))) in shown for entry in rows)
        table = shown.split("\n\n")[0]
        assert max(map(len, table.splitlines())) <= (columns or 120)
        assert not re.search(r" +$", shown, re.MULTILINE)
        assert f"kavier catalog {kind} NAME" in shown


def test_an_entry_with_long_addresses_is_folded_and_not_cut(capsys, monkeypatch):
    as_terminal(monkeypatch, 80)
    print_entry("models", "Qwen/Qwen3-8B", json=False)
    shown = ANSI.sub("", capsys.readouterr().out)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json" in "".join(shown.split())


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpus", "h100"), ("models", "meta-llama/Llama-3.1-8B"), ("regions", "WORLD"), ("prices", "H100-SXM")],
)
def test_an_entry_of_a_catalog_is_the_same_in_text_and_json(capsys, kind, name):
    print_entry(kind, name, json=True)
    entry = json.loads(capsys.readouterr().out)
    print_entry(kind, name, json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert entry["name"] in shown
    assert all(key in shown for key, value in entry.items() if key != "name" and value is not None)
    sources = [value["source"] for value in entry.values() if isinstance(value, dict) and value.get("source")]
    assert all(" ".join(source.split()) in shown for source in sources)


def test_an_unknown_catalog_or_entry_is_bad_input():
    with pytest.raises(InputError, match=r"unknown catalog 'gpu'.*gpus"):
        print_catalog("gpu", json=False)
    with pytest.raises(InputError, match="unknown catalog"):
        print_entry("gpu", "H100", json=False)
    with pytest.raises(InputError, match="H100"):
        print_entry("gpus", "H1000", json=False)
