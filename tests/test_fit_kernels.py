"""`kavier fit-kernels`: what it finds in made-up and in measured kernels, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.ecosystem.model import Attention
from kavier.errors import InputError
from kavier.fitting.attention import NEUTRAL, Batches, attention_s, batches_of
from kavier.fitting.files import gpu_files, rounded, toml_of, write_all
from kavier.fitting.groups import Group, Refused, only
from kavier.fitting.kernels import fit_gpu
from kavier.fitting.robust import Number, fit
from kavier.fitting.shared import shared_groups
from kavier.fitting.tables import gpus_of, read_tables
from kavier.scenario import Engine
from kavier.timing.attention import AttentionLayers, attention_layers
from kavier.timing.collectives import KNOTS, Collective
from kavier.timing.constants import entries
from kavier.timing.gemm import gemm_roof
from kavier.timing.moe import expert_form
from kavier.timing.parameters import (
    Parameters,
    kernel_entries,
    kernel_versions,
    measured_gpus,
    parameters_of,
    shared_entries,
)
from kavier.timing.step import StepWork
from tests.command_line import LLAMA, THREE, kavier, run_process

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
H100 = find_gpu("H100")
NOISE, OUTLIERS = 0.02, 0.05
"""Of made-up times: standard deviation of the logarithm, and share of points that take five times as long."""


def noisy(times_s: np.ndarray, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    disturbed = np.where(random.random(len(times_s)) < OUTLIERS, 5.0, 1.0)
    return times_s * np.exp(random.normal(0.0, NOISE, len(times_s))) * disturbed


def grid(**axes: list[int]) -> pl.DataFrame:
    """Every combination, a row each."""
    table = pl.DataFrame({"one": [1]})
    for name, values in axes.items():
        table = table.join(pl.DataFrame({name: values}), how="cross")
    return table.drop("one")


def table(points: pl.DataFrame, times_s: np.ndarray, **words: str) -> pl.DataFrame:
    """As published: milliseconds, words for GPU, version and kernel."""
    said = {"system": "h100_sxm", "framework": "VLLM", "version": "0.24.0", "kernel_source": "kernel"} | words
    return points.with_columns(
        pl.Series("latency", times_s / 1e-3), *(pl.lit(word).alias(name) for name, word in said.items())
    )


def values_of(group: Group | Refused) -> Mapping[str, float]:
    assert isinstance(group, Group), group
    return group.values


def fitted(tmp_path: Path, *tables: pl.DataFrame, gpu: GpuSpec = H100) -> dict[str, Group | Refused]:
    paths = [tmp_path / f"{number}.parquet" for number in range(len(tables))]
    for path, rows in zip(paths, tables, strict=True):
        rows.write_parquet(path)
    return {each.name: each for each in fit_gpu(gpu, read_tables(paths))}


# ---------------------------------------------------------------- what numbers are found again

GEMM = {"compute_efficiency": 0.8, "memory_efficiency": 0.85, "launch_s": 4e-6, "sharpness": 3.0}


def gemm_table(seed: int = 0, gpu: str = "h100_sxm", **words: str) -> pl.DataFrame:
    points = grid(
        m=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
        n=[4096, 6144, 8192, 28672],
        k=[4096, 8192, 14336, 28672],
    )
    m, n, k = (points[name].to_numpy().astype(float) for name in ("m", "n", "k"))
    times_s = gemm_roof(find_gpu(gpu), only("gemm.bf16", GEMM), "bf16").time_s(m, n, k, 2.0 * n * k)
    said = {"system": gpu, "gemm_dtype": "bfloat16"} | words
    return table(points, noisy(np.asarray(times_s), seed), **said)


def test_matrix_multiplications_are_found_again_in_spite_of_outliers(tmp_path):
    found = values_of(fitted(tmp_path, gemm_table())["gemm.bf16"])
    assert found["compute_efficiency"] == pytest.approx(0.8, rel=0.03)
    assert found["memory_efficiency"] == pytest.approx(0.85, rel=0.03)
    assert found["launch_s"] == pytest.approx(4e-6, rel=0.15)  # of kernels that take 15 us and more
    assert found["sharpness"] == pytest.approx(3.0, rel=0.1)


def test_outliers_do_not_matter():
    """A line through 100 points of which every tenth takes ten times as long."""
    x = np.arange(1.0, 101.0)
    measured = 2.0 * x
    measured[::10] *= 10.0
    found = fit(lambda values: values["slope"] * x, measured, {"slope": Number(1.0, 0.01, 100.0)})
    assert found.values["slope"] == pytest.approx(2.0, rel=0.02)
    assert found.at_limit == ()
    assert np.median(np.abs(found.errors)) == found.miss < 0.02


def test_a_number_at_its_limit_is_named():
    x = np.arange(1.0, 101.0)
    found = fit(lambda values: values["slope"] * x, 2.0 * x, {"slope": Number(1.0, 0.01, 1.5)})
    assert found.at_limit == ("slope",)
    assert found.values["slope"] == pytest.approx(1.5, rel=1e-3)


def test_experts_are_found_again(tmp_path):
    true = {"compute_efficiency": 0.4, "memory_efficiency": 0.9, "launch_s": 3e-5, "expert_s": 3e-7}
    points = grid(
        num_tokens=[1, 4, 16, 64, 256, 1024, 4096], hidden_size=[4096], inter_size=[14336], topk=[2],
        num_experts=[8, 16, 64], moe_tp_size=[1, 2, 4, 8], moe_ep_size=[1, 2, 4],
    )  # fmt: skip
    tokens, experts, tp, ep = (
        points[name].to_numpy().astype(float)
        for name in ("num_tokens", "num_experts", "moe_tp_size", "moe_ep_size")
    )
    sent, inner = tokens * 2 / ep, 3 * 14336 / tp
    distinct = np.minimum(experts / ep, np.maximum(sent, 1.0))
    form = expert_form(H100, only("moe.bf16", true), "bf16")
    times_s = np.asarray(form.time_s(sent, distinct, 4096, inner, 2.0 * 4096 * inner))
    rows = table(points, noisy(times_s), moe_dtype="bfloat16", distribution="balanced")
    found = values_of(fitted(tmp_path, rows)["moe.bf16"])
    assert found["memory_efficiency"] == pytest.approx(0.9, rel=0.06)
    assert found["compute_efficiency"] == pytest.approx(0.4, rel=0.06)
    assert found["launch_s"] == pytest.approx(3e-5, rel=0.15)


def attention_table(op: str, points: pl.DataFrame, true: Mapping[str, float]) -> pl.DataFrame:
    group = "attention.decode" if op == "generation_attention" else "attention.prefill"
    parameters = Parameters("kernels", NEUTRAL | {f"{group}.{name}": value for name, value in true.items()})
    zero = np.zeros(1)
    times_s = [
        attention_s(
            attention_layers(
                H100,
                parameters,
                Attention("gqa", row["num_heads"], row["num_key_value_heads"], 128),
                Engine(),
                1,
            ),
            batches_of(zero, zero, zero + row["batch_size"], zero + row["step"] + 1, zero)
            if op == "generation_attention"
            else batches_of(zero + row["isl"], zero, zero, zero, zero + row["batch_size"]),
        )[0]
        for row in points.iter_rows(named=True)
    ]
    rows = points.with_columns(head_dim=pl.lit(128), window_size=pl.lit(None, pl.Float64))
    words = {"op_name": op, "kv_cache_dtype": "bfloat16", "attn_dtype": "bfloat16"}
    return table(rows, noisy(np.array(times_s)), **words)


def test_decodes_and_prefills_are_found_again_and_hot_points_do_not_matter(tmp_path):
    decode = {"launch_s": 2e-5, "sequence_head_s": 1e-8, "memory_efficiency": 0.9}
    prefill = {
        "launch_s": 1.2e-5, "compute_efficiency": 0.65, "query_efficiency": 0.4, "context_efficiency": 0.25,
    }  # fmt: skip
    heads = {"num_heads": [32, 64], "num_key_value_heads": [4, 8]}
    decodes = attention_table(
        "generation_attention",
        grid(batch_size=[1, 4, 16, 64, 256], isl=[1], step=[127, 1023, 8191, 32767], **heads), decode,
    )  # fmt: skip
    hot = pl.col("batch_size") * (pl.col("step") + 1) * pl.col("num_key_value_heads") * 512 < 1.5 * 50e6
    decodes = decodes.with_columns(
        pl.when(hot).then(pl.col("latency") / 3).otherwise("latency").alias("latency")
    )
    prefills = attention_table(
        "context_attention",
        grid(batch_size=[1, 2, 4, 8], isl=[16, 128, 512, 1024, 2048, 4096], step=[0], **heads), prefill,
    )  # fmt: skip
    found = fitted(tmp_path, decodes, prefills)
    assert values_of(found["attention.decode"])["memory_efficiency"] == pytest.approx(0.9, rel=0.03)
    assert values_of(found["attention.decode"])["launch_s"] == pytest.approx(2e-5, rel=0.2)
    assert values_of(found["attention.prefill"])["compute_efficiency"] == pytest.approx(0.65, rel=0.05)
    assert values_of(found["attention.prefill"])["launch_s"] == pytest.approx(1.2e-5, rel=0.1)


def test_all_reduces_are_found_again(tmp_path):
    shares = np.linspace(0.3, 0.6, len(KNOTS))
    elements = 2 ** np.arange(9, 28)
    form = Collective(2.0, 5e-6, H100.interconnect_bytes_per_s, tuple(shares))
    points = pl.DataFrame({"num_gpus": [2] * len(elements), "message_size": elements})
    times_s = np.asarray(form.time_s(elements))
    rows = table(points, times_s, allreduce_dtype="bfloat16", kernel_source="vLLM_custom_graph")
    found = values_of(fitted(tmp_path, rows)["collectives.tp2"])
    assert found["latency_s"] == pytest.approx(5e-6, rel=0.02)
    assert [found[f"share_{knot}"] for knot in KNOTS] == pytest.approx(shares.tolist(), rel=0.02)


sizes = st.integers(1, 5000).map(float)


@given(
    sizes,
    sizes,
    sizes,
    sizes,
    st.integers(1, 64).map(float),
    st.sampled_from([None, 128, 4096]),
    st.sampled_from("pdm"),
)
def test_arrays_of_batches_cost_what_a_step_costs(chunk, cached, decodes, context, chunks, window, which):
    """Prefills, decodes, or both: `attention_s` is `AttentionLayers.cost` on arrays."""
    layers = attention_layers(
        find_gpu("L40S"),
        parameters_of(find_gpu("L40S")),
        Attention("gqa", 32, 8, 128, window=window),
        Engine(),
        1,
    )
    tokens, decoding = (chunk if which != "d" else 0.0), (decodes if which != "p" else 0.0)
    work = batches_of(*(np.array([size]) for size in (tokens, cached, decoding, context, chunks)))
    step = StepWork(**{field.name: getattr(work, field.name)[0] for field in fields(Batches)})
    assert attention_s(layers, work)[0] == pytest.approx(layers.cost(step)[0], rel=1e-12)
    assert isinstance(layers, AttentionLayers)


# ---------------------------------------------------------------- files


def test_files_are_read_back_as_they_were_fitted(tmp_path):
    group = fitted(tmp_path, gemm_table())["gemm.bf16"]
    assert isinstance(group, Group)
    texts = gpu_files(tmp_path / "out", {"H100-SXM": [group]}, "2026-11-28")
    write_all(texts)
    read = entries(tomllib.loads((tmp_path / "out" / "H100-SXM" / "0.24.toml").read_text()))
    assert {name: entry["value"] for name, entry in read.items()} == {
        f"gemm.bf16.{name}": float(rounded(value)) for name, value in group.values.items()
    }
    for entry in read.values():
        assert (entry["source"], entry["error"], entry["date"]) == (group.source, group.error, "2026-11-28")
    assert not list((tmp_path / "out").rglob("*.new"))


def test_names_with_quotes_stay_one_string():
    text = toml_of(
        [Group("gemm.bf16", "0.24", {"launch_s": 1e-6}, {"launch_s": "s"}, 'a "b" \\ c', "e")], "t", "2026"
    )
    assert entries(tomllib.loads(text))["gemm.bf16.launch_s"]["source"] == 'a "b" \\ c'


def test_nothing_is_written_when_one_file_cannot_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write it"):
        write_all({tmp_path / "a.toml": "a", tmp_path / "file" / "b.toml": "b"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_shared_constants_are_medians_of_the_newest_fits_by_class():
    """H100 is left out, of B200 the older version; L40S has slow memory, the others fast."""
    unit = {"memory_efficiency": "1", "launch_s": "s"}
    fits = {"B200": [(0.5, 9.0, "0.19"), (0.9, 3.0, "0.24")], "RTX-PRO-6000": [(0.8, 4.0, "0.24")],
            "L40S": [(0.7, 8.0, "0.24")], "H100": [(0.1, 99.0, "0.24")]}  # fmt: skip
    own = {
        find_gpu(gpu).name: [
            Group("gemm.bf16", version, {"memory_efficiency": share, "launch_s": launch_s}, unit, "", "")
            for share, launch_s, version in each
        ]
        for gpu, each in fits.items()
    }
    found = {each.name: each for each in shared_groups(own, map(find_gpu, fits))}
    assert found.keys() == {"gemm.bf16", "memory.fast.gemm.bf16", "memory.slow.gemm.bf16"}
    assert found["gemm.bf16"].values == {"launch_s": 4.0}
    assert found["memory.fast.gemm.bf16"].values == {"memory_efficiency": pytest.approx(0.85)}
    assert found["memory.slow.gemm.bf16"].error == "not known: one GPU"
    assert found["gemm.bf16"].source == "median of the fits of B200-SXM, L40S, RTX-PRO-6000"


def test_every_gpu_has_a_number_for_every_group():
    """The shared constants of both classes of memory, attention and links name the same groups."""
    names = {
        gpu: set(parameters_of(find_gpu(gpu), "datasheet").values) for gpu in ("A10", "L40S", "H100", "B200")
    }
    assert len({frozenset(each) for each in names.values()}) == 1


# ---------------------------------------------------------------- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table of matrix multiplications on two GPUs."""
    monkeypatch.chdir(tmp_path)
    pl.concat([gemm_table(), gemm_table(gpu="a40")]).write_csv("gemm.csv")
    return tmp_path


def test_the_command_fits_writes_draws_and_prints(here):
    ended = kavier("fit-kernels", "gemm.csv", "--out", "out", "--shared", "out/all.toml", "--plot", "plots")
    assert ended.status == 0, ended
    assert sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.toml")) == [
        "A40/0.24.toml", "H100-SXM/0.24.toml", "all.toml",
    ]  # fmt: skip
    assert sorted(p.name for p in Path("plots").iterdir()) == ["A40-gemm.svg", "H100-SXM-gemm.svg"]
    assert "<circle" in Path("plots/A40-gemm.svg").read_text()
    assert "gemm.bf16" in ended.out
    assert "1-64 rows" in ended.out


def test_progress_goes_to_stderr(here):
    ended = run_process(["fit-kernels", "gemm.csv", "--json"], here)
    assert ended.err == "kavier: fitting A40\nkavier: fitting H100-SXM\n"
    assert json.loads(ended.out)["fits"].keys() == {"A40", "H100-SXM"}


def test_json_one_gpu_and_a_date(here):
    ended = kavier(
        "fit-kernels", "gemm.csv", "--gpu", "A40", "--date", "2020-02-03", "--out", "out", "--json"
    )
    (found,) = json.loads(ended.out)["fits"]["A40"]
    assert found["values"]["memory_efficiency"] == pytest.approx(0.85, rel=0.03)
    assert 'date = "2020-02-03"' in Path("out/A40/0.24.toml").read_text()
    assert not Path("out/H100-SXM").exists()


def test_kernels_of_ones_own_price_a_run(here):
    """An A40 has no shipped kernels; its folder is searched, and named in the notes."""
    kavier("fit-kernels", "gemm.csv", "--gpu", "A40", "--out", "mine")
    Path("t.csv").write_text(THREE)
    run = ("run", "--trace", "t.csv", "--model", LLAMA[1], "--gpu", "A40", "--json")
    plain, own = (json.loads(kavier(*run, *more).out) for more in ((), ("--kernels", "mine")))
    assert (plain["trust"]["timing_level"], own["trust"]["timing_level"]) == ("datasheet", "kernels")
    assert "your kernels of A40 in mine (gemm.bf16)" in " ".join(own["trust"]["notes"])
    assert "attention.decode" in " ".join(own["trust"]["notes"])  # not measured, and said so
    assert own != plain
    ended = kavier(*run[:-1], "--kernels", "mine", "--out", "kept")
    assert ended.status == 0, ended
    assert "kernels: ../mine" in Path("kept/scenario.resolved.yaml").read_text()


def test_own_kernels_come_before_the_shipped_ones_group_by_group(here):
    kavier("fit-kernels", "gemm.csv", "--out", "mine")
    own, shipped = parameters_of(H100, folder=Path("mine")), parameters_of(H100)
    assert own["gemm.bf16.compute_efficiency"] == pytest.approx(0.8, rel=0.03)
    assert own["attention.decode.launch_s"] == shipped["attention.decode.launch_s"]
    assert own.own == {"gemm.bf16"}
    assert own.measured == shipped.measured


HEAD = "[gemm.bf16]\nsource='s'\ndate='2026'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HEAD}launch_s={{value=0,unit='s'}}", "gemm.bf16.launch_s: kernels: not a number of the model"),
        (f"{HEAD}launch_s={{value=1,unit='s'}}", "gemm.bf16 lacks compute_efficiency"),
        (f"{HEAD}lunch_s={{value=1,unit='s'}}", "did you mean gemm.bf16.launch_s"),
        ("[gemm.bf16]\nlaunch_s={value=1,unit='s'}", "has no date, source"),
        ("gemm", "kernels: "),
        ("launch_s = 5", "0.24.toml: kernels: launch_s is not usable (got 5); expected a table"),
        ("[gemm.bf16]\nlaunch_s = 5", "0.24.toml: kernels: gemm.bf16.launch_s is not usable (got 5)"),
        (f"{HEAD}compute_efficiency={{value=75,unit='1'}}", "(got 75); expected a positive number up to 1.5"),
        (f"{HEAD}launch_s={{value=4,unit='s'}}", "(got 4); expected a positive number up to 1"),
    ],
)  # fmt: skip
def test_a_bad_file_of_ones_own_is_refused(here, text, said):
    (here / "mine" / "A40").mkdir(parents=True)
    (here / "mine" / "A40" / "0.24.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        parameters_of(find_gpu("A40"), folder=Path("mine"))


def test_a_folder_without_the_gpu_is_refused(here):
    kavier("fit-kernels", "gemm.csv", "--gpu", "A40", "--out", "mine")
    with pytest.raises(InputError, match=r"no file A4000/VERSION.toml.*did you mean A40\?"):
        parameters_of(find_gpu("A4000"), folder=Path("mine"))
    with pytest.raises(InputError, match="no such folder"):
        parameters_of(find_gpu("A40"), folder=Path("nowhere"))
    with pytest.raises(InputError, match="level datasheet takes none"):
        parameters_of(find_gpu("A40"), "datasheet", folder=Path("mine"))


def test_the_example_of_the_page_is_fitted_and_served_as_it_says(here):
    page = (ROOT / "docs" / "kernels.md").read_text()
    (example,) = re.findall(r"^```csv\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    Path("my-kernels.csv").write_text(example)
    ended = kavier("fit-kernels", "my-kernels.csv", "--out", "my-kernels", "--json")
    ((found,),) = json.loads(ended.out)["fits"].values()
    assert found["values"]["compute_efficiency"] == pytest.approx(0.75, rel=0.01)
    assert found["values"]["memory_efficiency"] == pytest.approx(0.8, rel=0.01)
    assert found["values"]["launch_s"] == pytest.approx(5e-6, rel=0.05)
    assert "finds `compute_efficiency` 0.75, `memory_efficiency` 0.8 and a launch of 5 us" in page
    assert parameters_of(find_gpu("A40"), folder=Path("my-kernels")).own == {"gemm.bf16"}


def test_the_catalog_of_kernels_lists_what_is_shipped():
    assert "RTX-4090" in kavier("catalog", "kernels").out
    printed = kavier("catalog", "kernels", "4090").out
    assert "profile_dense.parquet+profile_per_sequence.parquet" in printed
    assert "compute_efficiency 0.98" in printed
    numbers = json.loads(kavier("catalog", "kernels", "H100", "--json").out)["versions"]["0.24"]
    assert numbers["gemm.bf16"]["launch_s"]["unit"] == "s"
    assert "expected one of A100-80GB-SXM" in kavier("catalog", "kernels", "A40").error


# ---------------------------------------------------------------- bad input


def refused(rows: pl.DataFrame | str | None = None, *more: str) -> str:
    if isinstance(rows, pl.DataFrame):
        rows.write_csv("bad.csv")
    elif rows is not None:
        Path("bad.csv").write_text(rows)
    error = kavier("fit-kernels", "bad.csv", "--out", "out", *more).error
    assert not Path("out").exists()
    return error


def test_a_missing_column_is_named(here):
    assert refused(gemm_table().drop("k")).startswith(
        "bad.csv: no known kind of kernel file; nearest is gemm, without k; expected columns as of"
    )


@pytest.mark.parametrize(
    ("time", "shown"), [(0.0, "0.0"), (-1.5, "-1.5"), (float("nan"), "nan"), (None, None)]
)
def test_a_time_that_is_none_is_named_with_its_row(here, time, shown):
    rows = gemm_table()
    times = rows["latency"].to_list()
    times[4] = time
    error = refused(rows.with_columns(pl.Series("latency", times)))
    assert error.startswith("bad.csv, row 5 (line 6), column 'latency': not a time")
    assert shown is None or f"(got {shown})" in error


def test_a_size_that_is_no_number_is_named(here):
    rows = gemm_table().with_columns(pl.col("m").cast(pl.String))
    error = refused(
        rows.with_columns(pl.when(pl.int_range(pl.len()) == 2).then(pl.lit("many")).otherwise("m").alias("m"))
    )
    assert (
        error == "bad.csv, row 3 (line 4), column 'm': not a value of this column (got 'many'); "
        "expected a whole number of at least 1"
    )


@pytest.mark.parametrize(("column", "size"), [("m", 0), ("n", -4096), ("k", 0)])
def test_a_size_that_no_kernel_has_is_named(here, column, size):
    other = pl.when(pl.int_range(pl.len()) == 2).then(pl.lit(size)).otherwise(column).alias(column)
    assert refused(gemm_table().with_columns(other)) == (
        f"bad.csv, row 3 (line 4), column '{column}': not a value of this column (got {size}); "
        "expected a whole number of at least 1"
    )


def test_rows_of_types_that_are_not_fitted_are_told(here):
    odd = gemm_table(gemm_dtype="int8_wo")
    note = f"{len(odd)} rows of gemm_dtype 'int8_wo' (fitted are bfloat16, fp8, fp8_block)"
    error = refused(odd)
    assert "no kind of them is fitted alone; bad.csv: " + note in error
    pl.concat([gemm_table(), odd]).write_csv("both.csv")
    assert json.loads(kavier("fit-kernels", "both.csv", "--json").out)["left_out"] == [f"both.csv: {note}"]
    assert "left out: both.csv" in kavier("fit-kernels", "both.csv").out


def test_times_of_another_unit_are_told(here):
    seconds = gemm_table().with_columns(pl.col("latency") * 1e-3)
    assert "are the times in the unit of their column: latency in milliseconds" in refused(seconds)


def test_an_unknown_gpu_names_the_nearest(here):
    error = refused(gemm_table(system="h1000"))
    assert error.startswith("bad.csv, column 'system': unknown GPU 'h1000'")
    assert "did you mean H100" in error


def test_too_few_points_say_how_many_are_needed(here):
    assert "gemm.bf16: 7 points of one kernel at most, 16 are needed" in refused(
        gemm_table().filter(pl.col("m") > 8)[-7:]
    )


def test_no_release_of_vllm_is_refused(here):
    assert "rows of no release of vLLM" in refused(gemm_table(version="0.1.dev12"))
    assert "rows of other engines" in refused(gemm_table(framework="TRTLLM"))


def test_what_is_no_table_is_refused(here):
    assert kavier("fit-kernels", "none.csv").error == "none.csv: cannot read it: No such file or directory"
    (here / "folder").mkdir()
    assert kavier("fit-kernels", "folder").error == "folder: cannot read it: Is a directory"
    Path("t.parquet").write_bytes(os.urandom(64))
    assert kavier("fit-kernels", "t.parquet").error.startswith("t.parquet: neither a Parquet nor a CSV table")
    assert kavier("fit-kernels", "gemm.csv", "--gpu", "A100").error == (
        "--gpu: the files have no A100; expected one of A40, H100-SXM"
    )


def test_without_scipy_it_says_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    error = kavier("fit-kernels", "gemm.csv").error
    assert error == 'fits need SciPy, which is not installed; expected pip install "kavier-sim[fit]"'


def test_launches_outside_of_a_graph_are_refused(tmp_path):
    rows = gemm_table().with_columns(pl.col("latency") + 0.1)
    found = fitted(tmp_path, rows)["gemm.bf16"]
    assert isinstance(found, Refused)
    assert "over 30 us to start" in found.why


def test_a_kernel_that_follows_no_form_is_refused(tmp_path):
    random = np.random.default_rng(0)
    rows = gemm_table()
    rows = rows.with_columns(latency=pl.Series(np.exp(random.uniform(-5, 3, len(rows)))))
    found = fitted(tmp_path, rows)["gemm.bf16"]
    assert isinstance(found, Refused)


# ---------------------------------------------------------------- what is shipped

AIC = [SHARED / f"aiconfigurator/{name}_perf.parquet" for name in (
    "gemm", "moe", "context_attention", "generation_attention", "custom_allreduce",
)]  # fmt: skip
PROFILES = [
    SHARED / f"llmservingsim/profile_{name}.parquet" for name in ("attention", "dense", "per_sequence")
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_shipped_numbers_are_a_fresh_fit():
    """Every number of every file, and the shared ones, to 2 %; words but the date to the letter."""
    tables = read_tables([*AIC, *PROFILES])
    gpus = gpus_of(tables)
    own = {gpu.name: [each for each in fit_gpu(gpu, tables) if isinstance(each, Group)] for gpu in gpus}
    assert sorted(own) == list(measured_gpus())
    for gpu, groups in own.items():
        assert kernel_versions(gpu) == tuple(sorted({group.version for group in groups}))
        for version in kernel_versions(gpu):
            _same(kernel_entries(gpu, version), [group for group in groups if group.version == version])
    shared = shared_groups(own, gpus)
    fitted_names = {f"{group.name}.{name}" for group in shared for name in group.values}
    _same({name: entry for name, entry in shared_entries().items() if name in fitted_names}, shared)


def _same(shipped: Mapping[str, Mapping[str, object]], groups: list[Group]) -> None:
    fresh = {
        f"{group.name}.{name}": (value, group) for group in groups for name, value in group.values.items()
    }
    assert fresh.keys() == shipped.keys()
    for name, (value, group) in fresh.items():
        assert float(str(shipped[name]["value"])) == pytest.approx(value, rel=0.02), name
        assert shipped[name]["source"] == group.source


@pytest.mark.parametrize("name", measured_gpus())
def test_measured_kernels_grow_with_their_work_and_beat_no_datasheet(name):
    on, p = find_gpu(name), parameters_of(find_gpu(name))
    rows = np.arange(1, 4097)
    for n, k in ((4096, 4096), (28672, 4096), (4096, 14336)):
        times_s = np.asarray(gemm_roof(on, p, "bf16").time_s(rows, n, k, 2.0 * n * k))
        assert (np.diff(times_s) >= 0).all()
        roofline_s = np.maximum(
            2.0 * rows * n * k / on.flops_per_s["bf16"], 2.0 * n * k / on.bandwidth_bytes_per_s
        )
        assert (times_s >= roofline_s).all()
