"""The runner: same scenario, same bytes; nothing silent, and no crash where nothing is served."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import kavier
from kavier.ecosystem.platform import build_platform
from kavier.ecosystem.vllm_versions import RULES
from kavier.errors import InputError
from kavier.report.console import glossary
from kavier.report.files import summary_json, write_run
from kavier.runner import MANY, Result, load_workload
from kavier.scenario import Scenario, parse_scenario

FILES = ("summary.json", "requests.parquet", "timeline.parquet", "steps.parquet", "scenario.resolved.yaml")
TABLES = ("requests", "timeline", "steps")

BUSY: dict[str, Any] = {
    "seed": 5,
    "model": "meta-llama/Llama-3.1-8B",
    "workload": {
        "synthetic": {
            "num_prompts": 80,
            "arrivals": {"process": "gamma", "request_rate": 60.0, "burstiness": 0.5},
            "prompt_tokens": {"kind": "lognormal", "mean": 400, "p50": 250, "max": 900},
            "output_tokens": {"kind": "lognormal", "mean": 50, "p50": 30, "max": 300},
            "prefixes": {
                "system_prompts": 2, "system_prompt_tokens": 100, "mean_turns": 2.0, "mean_think_s": 0.5,
            },
        }
    },
    "fleet": {"gpu": "H100-SXM", "replicas": 3, "router": "least-outstanding"},
    "engine": {"num_gpu_blocks_override": 160, "max_model_len": 2048, "max_num_seqs": 12},
    "slo": {"ttft_s": 0.5, "tpot_s": 0.02},
    "output": {"sample_interval_s": 0.1, "steps": True},
}  # fmt: skip


def trace(folder, rows) -> str:
    path = Path(folder) / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def replay(source, **sections) -> dict[str, Any]:
    return {
        "model": "meta-llama/Llama-3.1-8B",
        "fleet": {"gpu": "H100-SXM"},
        "workload": {"trace": source, **sections.pop("workload", {})},
        **sections,
    }


def row(arrival_s, prompt_tokens=100, output_tokens=8, **more) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, **more}


def notes_of(tree) -> str:
    return "\n".join(kavier.simulate(tree).summary["trust"]["notes"])


@pytest.fixture(scope="module")
def busy() -> Result:
    return kavier.simulate(BUSY)


@pytest.fixture(scope="module")
def kept(busy, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "run"
    write_run(busy, out)
    return out


def assert_same_numbers(one: Result, other: Result) -> None:
    for name in TABLES:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine is theirs is None or mine.equals(theirs, null_equal=True), name
    numbers = [{name: v for name, v in r.summary.items() if name != "trust"} for r in (one, other)]
    assert numbers[0] == numbers[1]


# --- Law 4: same scenario, same bytes -----------------------------------------------------------------


def test_the_busy_run_is_one_worth_repeating(busy):
    assert busy.summary["preemptions"] > 0
    assert busy.summary["cache"]["hit_tokens"] > 0
    assert busy.summary["requests"]["rejected"] > 0
    assert busy.requests["replica"].drop_nulls().n_unique() == 3


def test_the_same_scenario_leaves_the_same_bytes(kept, tmp_path):
    write_run(kavier.simulate(BUSY), tmp_path / "again")
    for name in FILES:
        assert (kept / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize(
    "env",
    [{"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "4242", "POLARS_MAX_THREADS": "1", "TZ": "Asia/Tokyo"}],
)
def test_another_process_leaves_the_same_bytes(kept, tmp_path, env):
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(BUSY), encoding="utf-8")
    code = (
        "import sys, kavier; from pathlib import Path; from kavier.report.files import write_run; "
        "write_run(kavier.simulate(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(scenario), str(tmp_path / "run")]
    subprocess.run(command, check=True, env={**os.environ, **env}, capture_output=True)
    for name in FILES:
        assert (kept / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_another_seed_is_another_run(busy):
    assert not kavier.simulate({**BUSY, "seed": 6}).requests.equals(busy.requests)


def test_the_resolved_scenario_gives_the_same_result(kept, busy):
    assert_same_numbers(kavier.simulate(kept / "scenario.resolved.yaml"), busy)


def test_resolving_twice_changes_nothing(kept, busy):
    again = kavier.simulate(kept / "scenario.resolved.yaml")
    assert again.scenario == busy.scenario
    kept_tree = yaml.safe_load((kept / "scenario.resolved.yaml").read_text(encoding="utf-8"))
    assert parse_scenario(kept_tree) == busy.scenario


def test_the_resolved_scenario_has_no_engine_number_left_to_choose(busy):
    engine = busy.scenario.engine
    numbers = (engine.max_model_len, engine.max_num_seqs, engine.max_num_batched_tokens)
    assert all(isinstance(number, int) for number in numbers)


def test_requests_sent_all_at_once_are_so_again_from_the_resolved_scenario(tmp_path):
    """request_rate: inf survives YAML."""
    load = {"num_prompts": 20, "arrivals": {"request_rate": float("inf")},
            "prompt_tokens": {"mean": 50}, "output_tokens": {"mean": 4}}  # fmt: skip
    once = kavier.simulate({**BUSY, "workload": {"synthetic": load}})
    write_run(once, tmp_path / "run")
    assert once.requests["arrival_s"].n_unique() == 1
    assert_same_numbers(kavier.simulate(tmp_path / "run" / "scenario.resolved.yaml"), once)


@pytest.mark.parametrize("what", ["trace", "model"])
def test_a_run_of_a_relative_path_can_be_repeated_from_its_folder(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    trace(tmp_path, [row(0.0)])
    tree = replay("trace.jsonl")
    if what == "model":
        from kavier.ecosystem.models import model_entry

        config = dict(model_entry(tree["model"]).config)
        (tmp_path / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
        tree |= {"model": "./config.json", "workload": {"trace": str(tmp_path / "trace.jsonl")}}
    once = kavier.simulate(tree)
    write_run(once, tmp_path / "out" / "run")
    monkeypatch.chdir(tmp_path / "out")
    assert_same_numbers(kavier.simulate(tmp_path / "out" / "run" / "scenario.resolved.yaml"), once)


# --- The interface ------------------------------------------------------------------------------------


def test_a_mapping_a_path_and_a_scenario_mean_the_same(busy, tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(BUSY), encoding="utf-8")
    for scenario in (path, str(path), parse_scenario(BUSY)):
        assert_same_numbers(kavier.simulate(scenario), busy)


def test_a_trace_named_in_a_file_is_looked_for_beside_it(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    trace(tmp_path / "here", [row(0.0)])
    (tmp_path / "here" / "s.yaml").write_text(yaml.safe_dump(replay("trace.jsonl")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert kavier.simulate("here/s.yaml").summary["requests"]["finished"] == 1


@pytest.mark.parametrize("wrong", [None, 7, ["model"]])
def test_anything_else_is_no_scenario(wrong):
    with pytest.raises(InputError, match="not a scenario"):
        kavier.simulate(wrong)


def test_the_package_offers_its_interface_and_nothing_else():
    assert {name: getattr(kavier, name) for name in kavier.__all__}.keys() == set(kavier.__all__)
    assert kavier.Scenario is Scenario
    assert kavier.InputError is InputError
    with pytest.raises(AttributeError, match="simulat'"):
        kavier.simulat  # noqa: B018


def test_progress_hears_of_every_request(tmp_path):
    told: list[tuple[int, int]] = []
    tree = replay(trace(tmp_path, [row(0.0), row(0.1, 5000), row(0.2)]), engine={"max_model_len": 4096})
    kavier.simulate(tree, lambda ended, total: told.append((ended, total)))
    assert told == sorted(set(told))
    assert told[-1] == (3, 3)


def test_progress_changes_nothing(busy):
    assert_same_numbers(kavier.simulate(BUSY, lambda *_: None), busy)


# --- The summary --------------------------------------------------------------------------------------

POINTS = {"mean", "p50", "p90", "p99"}
PROMISED: dict[str, set[str]] = {
    "requests": {"arrived", "finished", "rejected", "unfinished"},
    **dict.fromkeys(("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"), POINTS),
    "throughput": {"requests_per_s", "output_tokens_per_s", "total_tokens_per_s"},
    "cache": {"queried_tokens", "hit_tokens", "hit_ratio"},
    "kv": {"blocks", "block_tokens", "peak_used_blocks"},
    "energy": {"gpu_kwh", "facility_kwh", "j_per_output_token"},
    "carbon": {"operational_gco2e", "gco2e_per_million_tokens"},
    "cost": {"usd", "usd_per_million_tokens"},
    "trust": {
        "timing_level",
        "load_factor",
        "limited_by",
        "nearest",
        "step_error",
        "sensitivity",
        "expected_error",
        "notes",
    },
}


def test_the_summary_holds_all_that_it_promises(busy):
    assert {"schema_version", "preemptions", "makespan_s"} <= busy.summary.keys()
    missing = {key: names - busy.summary[key].keys() for key, names in PROMISED.items()}
    assert not any(missing.values()), missing


KEYS = {"parts", "unit", "meaning", "formula", "source", "note"}


def test_every_metric_is_in_the_glossary_and_every_entry_is_a_metric(busy):
    assert set(glossary()) == busy.summary.keys() - {"schema_version"}
    for name, entry in glossary().items():
        assert (
            {"unit", "meaning"} <= entry.keys() <= {"parts", "unit", "meaning", "formula", "source", "note"}
        ), name


def numbers_in(node) -> list[float]:
    if isinstance(node, dict):
        return [number for value in node.values() for number in numbers_in(value)]
    return [node] if isinstance(node, int | float) else []


def test_the_summary_is_plain_json_without_nan(busy):
    text = summary_json(busy)
    assert json.loads(text) == busy.summary
    assert all(math.isfinite(number) for number in numbers_in(busy.summary))
    assert len(numbers_in(busy.summary)) > 40


def test_the_counts_are_those_of_the_requests_table(busy):
    summary, table = busy.summary, busy.requests
    done = table.filter(pl.col("status") == "finished")
    by_status = dict(table["status"].value_counts().iter_rows())
    finished, rejected = by_status["finished"], by_status["rejected_context"]
    assert summary["requests"] == {
        "arrived": 80, "finished": finished, "rejected": rejected, "unfinished": 0,
        "rejected_by_reason": {"context": rejected},
    }  # fmt: skip
    assert 80 == finished + rejected == len(table)  # law 1
    assert summary["preemptions"] == table["preemptions"].sum() == busy.timeline["preemptions"].sum()
    assert summary["cache"]["hit_tokens"] == table["cached_tokens"].sum() == busy.timeline["hit_tokens"].sum()
    assert summary["cache"]["queried_tokens"] == done["prompt_tokens"].sum()
    assert busy.timeline["decode_tokens"].sum() == busy.steps["decodes"].sum()
    assert busy.steps["sampled"].sum() == table["output_tokens"].sum()
    assert summary["kv"]["blocks"] == 159


def test_requests_come_in_the_order_of_the_workload(busy):
    assert busy.requests["request"].to_list() == list(range(80))
    workload = load_workload(busy.scenario).requests
    assert busy.requests["prompt_tokens"].equals(workload["prompt_tokens"])


# --- Nothing served, or next to nothing ---------------------------------------------------------------


def test_a_run_whose_requests_are_all_rejected_on_arrival_has_nulls_and_no_crash(tmp_path):
    rows = [row(0.0, 5000), row(2.0, 6000)]
    result = kavier.simulate(replay(trace(tmp_path, rows), engine={"max_model_len": 4096}))
    assert_nothing_served(result, reason="context")


def test_a_run_whose_requests_never_fit_in_kv_memory_has_nulls_and_no_crash(tmp_path):
    engine = {"num_gpu_blocks_override": 20, "max_model_len": 1024}
    result = kavier.simulate(replay(trace(tmp_path, [row(1.0, 500), row(3.0, 600)]), engine=engine))
    assert_nothing_served(result, reason="kv")


def assert_nothing_served(result, reason) -> None:
    summary = json.loads(summary_json(result))
    assert summary["requests"] == {
        "arrived": 2, "finished": 0, "rejected": 2, "unfinished": 0, "rejected_by_reason": {reason: 2},
    }  # fmt: skip
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert summary[name] == dict.fromkeys(("mean", "p50", "p90", "p99")), name
    assert summary["energy"]["j_per_output_token"] is None
    assert summary["makespan_s"] == 0.0
    assert result.requests["finish_s"].null_count() == 2


def test_nothing_served_has_no_price_and_no_carbon_per_token(tmp_path):
    engine = {"num_gpu_blocks_override": 20, "max_model_len": 1024}
    summary = kavier.simulate(replay(trace(tmp_path, [row(1.0, 500)]), engine=engine)).summary
    assert summary["cost"]["usd_per_million_tokens"] is None
    assert summary["carbon"]["gco2e_per_million_tokens"] is None


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_rejection_one_interval_behind_the_last_token_leaves_finite_numbers(tmp_path):
    engine = {"num_gpu_blocks_override": 20, "max_model_len": 1024}
    result = kavier.simulate(replay(trace(tmp_path, [row(0.0, 50, 2), row(1.0, 500)]), engine=engine))
    assert all(math.isfinite(number) for number in numbers_in(result.summary))


def test_answers_of_one_token_have_no_tpot_and_no_gaps(tmp_path):
    rows = [row(0.1 * i, 100, 1) for i in range(5)]
    summary = kavier.simulate(replay(trace(tmp_path, rows), slo={"tpot_s": 1e-6})).summary
    assert summary["tpot_s"] == summary["itl_s"] == dict.fromkeys(("mean", "p50", "p90", "p99"))
    assert summary["ttft_s"] == summary["e2e_s"]
    assert summary["goodput"]["good_requests"] == 5  # as vLLM's benchmark: a tpot of 0


def test_one_request_is_a_run(tmp_path):
    summary = kavier.simulate(replay(trace(tmp_path, [row(1e6)]))).summary
    assert summary["makespan_s"] == pytest.approx(summary["e2e_s"]["p99"])
    assert summary["throughput"]["requests_per_s"] == pytest.approx(1 / summary["makespan_s"])
    assert summary["utilization"]["busy_ratio"] == pytest.approx(1.0, rel=1e-6)


def test_a_sample_interval_that_needs_more_rows_than_memory_is_bad_input(tmp_path):
    """1e-16 s: no address space holds the rows, so that this test never fills any memory."""
    tree = replay(trace(tmp_path, [row(0.0), row(60.0)]), output={"sample_interval_s": 1e-16})
    with pytest.raises(InputError, match="sample_interval_s"):
        kavier.simulate(tree)


# --- Labels and notes ---------------------------------------------------------------------------------


def test_labels_go_with_their_requests(tmp_path):
    labels = [
        {"tenant": f"t{i}", "session_id": f"s{9 - i}", "slo_class": "gold" if i else None} for i in range(9)
    ]
    rows = [row(9.0 - i, 100 + i, **label) for i, label in enumerate(labels)]  # out of order on purpose
    table = kavier.simulate(replay(trace(tmp_path, rows))).requests
    found = {r["prompt_tokens"]: r for r in table.iter_rows(named=True)}
    for i, label in enumerate(labels):
        assert {name: found[100 + i][name] for name in label} == label


def test_a_trace_without_labels_has_no_label_columns(tmp_path):
    table = kavier.simulate(replay(trace(tmp_path, [row(0.0)]))).requests
    assert not {"tenant", "session_id", "model", "slo_class", "priority"} & set(table.columns)


def test_cut_answers_are_counted_in_a_note(tmp_path):
    rows = [row(0.0, 100, 500), row(1.0, 100, 28), row(2.0, 100, 29), row(3.0, 128, 1)]
    result = kavier.simulate(replay(trace(tmp_path, rows), engine={"max_model_len": 128}))
    assert "answers cut at max_model_len = 128: 2" in result.summary["trust"]["notes"]
    assert result.requests["output_tokens"].to_list() == [28, 28, 28, 0]
    assert result.summary["requests"]["rejected_by_reason"] == {"context": 1}


def test_what_reading_changed_is_counted_in_notes(tmp_path):
    rows = [row(5.0), row(1.0), row(2.0, output_tokens=0), row(3.0, prompt_tokens=0)]
    notes = notes_of(replay(trace(tmp_path, rows)))
    assert "rows out of order, sorted by arrival: 1" in notes
    assert "requests without output tokens, dropped (failed requests): 1" in notes
    assert "requests without prompt tokens, dropped: 1" in notes


@pytest.mark.parametrize("column", ["tenant", "model", "slo_class"])
def test_a_column_that_changes_nothing_is_named_in_a_note(tmp_path, column):
    assert f"column {column} of the trace is not used" in notes_of(
        replay(trace(tmp_path, [row(0.0, **{column: "x"})]))
    )


def test_an_unused_priority_is_named_in_a_note_and_a_used_one_is_not(tmp_path):
    source = trace(tmp_path, [row(0.0, priority=1), row(0.0, priority=0)])
    assert "column priority of the trace is not used" in notes_of(replay(source))
    assert "column priority" not in notes_of(replay(source, engine={"scheduling_policy": "priority"}))


def test_a_cache_that_cannot_hit_is_said_to(tmp_path):
    said = "does not tell which prompts share tokens"
    source = trace(tmp_path, [row(0.0)])
    assert said in notes_of(replay(source))
    assert said not in notes_of(replay(source, engine={"enable_prefix_caching": False}))
    (tmp_path / "hashed").mkdir()
    hashed = trace(tmp_path / "hashed", [row(0.0, 32, block_hashes=[1, 2], block_tokens=16)])
    assert said not in notes_of(replay(hashed))
    assert "answers never hit the prefix cache" in notes_of(replay(hashed))


def test_without_a_kv_cache_nothing_is_said_of_a_prefix_cache_that_answers_miss(tmp_path):
    source = trace(tmp_path, [row(0.0, 32, block_hashes=[1, 2], block_tokens=16)])
    assert "answers never hit the prefix cache" not in notes_of(replay(source, engine={"kv_cache": False}))


def test_a_limit_on_concurrency_that_moves_arrivals_is_said(tmp_path):
    """arrival_s in the requests table is then no longer the trace's, and TTFT counts from it."""
    source = trace(tmp_path, [row(0.0), row(0.0), row(0.0)])
    result = kavier.simulate(replay(source, workload={"max_concurrency": 1}))
    assert result.requests["arrival_s"].n_unique() == 3
    assert "max_concurrency" in "\n".join(result.summary["trust"]["notes"])


def test_think_times_without_parents_are_named_as_unused(tmp_path):
    assert "think_s" in notes_of(replay(trace(tmp_path, [row(0.0, think_s=3.0), row(0.0, think_s=2.0)])))


def test_a_priority_policy_without_priorities_is_said_to_be_first_come_first_served(tmp_path):
    tree = replay(trace(tmp_path, [row(0.0)]), engine={"scheduling_policy": "priority"})
    assert "priority" in notes_of(tree)


ASYNCHRONOUS = "asynchronous loop; answers are taken to end at max_tokens"
SYNCHRONOUS = "synchronous loop; by default it is asynchronous"


@pytest.mark.parametrize(
    ("engine", "version", "said"),
    [
        ({}, "0.33", ASYNCHRONOUS),
        ({"vllm_version": "0.14"}, "0.14", ASYNCHRONOUS),
        ({"async_scheduling": False}, "0.33", SYNCHRONOUS),
        ({"vllm_version": "0.11"}, "0.11", None),  # there was no other
        ({"kv_cache": False}, "0.33", None),
    ],
)
def test_a_loop_that_could_be_another_is_named_with_its_release(tmp_path, engine, version, said):
    notes = notes_of(replay(trace(tmp_path, [row(0.0)]), engine=engine))
    assert [loop for loop in (ASYNCHRONOUS, SYNCHRONOUS) if f"vLLM {version}'s {loop}" in notes] == (
        [said] if said else []
    )


def test_which_engine_played_is_said_with_the_reason(tmp_path):
    source = trace(tmp_path, [row(0.0), row(0.0)])
    compiled = kavier.simulate(replay(source)).summary["engine"]
    assert compiled == {"name": "kernel", "why": None}
    forgetful = kavier.simulate(replay(source, engine={"kv_cache": False})).summary["engine"]
    assert forgetful == {"name": "reference", "why": "kv_cache is off"}


def open_loop(**engine: Any) -> dict[str, Any]:
    """The busy scenario in small chunks, and nobody waits for anybody's answer."""
    load = dict(BUSY["workload"]["synthetic"])
    load["prefixes"] = {"system_prompts": 2, "system_prompt_tokens": 100}
    chunks = {"max_num_batched_tokens": 256, "long_prefill_token_threshold": 100}
    return {**BUSY, "workload": {"synthetic": load}, "engine": {**BUSY["engine"], **chunks, **engine}}


@pytest.mark.parametrize("limit", [None, 60])
@pytest.mark.parametrize("version", RULES)
def test_every_release_gives_the_same_result_in_both_engines(monkeypatch, version, limit):
    busy = open_loop(vllm_version=version)
    busy["workload"]["max_concurrency"] = limit
    compiled = kavier.simulate(busy)
    monkeypatch.setattr("kavier.runner.covers", lambda *_, **__: "a test")
    reference = kavier.simulate(busy)
    assert (compiled.summary.pop("engine")["name"], reference.summary.pop("engine")["name"]) == (
        "kernel", "reference",
    )  # fmt: skip
    mine_j, theirs_j = (result.requests["energy_j"].to_numpy() for result in (compiled, reference))
    np.testing.assert_allclose(mine_j, theirs_j, rtol=1e-9)
    assert_same_numbers(without_energies(compiled), without_energies(reference))
    assert compiled.summary["preemptions"] > 0


def without_energies(result: Result) -> Result:
    """Those of requests are sums in another order."""
    del result.summary["energy_j"]
    return dataclasses.replace(result, requests=result.requests.drop("energy_j"))


def test_releases_differ():
    """Rules matter to a cramped fleet; otherwise the test above would tell little."""
    found = [kavier.simulate(open_loop(vllm_version=version)).requests["finish_s"] for version in RULES]
    for index, one in enumerate(found):
        assert not any(one.equals(other) for other in found[:index])


def test_the_level_of_the_step_times_is_named(busy):
    assert busy.summary["trust"]["timing_level"] == "kernels"
    assert any("power" in note for note in busy.summary["trust"]["notes"])
    assert len(busy.summary["trust"]["notes"]) == len(set(busy.summary["trust"]["notes"]))


# --- Platform -----------------------------------------------------------------------------------------


def platform_of(**sections):
    return build_platform(parse_scenario({**BUSY, **sections}))


def test_given_prices_and_intensity_win_over_the_catalogs():
    given = platform_of(
        prices={"usd_per_gpu_hour": 1.25, "usd_per_kwh": 0.0}, site={"carbon_gco2_per_kwh": 0.0}
    )
    assert (given.usd_per_gpu_hour, given.usd_per_kwh, given.gco2_per_kwh) == (1.25, 0.0, 0.0)
    assert given.intensity([0.0, 5.0], [1.0, 1.0]).tolist() == [0.0, 0.0]
    assert sum("as given" in note for note in given.notes) == 3


def test_defaults_of_the_catalogs_are_noted_with_their_source():
    notes = "\n".join(platform_of().notes)
    assert "rent 2.95 USD per GPU-hour: median of" in notes
    assert "carbon intensity 473 gCO2e/kWh in WORLD" in notes


@pytest.mark.parametrize(
    ("site", "problem"),
    [
        ({"start": "2024-03-01T00:00Z"}, "site.start without site.carbon_series"),
        ({"carbon_series": "x.csv"}, "needs site.start"),
        ({"carbon_series": "x.csv", "start": "2024-03-01T00:00Z", "carbon_gco2_per_kwh": 5}, "contradictory"),
        ({"region": "Wrold"}, "WORLD"),
    ],
)
def test_sites_that_contradict_themselves_are_bad_input(site, problem):
    with pytest.raises(InputError, match=problem):
        platform_of(site=site)


def test_a_gpu_without_a_listed_price_has_no_cost(tmp_path, monkeypatch):
    monkeypatch.setattr("kavier.ecosystem.platform.price_of", lambda _: None)
    result = kavier.simulate(replay(trace(tmp_path, [row(0.0)])))
    assert result.summary["cost"]["usd"] is None
    assert result.summary["cost"]["usd_per_million_tokens"] is None
    assert result.summary["cost"]["gpu_hours"] > 0
    assert any("no rent listed for H100-SXM" in note for note in result.summary["trust"]["notes"])


def test_more_blocks_than_fit_are_noted(tmp_path):
    tree = replay(trace(tmp_path, [row(0.0)]), engine={"num_gpu_blocks_override": 10**6})
    assert "num_gpu_blocks_override = 1000000 is more than" in notes_of(tree)


def test_an_empty_requests_table_column_is_never_guessed(busy):
    """All tables are numbers, labels and nulls: no NaN."""
    for name in TABLES:
        table = getattr(busy, name)
        floats = table.select(pl.selectors.float())
        assert not floats.select(pl.any_horizontal(pl.all().is_nan().any())).item(), name


def test_the_glossary_names_every_part_of_every_metric(busy):
    for name, entry in glossary().items():
        value = busy.summary[name]
        if isinstance(value, dict):
            assert entry["parts"].split() == list(value), name


@pytest.mark.parametrize("origin_s", [1.7e9, 1.7e12])
def test_the_origin_of_the_traces_clock_changes_no_number(tmp_path, origin_s):
    """Arrivals are exact in all three clocks."""
    found = []
    for origin in (0.0, origin_s):
        rows = [row(origin + 0.25 * i, 200, 30) for i in range(40)]
        found.append(kavier.simulate(replay(trace(tmp_path, rows))).summary)
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "energy"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6), name


@pytest.mark.parametrize(("requests", "told"), [(20, False), (MANY + 1, True)])
def test_a_long_run_in_the_reference_engine_is_told_beforehand(caplog, requests, told):
    lengths = {"kind": "fixed", "mean": 2}
    load = {"num_prompts": requests, "prompt_tokens": lengths, "output_tokens": lengths}
    arrivals = {"process": "poisson", "request_rate": 1000.0}
    scenario = {"model": "meta-llama/Llama-3.1-8B", "fleet": {"gpu": "H100"}, "engine": {"kv_cache": False}}
    kavier.simulate({**scenario, "workload": {"synthetic": {**load, "arrivals": arrivals}}})
    assert ("kv_cache is off: the reference engine plays" in caplog.text) == told


@pytest.mark.parametrize(
    ("model", "engine", "complaint"),
    [
        (
            "meta-llama/Llama-3.1-8B",
            {"enable_expert_parallel": True},
            "engine.enable_expert_parallel: .* has no experts",
        ),
        (
            "meta-llama/Llama-3.1-8B",
            {"data_parallel_size": 2},
            "engine.data_parallel_size: .* fleet.replicas",
        ),
        (
            "openai/gpt-oss-20b",
            {"data_parallel_size": 2},
            "fleet.replicas: .* a multiple of engine.data_parallel_size, 2",
        ),
        (
            "openai/gpt-oss-20b",
            {"data_parallel_size": 64, "enable_expert_parallel": True},
            "engine.data_parallel_size: .* has 32 experts a layer, too few for 64 GPUs .*at most 32 GPUs",
        ),
    ],
)
def test_experts_are_shared_by_engines_that_exist_of_models_that_have_some(model, engine, complaint):
    synthetic = {"num_prompts": 5}
    scenario = {
        "model": model,
        "workload": {"synthetic": synthetic},
        "fleet": {"gpu": "H100"},
        "engine": engine,
    }
    with pytest.raises(InputError, match=complaint):
        kavier.simulate(scenario)
