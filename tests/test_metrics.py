"""Metrics by a second road: vLLM's benchmark over per-request lists, energy and carbon by brute force."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kavier
from kavier.metrics.distribution import summarise
from kavier.metrics.energy import with_energy
from kavier.metrics.latency import goodput, latency, throughput, window, with_latencies
from kavier.metrics.power import PowerModel, additive, saturating
from kavier.scenario import Slo
from kavier.simulation.request import Request

CLOSE = 1e-9
POINTS = ("mean", "p50", "p90", "p99")

# --- Distributions ------------------------------------------------------------------------------------

weighted = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=30)


@given(weighted)
def test_weighted_percentiles_are_those_of_the_values_written_out(pairs):
    values, counts = zip(*pairs, strict=True)
    written_out = np.repeat(values, counts)
    summary = summarise(values, counts)
    if not len(written_out):
        assert summary == dict.fromkeys(POINTS)
        return
    assert summary["mean"] == pytest.approx(written_out.mean(), rel=1e-12)
    for q in (50, 90, 99):
        assert summary[f"p{q}"] == pytest.approx(np.percentile(written_out, q), rel=1e-12, abs=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_plain_percentiles_are_numpys(values):
    summary = summarise(values)
    assert [summary[f"p{q}"] for q in (50, 90, 99)] == np.percentile(values, [50, 90, 99]).tolist()


@given(st.floats(0, 1e6), st.integers(1, 10**9))
def test_one_value_is_all_of_its_percentiles_however_often_it_occurs(value, count):
    summary = summarise([value], [count])
    assert [summary[f"p{q}"] for q in (50, 90, 99)] == [value] * 3
    assert summary["mean"] == pytest.approx(value, rel=1e-15)


def test_of_nothing_there_is_no_mean_and_no_percentile():
    assert summarise([]) == summarise([], []) == summarise([1.0], [0]) == dict.fromkeys(POINTS)


def test_a_value_that_never_occurs_counts_for_nothing():
    assert summarise([1.0, 99.0], [3, 0]) == summarise([1.0, 1.0, 1.0])


# --- A run, and what each request saw -----------------------------------------------------------------


@dataclass
class Served:
    """A request as the client of `vllm bench serve` sees it."""

    success: bool
    prompt_len: int
    output_tokens: int
    start_s: float
    token_times: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.start_s

    @property
    def latency(self) -> float:
        return self.token_times[-1] - self.start_s

    @property
    def itl(self) -> list[float]:
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]


def trace(folder, rows) -> str:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def scenario(source, **sections) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "model": "meta-llama/Llama-3.1-8B",
        "fleet": {"gpu": "H100-SXM"},
        "workload": {"trace": source} if isinstance(source, str) else {"synthetic": source},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return tree


def load(seed, count=60, rate=60.0, output=40) -> list[dict[str, Any]]:
    """Requests of very different lengths, some of one token."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, count)) + 2.5
    lengths = np.ceil(rng.lognormal([5.0, np.log(output)], 1.0, (count, 2))).astype(int)
    return [
        {
            "arrival_s": round(float(at), 6),
            "prompt_tokens": int(prompt),
            "output_tokens": 1 if row % 7 == 0 else int(answer),
            "priority": int(rng.integers(0, 3)),
        }
        for row, (at, (prompt, answer)) in enumerate(zip(arrival_s, lengths, strict=True))
    ]


CRAMPED = {"num_gpu_blocks_override": 90, "max_model_len": 1200, "max_num_seqs": 16}
SYNCHRONOUS = {"async_scheduling": False}
RUNS: dict[str, dict[str, Any]] = {
    "by an old release": {"engine": {"vllm_version": "0.11"}},
    "synchronous, preempted": {"engine": CRAMPED | SYNCHRONOUS},
    "two calm replicas": {"fleet": {"replicas": 2}},
    "preempted for want of blocks": {"engine": CRAMPED},
    "by priority": {"engine": CRAMPED | {"scheduling_policy": "priority"}},
    "some prompts too long": {"engine": {"max_model_len": 300}},
    "closed loop": {"workload": {"max_concurrency": 4}},
    "small chunks": {"engine": {"max_num_batched_tokens": 64, "max_num_seqs": 32}},
    "without a KV cache": {"engine": {"kv_cache": False}},
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """A result, and every request with the times of its tokens, logged where tokens are appended."""
    times: dict[int, list[float]] = {}
    plain = Request.append_token

    def logged(self, now_s):
        times.setdefault(self.row, []).append(now_s)
        plain(self, now_s)

    source = trace(tmp_path_factory.mktemp("run"), load(seed=7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "append_token", logged)
        patch.setattr("kavier.runner.covers", lambda *_, **__: "the kernel appends no tokens")
        result = kavier.simulate(scenario(source, **RUNS[request.param]))
    origin_s = math.floor(min(result.requests["arrival_s"].to_list()))  # engines play from there
    served = [
        Served(row["status"] == "finished", row["prompt_tokens"], row["output_tokens"], row["arrival_s"],
               [origin_s + time_s for time_s in times.get(row["request"], [])])
        for row in result.requests.iter_rows(named=True)
    ]  # fmt: skip
    return request.param, result, served


def naive_benchmark(outputs, dur_s, slo) -> dict[str, Any]:
    """`calculate_metrics` of vllm bench serve 0.33, in seconds."""
    ttfts, tpots, all_tpots, itls, e2els = [], [], [], [], []
    completed = total_input = total_output = good = 0
    for out in outputs:
        if not out.success:
            continue
        tpot = 0.0
        if out.output_tokens > 1:
            tpot = (out.latency - out.ttft) / (out.output_tokens - 1)
            tpots.append(tpot)
        all_tpots.append(tpot)
        itls += out.itl
        ttfts.append(out.ttft)
        e2els.append(out.latency)
        completed += 1
        total_input += out.prompt_len
        total_output += out.output_tokens
    for values in zip(ttfts, all_tpots, e2els, strict=True):
        good += all(limit >= value for limit, value in zip(slo, values, strict=True))
    lists = {"ttft_s": ttfts, "tpot_s": tpots, "itl_s": itls, "e2e_s": e2els}
    return {
        "completed": completed,
        "good": good,
        "request_throughput": completed / dur_s,
        "request_goodput": good / dur_s,
        "output_throughput": total_output / dur_s,
        "total_token_throughput": (total_input + total_output) / dur_s,
        **{
            name: {"mean": np.mean(values), **{f"p{q}": np.percentile(values, q) for q in (50, 90, 99)}}
            for name, values in lists.items()
        },
    }


def finished(requests: pl.DataFrame) -> pl.DataFrame:
    return requests.filter(pl.col("status") == "finished")


def duration_of(outputs):
    return max(out.token_times[-1] for out in outputs if out.success) - min(out.start_s for out in outputs)


def test_the_runs_cover_what_they_are_named_for(run):
    name, result, served = run
    cramped = ("preempted for want of blocks", "by priority", "synchronous, preempted")
    assert (name in cramped) == (result.summary["preemptions"] > 0)
    assert (name == "some prompts too long") == (result.summary["requests"]["rejected"] > 0)
    assert any(out.output_tokens == 1 for out in served)
    assert result.summary["requests"]["finished"] > 30


def test_every_output_token_has_a_time(run):
    _, _, served = run
    assert [len(out.token_times) for out in served] == [out.output_tokens for out in served]


def test_latencies_are_those_of_vllms_benchmark(run):
    _, result, served = run
    naive = naive_benchmark(served, duration_of(served), (np.inf,) * 3)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert result.summary[name] == pytest.approx(naive[name], rel=CLOSE, abs=1e-12), name
    itl = result.summary["itl_s"]
    assert itl["mean"] == pytest.approx(naive["itl_s"]["mean"], rel=CLOSE)
    for q in ("p50", "p90", "p99"):  # gaps are rounded down, by 2^-12 at most
        exact = naive["itl_s"][q]
        assert exact * (1 - 2**-12) - 1e-9 <= itl[q] <= exact + 1e-9, q


def test_throughput_is_that_of_vllms_benchmark(run):
    _, result, served = run
    naive = naive_benchmark(served, duration_of(served), (np.inf,) * 3)
    assert result.summary["makespan_s"] == pytest.approx(duration_of(served), rel=CLOSE)
    assert result.summary["throughput"] == pytest.approx(
        {
            "requests_per_s": naive["request_throughput"],
            "output_tokens_per_s": naive["output_throughput"],
            "total_tokens_per_s": naive["total_token_throughput"],
        },
        rel=CLOSE,
    )


@pytest.mark.parametrize("quantiles", [(0.5, None, None), (None, 0.3, None), (0.8, 0.8, 0.8), (0.3, 0.5, 1)])
def test_goodput_is_that_of_vllms_benchmark(run, quantiles):
    """Limits at quantiles of the run, so that they split it."""
    _, result, served = run
    measured = [
        result.requests[name].drop_nulls().quantile(q or 0.0, interpolation="nearest") or 0.0
        for name, q in zip(("ttft_s", "tpot_s", "e2e_s"), quantiles, strict=True)
    ]
    limits = [None if q is None else value * (1 + 1e-6) for q, value in zip(quantiles, measured, strict=True)]
    slo = Slo(ttft_s=limits[0], tpot_s=limits[1], e2e_s=limits[2])
    naive = naive_benchmark(
        served, duration_of(served), [np.inf if limit is None else limit for limit in limits]
    )
    done = finished(result.requests)
    found = goodput(done, slo, arrived=len(served), makespan_s=result.summary["makespan_s"])
    assert found is not None
    assert 0 < naive["good"] <= naive["completed"]
    assert found["good_requests"] == naive["good"]
    assert found["good_ratio"] == naive["good"] / len(served)
    assert found["requests_per_s"] == pytest.approx(naive["request_goodput"], rel=CLOSE)


def test_every_gap_between_tokens_is_in_the_inter_token_latency(run):
    """Pooled: as many gaps as tokens behind first ones; each request's gaps add up to e2e - ttft."""
    _, result, served = run
    gaps = [gap for out in served for gap in out.itl]
    assert len(gaps) == sum(out.output_tokens - 1 for out in served if out.success)
    assert result.summary["itl_s"]["mean"] * len(gaps) == pytest.approx(sum(gaps), rel=CLOSE)
    total = result.requests.select((pl.col("e2e_s") - pl.col("ttft_s")).sum()).item()
    assert total == pytest.approx(sum(gaps), rel=CLOSE)


def test_queue_time_is_zero_or_more_and_ends_before_the_first_token(run):
    _, result, _ = run
    done = finished(result.requests)
    assert (done["queue_s"] >= 0).all()
    assert (done["queue_s"] < done["ttft_s"]).all()
    assert result.summary["queue_s"]["mean"] == pytest.approx(done["queue_s"].mean(), rel=CLOSE)


# --- Latency by hand ----------------------------------------------------------------------------------


def requests_of(*rows) -> pl.DataFrame:
    """(arrival, scheduled, first token, finish, output tokens, status), 10 prompt tokens each."""
    return with_latencies(
        pl.DataFrame(
            [(*row, 10) for row in rows],
            schema={
                "arrival_s": pl.Float64, "first_scheduled_s": pl.Float64, "first_token_s": pl.Float64,
                "finish_s": pl.Float64, "output_tokens": pl.Int64, "status": pl.String,
                "prompt_tokens": pl.Int64,
            },
            orient="row",
        )
    )  # fmt: skip


NO_GAPS = pl.DataFrame({"gap_s": [], "count": []}, schema={"gap_s": pl.Float64, "count": pl.Int64})
REJECTED = (0.0, None, None, None, 0, "rejected_context")
ONE_TOKEN = (1.0, 1.5, 2.0, 2.0, 1, "finished")
FIVE_TOKENS = (1.0, 1.25, 2.0, 4.0, 5, "finished")


def test_latencies_by_hand():
    row = requests_of(FIVE_TOKENS).row(0, named=True)
    assert (row["ttft_s"], row["e2e_s"], row["tpot_s"], row["queue_s"]) == (1.0, 3.0, 0.5, 0.25)


def test_one_token_has_no_time_per_output_token():
    table = requests_of(ONE_TOKEN, FIVE_TOKENS)
    assert table["tpot_s"].to_list() == [None, 0.5]
    assert latency(table, NO_GAPS)["tpot_s"] == dict.fromkeys(POINTS, 0.5)
    assert latency(requests_of(ONE_TOKEN), NO_GAPS)["tpot_s"] == dict.fromkeys(POINTS)


def test_a_rejected_request_has_no_latency_but_opens_the_window():
    table = requests_of(REJECTED, ONE_TOKEN)
    done = finished(table)
    assert latency(done, NO_GAPS)["ttft_s"] == dict.fromkeys(POINTS, 1.0)
    assert window(table, 2.0) == (0.0, 2.0)
    assert throughput(done, 2.0) == {
        "requests_per_s": 0.5, "output_tokens_per_s": 0.5, "total_tokens_per_s": 5.5,
    }  # fmt: skip


def test_the_window_of_a_run_without_an_answer_is_empty():
    assert window(requests_of(REJECTED), None) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        ({"ttft_s": 1.0}, 2),  # met exactly
        ({"ttft_s": 0.999}, 0),
        ({"tpot_s": 0.4}, 1),  # one token counts as a tpot of 0
        ({"tpot_s": 0.5}, 2),
        ({"e2e_s": 2.9, "ttft_s": 1.0}, 1),
        ({"e2e_s": 3.0, "tpot_s": 0.4}, 1),
    ],
)
def test_goodput_by_hand(objectives, good):
    done = requests_of(ONE_TOKEN, FIVE_TOKENS)  # of three that arrived
    found = goodput(done, Slo(**objectives), arrived=3, makespan_s=4.0)
    assert found == {"good_requests": good, "good_ratio": good / 3, "requests_per_s": good / 4}


def test_without_objectives_there_is_no_goodput():
    assert goodput(requests_of(ONE_TOKEN), Slo(), arrived=1, makespan_s=4.0) is None


def test_the_mean_gap_is_exact_though_gaps_are_counted_in_bins():
    """Five tokens in 2 s, another five in 3 s; the counted gaps are a little shorter."""
    table = requests_of(FIVE_TOKENS, (1.0, 1.25, 2.0, 5.0, 5, "finished"))
    counted = pl.DataFrame({"gap_s": [0.4999, 0.7499], "count": [4, 4]})
    summary = latency(table, counted)["itl_s"]
    assert summary["mean"] == 5 / 8
    assert summary["p99"] == 0.7499


# --- Energy, carbon and cost of a run, by a second road -----------------------------------------------


def gpu(name="H100-SXM"):
    from kavier.ecosystem.gpu import find_gpu

    return find_gpu(name)


def bf16_power(made=saturating) -> PowerModel:
    power: PowerModel = made(gpu(), gpu().flops_per_s["bf16"])
    return power


def steps_energy_j(result, gpus) -> dict[int, float]:
    """Replica -> joules of its steps, one at a time, from FLOPs and bytes."""
    power = bf16_power()
    total: dict[int, float] = {}
    for step in result.steps.filter(pl.col("duration_s") > 0).iter_rows(named=True):
        t = step["duration_s"]
        watts = float(power.power_w(step["flops"] / t, step["bytes"] / t))
        total[step["replica"]] = total.get(step["replica"], 0.0) + watts * t * gpus
    return total


@pytest.fixture(scope="module", params=[(1, 1), (3, 1), (2, 2)], ids=["1", "3", "2xTP2"])
def fleet_run(request, tmp_path_factory):
    replicas, gpus = request.param
    tree = scenario(
        trace(tmp_path_factory.mktemp("fleet"), load(seed=1, rate=15.0)),
        fleet={"replicas": replicas},
        engine={"tensor_parallel_size": gpus},
        site={"pue": 1.3, "carbon_gco2_per_kwh": 250.0},
        prices={"usd_per_gpu_hour": 2.0, "usd_per_kwh": 0.2},
        output={"sample_interval_s": 0.3, "steps": True},
    )
    return replicas, gpus, kavier.simulate(tree)


def test_energy_of_the_whole_is_the_sum_over_replicas(fleet_run):
    """Law 3: each replica's steps, and its idle time at the power of a loaded, idle GPU."""
    replicas, gpus, result = fleet_run
    by_steps = steps_energy_j(result, gpus)
    makespan_s = result.summary["makespan_s"]
    rows = dict(result.timeline.group_by("replica").agg(pl.col("energy_j").sum()).iter_rows())
    assert len(rows) == replicas
    for replica, energy_j in rows.items():
        busy_s = result.steps.filter(pl.col("replica") == replica)["duration_s"].sum()
        idle_j = (makespan_s - busy_s) * gpu().loaded_idle_w * gpus
        assert energy_j == pytest.approx(by_steps[replica] + idle_j, rel=CLOSE)
    assert result.summary["energy"]["gpu_kwh"] == pytest.approx(sum(rows.values()) / 3600 / 1000, rel=1e-12)


def test_carbon_and_cost_of_the_whole_by_hand(fleet_run):
    """Law 7: J -> Wh -> kWh -> g; GPU-hours -> USD."""
    replicas, gpus, result = fleet_run
    energy, carbon, cost = (result.summary[name] for name in ("energy", "carbon", "cost"))
    gpu_wh = result.timeline["energy_j"].sum() / 3600
    tokens = result.requests.select(pl.sum("prompt_tokens") + pl.sum("output_tokens")).item()
    grams = gpu_wh * 1.3 * 250 / 1000
    assert energy["facility_kwh"] == pytest.approx(gpu_wh * 1.3 / 1000, rel=CLOSE)
    assert energy["j_per_output_token"] * result.requests["output_tokens"].sum() == pytest.approx(
        gpu_wh * 3600, rel=CLOSE
    )
    assert carbon["operational_gco2e"] == pytest.approx(grams, rel=CLOSE)
    assert carbon["gco2e_per_million_tokens"] == pytest.approx(grams / tokens * 1e6, rel=CLOSE)
    assert carbon["mean_gco2_per_kwh"] == pytest.approx(250.0, rel=CLOSE)
    usd = result.summary["makespan_s"] / 60 / 60 * replicas * gpus * 2.0
    assert cost["usd"] == pytest.approx(usd, rel=CLOSE)
    assert cost["usd_per_million_tokens"] == pytest.approx(usd / tokens * 1e6, rel=CLOSE)
    assert cost["usd_per_request"] == pytest.approx(usd / len(result.requests), rel=CLOSE)
    assert cost["electricity_usd"] == pytest.approx(gpu_wh * 1.3 / 1000 * 0.2, rel=CLOSE)


def test_utilisation_is_over_all_replicas_and_the_makespan(fleet_run):
    replicas, _, result = fleet_run
    use, available_s = result.summary["utilization"], replicas * result.summary["makespan_s"]
    steps = result.steps
    peak = gpu()
    assert use["busy_ratio"] == pytest.approx(steps["duration_s"].sum() / available_s, rel=CLOSE)
    assert use["mfu"] == pytest.approx(
        steps["flops"].sum() / peak.flops_per_s["bf16"] / available_s, rel=CLOSE
    )
    assert use["mbu"] == pytest.approx(
        steps["bytes"].sum() / peak.bandwidth_bytes_per_s / available_s, rel=CLOSE
    )
    running = (steps["running"] * steps["duration_s"]).sum() / available_s
    assert use["mean_running_requests"] == pytest.approx(running, rel=CLOSE)
    assert all(0 < use[share] <= 1 for share in ("busy_ratio", "mfu", "mbu"))


def test_kv_use_is_weighted_by_time(fleet_run):
    replicas, _, result = fleet_run
    kv, steps = result.summary["kv"], result.steps
    block_seconds = (steps["used_blocks"] * steps["duration_s"]).sum()
    capacity = kv["blocks"] * replicas * result.summary["makespan_s"]
    assert kv["mean_used_ratio"] == pytest.approx(block_seconds / capacity, rel=CLOSE)
    assert kv["peak_used_blocks"] == steps["used_blocks"].max()


def test_a_step_without_work_draws_idle_power():
    steps = pl.DataFrame({"duration_s": [0.001, 0.0], "flops": [0.0, 0.0], "bytes": [0.0, 0.0]})
    for made in (saturating, additive):
        power = bf16_power(made)
        assert with_energy(steps, power, 4)["energy_j"].to_list() == pytest.approx(
            [0.001 * gpu().loaded_idle_w * 4, 0.0]
        )


# --- Carbon that follows the hour ---------------------------------------------------------------------

BEGIN = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
HOURLY = [120.0, 480.0, 30.0, 900.0]


def series(folder) -> str:
    path = folder / "carbon.csv"
    lines = [
        f"{BEGIN + timedelta(hours=hour):%Y-%m-%d %H:%M:%S},{value}" for hour, value in enumerate(HOURLY)
    ]
    path.write_text("timestamp,carbon_intensity\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def brute_force_grams(result, offset_s, pue) -> float:
    """Each step, and each pause before it, cut at whole hours, at the power of that time."""
    gpus, idle_w, grams = 1, gpu().loaded_idle_w, 0.0
    power = bf16_power()
    start_s = result.requests["arrival_s"].min()
    end_s = start_s + result.summary["makespan_s"]
    for replica in range(result.scenario.fleet.replicas):
        now_s, spans = start_s, []
        lasting = result.steps.filter(pl.col("replica") == replica, pl.col("duration_s") > 0)
        for step in lasting.iter_rows(named=True):
            t = step["duration_s"]
            spans.append((now_s, step["start_s"], idle_w))
            watts = float(power.power_w(step["flops"] / t, step["bytes"] / t))
            spans.append((step["start_s"], step["start_s"] + t, watts))
            now_s = step["start_s"] + t
        spans.append((now_s, end_s, idle_w))
        for begin, end, watts in spans:
            for hour, intensity in enumerate(HOURLY):
                inside_s = min(end + offset_s, 3600.0 * (hour + 1)) - max(begin + offset_s, 3600.0 * hour)
                grams += max(0.0, inside_s) * watts * gpus / 3.6e6 * pue * intensity
    return grams


@pytest.mark.parametrize("interval_s", [0.5, 1.0, 10.0])
def test_carbon_with_an_hourly_series_equals_brute_force_integration(tmp_path, interval_s):
    """A run of two hours from 12:30: it sees parts of three hours, in rows that end on whole hours."""
    rows = [
        {"arrival_s": 10.0 * i, "prompt_tokens": 100 + 7 * i, "output_tokens": 5 + i % 30} for i in range(720)
    ]
    tree = scenario(
        trace(tmp_path, rows),
        fleet={"replicas": 2},
        site={"carbon_series": series(tmp_path), "start": "2024-03-01T12:30:00Z", "pue": 1.25},
        output={"sample_interval_s": interval_s, "steps": True},
    )
    result = kavier.simulate(tree)
    expected = brute_force_grams(result, offset_s=1800.0, pue=1.25)
    assert result.summary["carbon"]["operational_gco2e"] == pytest.approx(expected, rel=CLOSE)
    flat_grams = result.summary["energy"]["facility_kwh"] * np.mean(HOURLY)
    assert result.summary["carbon"]["operational_gco2e"] != pytest.approx(flat_grams, rel=0.05)


def test_carbon_of_a_constant_load_is_exact_in_rows_longer_than_the_hour(tmp_path):
    """Nothing runs but the idle GPU (one token at each end): the mean intensity of each row is exact."""
    rows = [{"arrival_s": at, "prompt_tokens": 1, "output_tokens": 1} for at in (0.0, 7200.0)]
    tree = scenario(
        trace(tmp_path, rows),
        site={"carbon_series": series(tmp_path), "start": "2024-03-01T12:30:00Z"},
        output={"sample_interval_s": 5000.0, "steps": True},
    )
    mean = kavier.simulate(tree).summary["carbon"]["mean_gco2_per_kwh"]
    assert mean == pytest.approx((120.0 * 0.5 + 480.0 + 30.0 * 0.5) / 2, rel=1e-4)
