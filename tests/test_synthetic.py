"""Synthetic workloads: the laws of arrivals, lengths and prefixes, and the presets against their targets."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kavier.errors import InputError
from kavier.scenario import Arrivals, Lengths, Prefixes, Synthetic
from kavier.workload.arrivals import arrival_times
from kavier.workload.presets import find_preset, preset_names, resolve
from kavier.workload.statistics import describe
from kavier.workload.synthetic import generate, read_spec
from kavier.workload.table import Workload

FIXED = Lengths(kind="fixed", mean=100)
HALF_AND_HALF = ((0.0, 0.0), (0.5, 0.0), (1.0, 4.0))


def load(seed: int = 0, **fields) -> Workload:
    defaults = {"num_prompts": 2000, "prompt_tokens": FIXED, "output_tokens": FIXED}
    return generate(Synthetic(**(defaults | fields)), seed)


def column(workload: Workload, name: str) -> np.ndarray:
    return workload.requests[name].to_numpy()


# --- arrivals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_with_a_count_the_last_request_lands_at_count_over_rate_as_in_vllm(process):
    arrivals = Arrivals(process=process, request_rate=4.0, burstiness=0.5 if process == "gamma" else 1.0)
    times = column(load(arrivals=arrivals), "arrival_s")
    assert len(times) == 2000
    assert times[-1] == pytest.approx(500.0)
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_cv_of_their_shape(burstiness):
    arrivals = Arrivals(process="gamma", request_rate=10, burstiness=burstiness)
    described = describe(load(arrivals=arrivals, num_prompts=50_000))
    assert described["gap_cv"] == pytest.approx(burstiness**-0.5, rel=0.05)
    assert described["burstiness"] == pytest.approx(burstiness, rel=0.1)
    assert described["rate_per_s"] == pytest.approx(10, rel=0.01)


def test_gamma_of_burstiness_one_looks_like_poisson():
    gamma = load(arrivals=Arrivals(process="gamma", request_rate=1, burstiness=1), num_prompts=50_000)
    poisson = load(arrivals=Arrivals(process="poisson", request_rate=1), num_prompts=50_000)
    at = [0.1, 0.5, 0.9]
    gaps = [np.quantile(np.diff(column(w, "arrival_s")), at) for w in (gamma, poisson)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.05)


def test_constant_arrivals_keep_one_gap():
    times = column(load(arrivals=Arrivals(process="constant", request_rate=8)), "arrival_s")
    assert np.diff(times) == pytest.approx(np.full(1999, 0.125))


def test_an_infinite_rate_sends_all_at_once():
    assert not column(load(arrivals=Arrivals(request_rate=math.inf)), "arrival_s").any()


def test_a_duration_ends_the_load_and_leaves_the_count_to_chance():
    counts = [
        len(load(s, num_prompts=None, duration_s=1000, arrivals=Arrivals(request_rate=5)).requests)
        for s in range(20)
    ]
    assert np.mean(counts) == pytest.approx(5000, rel=0.02)
    assert np.std(counts) == pytest.approx(5000**0.5, rel=0.6)


@given(count=st.integers(1, 200), duration_s=st.floats(1, 100), seed=st.integers(0, 50))
def test_with_both_stops_the_first_one_holds(count, duration_s, seed):
    arrivals = Arrivals(process="constant", request_rate=1.0)
    rng = np.random.default_rng(seed)
    times = []
    if duration_s > 1:
        times = list(arrival_times(arrivals, rng, num_prompts=count, duration_s=duration_s))
    assert len(times) == min(count, math.ceil(duration_s) - 1)


def test_a_longer_duration_only_appends():
    short, long = (
        load(num_prompts=None, duration_s=d, arrivals=Arrivals(request_rate=5)) for d in (100, 1000)
    )
    assert short.requests.equals(long.requests.head(len(short.requests)))


def test_a_diurnal_rate_follows_its_formula():
    arrivals = Arrivals(process="diurnal", request_rate=50, swing=0.8, period_s=1000, peak_s=250)
    times = column(load(num_prompts=None, duration_s=1000, arrivals=arrivals), "arrival_s")
    found, edges = np.histogram(times, bins=20, range=(0, 1000))
    middle = (edges[1:] + edges[:-1]) / 2
    wanted = 50 * 50 * (1 + 0.8 * np.sin(2 * np.pi * (middle - 250) / 1000 + np.pi / 2))
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted) + 10).all()
    assert len(times) == pytest.approx(50_000, rel=0.02)


def test_quantile_gaps_keep_their_shape_and_the_rate():
    arrivals = Arrivals(process="quantiles", request_rate=2, gap_quantiles=HALF_AND_HALF)
    times = column(load(arrivals=arrivals, num_prompts=20_000), "arrival_s")
    assert (np.diff(times) == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert times[-1] == pytest.approx(10_000)


# --- lengths ----------------------------------------------------------------------------------------


def test_uniform_lengths_have_the_bounds_of_vllm():
    prompts = column(
        load(prompt_tokens=Lengths(kind="uniform", mean=101, range_ratio=0.5), num_prompts=20_000),
        "prompt_tokens",
    )
    assert (prompts.min(), prompts.max()) == (50, 152)  # floor(50.5), ceil(151.5)
    assert prompts.mean() == pytest.approx(101, rel=0.01)


def test_lognormal_lengths_have_the_mean_and_the_median_asked_for():
    lengths = Lengths(kind="lognormal", mean=1000, p50=600)
    prompts = column(load(prompt_tokens=lengths, num_prompts=200_000), "prompt_tokens")
    assert prompts.mean() == pytest.approx(1000, rel=0.02)
    assert np.median(prompts) == pytest.approx(600, rel=0.02)


def test_clipped_lengths_are_counted():
    lengths = Lengths(kind="quantiles", quantiles=((0, 1), (1, 101)), min=11, max=91)
    workload = load(prompt_tokens=lengths, num_prompts=10_000)
    prompts = column(workload, "prompt_tokens")
    assert (prompts.min(), prompts.max()) == (11, 91)
    assert workload.counts["prompt_tokens_clipped"] == pytest.approx(2000, rel=0.1)
    assert "output_tokens_clipped" not in workload.counts


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.parquet"
    rows = [(float(i), 10 * i, i) for i in range(1, 101)]
    pl.DataFrame(rows, schema=["arrival_s", "prompt_tokens", "output_tokens"], orient="row").write_parquet(
        path
    )
    return path


def test_columns_of_one_trace_are_drawn_as_pairs(trace):
    lengths = Lengths(kind="empirical", trace=trace)
    workload = load(prompt_tokens=lengths, output_tokens=lengths)
    assert (column(workload, "prompt_tokens") == 10 * column(workload, "output_tokens")).all()
    assert workload.requests["output_tokens"].n_unique() == 100


# --- prefixes ---------------------------------------------------------------------------------------

prefix_settings = st.builds(
    Prefixes,
    system_prompts=st.just(3),
    system_prompt_tokens=st.integers(1, 70),
    mean_turns=st.sampled_from([1.0, 1.5, 4.0]),
    mean_think_s=st.sampled_from([0.0, 10.0]),
    turn_tokens=st.sampled_from([None, Lengths(kind="uniform", mean=20, range_ratio=0.9)]),
    block_tokens=st.sampled_from([1, 16, 64]),
)


def texts(workload: Workload, prefixes: Prefixes) -> Iterator[list[tuple[str, Any, int]]]:
    """Each prompt written out token by token, from the session it belongs to and its turn alone.

    System prompts are read back from the first block; who shares one is checked elsewhere.
    """
    rows = workload.requests.with_row_index("row")
    for row in rows.iter_rows(named=True):
        session = row.get("session_id") or row["row"]
        system = [("system", row["block_hashes"][0], i) for i in range(prefixes.system_prompt_tokens)]
        own = [("session", session, i) for i in range(row["prompt_tokens"] - len(system))]
        yield system + own


@settings(deadline=None, max_examples=40)
@given(prefixes=prefix_settings, seed=st.integers(0, 1000))
def test_a_later_turn_extends_prompt_and_answer_of_its_parent(prefixes, seed):
    requests = load(seed, num_prompts=60, prefixes=prefixes).requests
    if "parent" not in requests.columns:
        assert prefixes.mean_turns == 1
        return
    rows = requests.to_dicts()
    size = prefixes.block_tokens
    for row in (r for r in rows if r["parent"] is not None):
        parent = rows[row["parent"]]
        whole = parent["prompt_tokens"] // size
        assert row["session_id"] == parent["session_id"]
        assert row["prompt_tokens"] > parent["prompt_tokens"] + parent["output_tokens"]
        assert row["block_hashes"][:whole] == parent["block_hashes"][:whole]
        assert row["arrival_s"] == pytest.approx(parent["arrival_s"] + row["think_s"])
    firsts = [r for r in rows if r["parent"] is None]
    assert len({r["session_id"] for r in firsts}) == len(firsts)
    assert all(r["think_s"] is None for r in firsts)


@settings(deadline=None, max_examples=40)
@given(prefixes=prefix_settings, seed=st.integers(0, 1000))
def test_leading_blocks_are_equal_exactly_when_their_tokens_are(prefixes, seed):
    workload = load(seed, num_prompts=40, prefixes=prefixes)
    size = prefixes.block_tokens
    if prefixes.system_prompt_tokens < size:  # then the first block does not name the system prompt
        return
    meaning: dict[int, object] = {}
    known: dict[object, int] = {}
    for text, hashes in zip(
        texts(workload, prefixes), workload.requests["block_hashes"].to_list(), strict=True
    ):
        assert len(hashes) == -(-len(text) // size)
        for j, block in enumerate(hashes):
            tokens = (j, tuple(text[j * size : (j + 1) * size]))
            assert meaning.setdefault(block, tokens) == tokens
            assert known.setdefault(tokens, block) == block


def test_system_prompts_are_shared_by_about_equally_many_requests():
    prefixes = Prefixes(system_prompts=4, system_prompt_tokens=64)
    requests = load(prefixes=prefixes, num_prompts=8000).requests
    assert "parent" not in requests.columns
    users = requests["block_hashes"].list.first().value_counts()["count"].to_numpy()
    assert len(users) == 4
    assert users == pytest.approx(np.full(4, 2000), rel=0.1)
    assert (requests["prompt_tokens"] == 164).all()


def test_sessions_have_the_mean_turns_and_think_times_asked_for():
    prefixes = Prefixes(mean_turns=5, mean_think_s=20)
    workload = load(prefixes=prefixes, num_prompts=50_000, arrivals=Arrivals(request_rate=10))
    assert len(workload.requests) == 50_000
    assert describe(workload)["sessions"]["mean_turns"] == pytest.approx(5, rel=0.03)
    assert workload.requests["think_s"].mean() == pytest.approx(20, rel=0.03)
    starts = workload.requests.filter(pl.col("parent").is_null())["arrival_s"].to_numpy()
    assert len(starts) / starts[-1] == pytest.approx(2, rel=0.03)


def test_turns_after_the_end_are_dropped_and_counted():
    prefixes = Prefixes(mean_turns=4, mean_think_s=100)
    workload = load(prefixes=prefixes, num_prompts=None, duration_s=500, arrivals=Arrivals(request_rate=10))
    assert column(workload, "arrival_s").max() < 500
    assert workload.counts["turns_after_end_dropped"] > 100
    assert len(workload.requests) + workload.counts["turns_after_end_dropped"] == pytest.approx(5000, rel=0.1)


def test_without_shared_prefixes_there_are_no_block_columns():
    assert load(prefixes=Prefixes()).requests.columns == ["arrival_s", "prompt_tokens", "output_tokens"]


# --- randomness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(preset):
    first, again, other = (generate(Synthetic(preset=preset, num_prompts=500), s).requests for s in (7, 7, 8))
    assert first.write_ipc(None).getvalue() == again.write_ipc(None).getvalue()
    assert not first.equals(other)


def test_changing_one_subsystem_leaves_the_others_alone():
    base = load(output_tokens=Lengths(kind="lognormal", mean=200, p50=100), arrivals=Arrivals(request_rate=2))
    longer = load(
        prompt_tokens=Lengths(kind="lognormal", mean=900, p50=500),
        output_tokens=Lengths(kind="lognormal", mean=200, p50=100),
        arrivals=Arrivals(request_rate=2),
    )
    for name in ("arrival_s", "output_tokens"):
        assert base.requests[name].equals(longer.requests[name])
    assert not base.requests["prompt_tokens"].equals(longer.requests["prompt_tokens"])


# --- presets ----------------------------------------------------------------------------------------

TOLERANCE = {"mean": 0.05, "p50": 0.03, "p90": 0.05, "p99": 0.08, "rate_per_s": 0.05, "requests": 0.03}
TOLERANCE |= {"gap_cv": 0.15, "infinite_cache_hit_ratio_blocks": 0.03}


@pytest.fixture(scope="module")
def pooled() -> dict[str, list[dict[str, Any]]]:
    """Each preset as it comes, under eight seeds."""
    return {
        name: [describe(generate(Synthetic(preset=name), seed)) for seed in range(8)]
        for name in preset_names()
    }


@pytest.mark.parametrize(
    ("preset", "target"), [(name, target) for name in preset_names() for target in find_preset(name).targets]
)
def test_a_preset_shows_the_statistics_it_claims(pooled, preset, target):
    *path, leaf = target.split(".")
    found = [described[path[0]][leaf] if path else described[leaf] for described in pooled[preset]]
    assert np.median(found) == pytest.approx(find_preset(preset).targets[target], rel=TOLERANCE[leaf])


def test_an_hour_of_azure_like_conversation_is_about_twenty_thousand_requests(pooled):
    assert all(19_000 < described["requests"] < 21_000 for described in pooled["azure-conversation"])


def test_an_unknown_preset_offers_the_nearest():
    with pytest.raises(InputError, match="did you mean mooncake-conversation"):
        generate(Synthetic(preset="mooncake"), 0)


@pytest.mark.parametrize("preset", preset_names())
def test_resolving_twice_changes_nothing(preset):
    once = resolve(Synthetic(preset=preset, arrivals=Arrivals(request_rate=9)))
    assert resolve(once) == once
    assert resolve(Synthetic.model_validate(once.model_dump(mode="json"))) == once


def test_a_preset_yields_to_what_is_given_and_keeps_its_process_under_another_rate():
    full = resolve(Synthetic(preset="azure-code", num_prompts=10, arrivals=Arrivals(request_rate=9)))
    assert full.arrivals is not None
    assert (full.num_prompts, full.duration_s) == (10, None)
    assert (full.arrivals.process, full.arrivals.request_rate) == ("quantiles", 9)
    assert full.prompt_tokens == find_preset("azure-code").synthetic.prompt_tokens
    assert len(generate(full, 0).requests) == 10


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prompts": None}, "never ends"),
        ({"prompt_tokens": None}, "no prompt_tokens"),
        ({"num_prompts": None, "duration_s": 10, "arrivals": Arrivals(request_rate=math.inf)}, "num_prompts"),
        ({"num_prompts": None, "duration_s": 1e-9}, "no request arrives"),
        ({"num_prompts": 10**12}, "at most 100,000,000"),
        ({"prompt_tokens": Lengths(kind="empirical", trace=Path("absent.csv"))}, "absent.csv"),
    ],
)
def test_load_that_cannot_be_generated_is_one_clear_error(fields, message):
    with pytest.raises(InputError, match=message):
        load(**fields)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (Arrivals, {"burstiness": 0.5}, "burstiness needs process gamma"),
        (Arrivals, {"process": "quantiles"}, "needs gap_quantiles"),
        (Arrivals, {"process": "quantiles", "gap_quantiles": [[0, 0], [1, 0]]}, "not all zero"),
        (Lengths, {"mean": 10, "p50": 5}, "p50 needs kind lognormal"),
        (Lengths, {"kind": "lognormal", "mean": 5, "p50": 10}, "below its p50"),
        (Lengths, {"kind": "quantiles", "quantiles": [[0, 1], [0.5, 2]]}, "to probability 1"),
        (Lengths, {"kind": "quantiles", "quantiles": [[0, 3], [1, 2]]}, "never fall"),
        (Lengths, {"mean": 5, "min": 9, "max": 3}, "max cannot be below min"),
        (Prefixes, {"system_prompts": 2}, "both system_prompts and system_prompt_tokens"),
    ],
)
def test_settings_that_would_be_ignored_or_make_no_sense_are_refused(section, fields, message):
    with pytest.raises(ValidationError, match=message):
        section(**fields)


def test_session_rows_come_in_arrival_order_with_parents_before_children():
    requests = load(prefixes=Prefixes(mean_turns=6, mean_think_s=0), num_prompts=300).requests
    assert all(a <= b for a, b in pairwise(requests["arrival_s"]))
    with_parent = requests.with_row_index("row").filter(pl.col("parent").is_not_null())
    assert (with_parent["parent"] < with_parent["row"]).all()


def test_a_spec_file_is_overridden_and_takes_its_paths_from_its_own_folder(tmp_path, trace):
    spec = tmp_path / "spec.yaml"
    lengths = "{kind: empirical, trace: trace.parquet}"
    spec.write_text(f"duration_s: 50\nprompt_tokens: {lengths}\noutput_tokens: {lengths}\n")
    found = read_spec(spec, {"num_prompts": 7, "duration_s": None, "request_rate": 3.0, "preset": None})
    assert (found.num_prompts, found.duration_s) == (7, None)
    assert found.arrivals == Arrivals(request_rate=3.0)
    assert found.prompt_tokens is not None
    assert found.prompt_tokens.trace == trace
    assert len(generate(found, 0).requests) == 7


def test_a_wrong_key_in_a_spec_file_offers_the_nearest(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("num_prompt: 3\n")
    with pytest.raises(InputError, match=r"spec\.yaml.*num_prompt.*did you mean num_prompts"):
        read_spec(spec, {})
