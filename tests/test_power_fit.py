"""Power models fitted to measured runs: synthetic ones, whose constants are known, and the published ones."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.metrics.power import FITTED, peak_flops_per_s, saturating
from kavier.report.sections import Section, markdown
from kavier.validation.ml_energy import NUMBERS, TEXTS, Histogram, read_measured
from kavier.validation.power_constants import constants, constants_toml
from kavier.validation.power_fit import CANDIDATES, calibrated, errors, fit_power
from kavier.validation.power_runs import play_points, quantiles, scenario_of
from kavier.validation.power_work import TYPED, served_model, work_of
from kavier.validation.splitwise import read_static_runs
from kavier.workload.lengths import quantile_mean
from tests.command_line import kavier

DATA = Path(__file__).parents[2] / "shared" / "data"
PUBLISHED = DATA / "ml_energy" / "llm_energy_h100.csv"
SPLITWISE = DATA / "splitwise" / "step_times.csv"

MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": 1,
    "Qwen/Qwen3-32B": 2,
    "Qwen/Qwen3-30B-A3B-Thinking-2507": 2,
    "openai/gpt-oss-20b": 1,
}
LONG = {"alpha": 0.9, "beta": 11.0}


def write(folder: Path, **changed: str) -> Path:
    """Runs of four models at four batches; all draw 400 W until `draw` says otherwise."""
    path = folder / "runs.csv"
    rows = [
        {
            "model": model,
            "task": "lm-arena-chat",
            "gpu": "H100",
            "weight_precision": "bfloat16",
            "num_gpus": str(gpus),
            "max_num_seqs": str(batch),
            "avg_batch_size": str(batch),
            "avg_output_len": "300",
            "avg_power_watts": str(400 * gpus),
            "output_throughput_tokens_per_sec": str(100 * batch**0.8),
        }
        | changed
        for model, gpus in MODELS.items()
        for batch in (8, 32, 64, 128)
    ]
    histograms = [
        {"model": model, "task": "lm-arena-chat", "bins": [0.0, 200.0, 400.0, 600.0], "counts": [5, 0, 5]}
        for model in MODELS
    ]
    configs = [
        {
            "model": model,
            "task": "lm-arena-chat",
            "gpu": "H100",
            "num_gpus": "1\n2",
            "vllm_args": {"async-scheduling": True, "max-num-batched-tokens": 8192, "max-model-len": 4096},
            "sweep": {"sweep": [{"num_request_repeats": [2], "max_num_seqs": [8]}]},
        }
        for model in MODELS
    ]
    save(path, rows)
    (folder / "output_length_histograms.json").write_text(json.dumps(histograms), encoding="utf-8")
    (folder / "vllm_configs.json").write_text(json.dumps({"configs": configs}), encoding="utf-8")
    return path


def save(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, rows[0])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def runs(tmp_path) -> Path:
    return write(tmp_path)


def draw(path: Path, alpha: float, beta: float) -> Path:
    """Let the runs draw what a saturating model with these constants says."""
    work = work_of(read_measured(path).points)
    watts = 122 + 578 * (1 - np.exp(-(alpha * work.mbu + beta * work.mfu)))
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row, watt in zip(rows, watts, strict=True):
        row["avg_power_watts"] = repr(float(watt) * int(row["num_gpus"]))
    save(path, rows)
    return path


# --- Reading


def test_a_run_has_the_context_of_long_answers_and_the_power_of_one_gpu(runs):
    point = read_measured(runs).points[4]
    assert (point.model, point.gpus, point.power_w) == ("Qwen/Qwen3-32B", 2, 400.0)
    # Lengths: half uniform in 0..200, half in 400..600: E[L] 300, E[L^2] = (40,000/3 + 760,000/3) / 2.
    assert point.length_ratio == pytest.approx((40_000 / 3 + 760_000 / 3) / 2 / 300**2)
    assert point.context_tokens == pytest.approx(220 + point.length_ratio * 150)
    assert point.j_per_token == pytest.approx(800 / point.tokens_per_s)


def test_runs_with_unknown_prompts_are_counted_not_used(tmp_path):
    path = write(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("lm-arena-chat", "video-chat", 3), encoding="utf-8")
    measured = read_measured(path)
    assert (len(measured.points), dict(measured.left_out)) == (13, {"video-chat": 3})


@pytest.mark.parametrize("name", [*NUMBERS, *TEXTS])
def test_a_missing_column_is_named(runs, name):
    runs.write_text(runs.read_text(encoding="utf-8").replace(name, "other", 1), encoding="utf-8")
    assert f"runs.csv: no column {name}" in kavier("fit-power", runs).error


@pytest.mark.parametrize("watts", ["0", "-300", "nan", "inf", "", "much"])
def test_a_power_that_is_none_is_named_by_line(tmp_path, watts):
    path = write(tmp_path, avg_power_watts=watts)
    said = kavier("fit-power", path).error
    assert "runs.csv, line 2: avg_power_watts: bad number" in said
    assert "expected a number above 0" in said


def test_an_unknown_model_is_named_by_line(tmp_path):
    said = kavier("fit-power", write(tmp_path, model="Qwen/Qwen3-33B")).error
    assert "runs.csv, line 2: unknown model 'Qwen/Qwen3-33B'" in said


def test_an_unknown_gpu_is_named_by_line(tmp_path):
    assert "runs.csv, line 2: unknown GPU 'H101'" in kavier("fit-power", write(tmp_path, gpu="H101")).error


def test_another_gpu_than_that_of_the_fit_is_refused(tmp_path):
    said = kavier("fit-power", write(tmp_path, gpu="A100-80GB")).error
    assert "line 2: not the GPU of the fit" in said


def test_too_few_families_are_refused(tmp_path):
    said = kavier("fit-power", write(tmp_path, model="Qwen/Qwen3-32B")).error
    assert "too few points to fit a power model (got 'families Qwen3-32B')" in said


def test_no_usable_run_is_an_error(tmp_path):
    assert "no run of a task" in kavier("fit-power", write(tmp_path, task="video-chat")).error


@pytest.mark.parametrize("name", ["output_length_histograms.json", "vllm_configs.json"])
def test_side_files_are_needed(runs, name):
    (runs.parent / name).unlink()
    said = kavier("fit-power", runs).error
    assert name in said
    assert "expected this file beside the table" in said


@pytest.mark.parametrize("text", ["[]", "{", '{"configs": [{"model": 3}]}', '{"configs": 1}'])
def test_side_files_of_another_kind_are_refused(runs, text):
    (runs.parent / "vllm_configs.json").write_text(text, encoding="utf-8")
    assert "vllm_configs.json: " in kavier("fit-power", runs).error


def test_a_missing_file_is_named(tmp_path):
    assert "cannot read the table: No such file" in kavier("fit-power", tmp_path / "none.csv").error


# --- Work


def test_models_typed_in_have_their_published_sizes():
    published = {
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2": 8.89e9,
        "nvidia/NVIDIA-Nemotron-Nano-12B-v2": 12.31e9,
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": 107.8e9,
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": 400.7e9,
        "meta-llama/Llama-3.1-405B-Instruct-FP8": 405.9e9,
    }
    for name, size in published.items():
        served = TYPED[name]()
        assert served.spec.parameters() + served.more_parameters == pytest.approx(size, rel=1e-3), name


def test_a_dense_model_reads_its_weights_and_contexts_each_step(runs):
    points = read_measured(runs).points[:4]
    work, spec = work_of(points), served_model(points[0]).spec
    embedding = 2 * spec.vocab_size * spec.hidden_size
    for point, mbu in zip(points, work.mbu, strict=True):
        kv = point.batch * point.context_tokens * spec.kv_bytes_per_token()
        moved = (spec.weight_bytes() - embedding + kv) * point.tokens_per_s / point.batch
        # Beside these there are activations, and prompts that are read once more.
        assert 1.0 < mbu * 3.35e12 / moved < 1.1


def test_flops_are_those_of_tokens_and_prompts(runs):
    point = read_measured(runs).points[0]
    work, spec = work_of([point]), served_model(point).spec
    active = spec.parameters() - spec.vocab_size * spec.hidden_size
    tokens_per_s = point.tokens_per_s * (1 + point.input_tokens / point.output_tokens)
    # The head of prompts is not computed; attention over contexts comes on top.
    assert work.mfu[0] * 989.4e12 == pytest.approx(2 * active * tokens_per_s, rel=0.07)


# --- Fit


def test_a_fit_finds_the_constants_that_made_the_points(runs):
    work = work_of(read_measured(draw(runs, **LONG)).points)
    fit = fit_power(work)[0]
    assert fit.name == "saturating"
    assert dict(fit.parameters) == pytest.approx(LONG, rel=1e-4)
    assert errors(fit.left_out_w, work.power_w).mape < 1e-4
    assert max(fit.sd.values()) < 1e-3
    assert calibrated(fit, work).mape < 1e-4


def test_a_fit_gives_little_weight_to_one_wild_point(runs):
    draw(runs, **LONG)
    with runs.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows[2]["avg_power_watts"] = "60"
    save(runs, rows)
    fit = fit_power(work_of(read_measured(runs).points))[0]
    assert dict(fit.parameters) == pytest.approx(LONG, rel=0.12)


def test_a_family_is_predicted_from_the_others_alone(runs):
    """Were its points in the fit, changing them would change their prediction."""
    draw(runs, **LONG)
    work = work_of(read_measured(runs).points)
    own = work.families == "Qwen3-32B"
    before = fit_power(work)[0].left_out_w
    work.power_w[own] *= 0.6
    after = fit_power(work)[0].left_out_w
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.allclose(before[~own], after[~own], rtol=1e-3)


def test_errors_are_relative_to_what_was_measured():
    found = errors(np.array([110.0, 80.0]), np.array([100.0, 100.0]))
    assert found.count == 2
    assert (found.mape, found.bias) == pytest.approx((0.15, -0.05))
    assert found.sd == pytest.approx(np.sqrt((0.01 + 0.04) / 2))


def test_the_saturating_formula_of_the_fit_is_that_of_the_simulator(runs):
    work = work_of(read_measured(runs).points)
    values = np.array([FITTED["saturating.alpha"], FITTED["saturating.beta"]])
    gpu = find_gpu("H100")
    for point, watts, flops, moved in zip(
        work.points,
        CANDIDATES["saturating"].formula(values, work),
        work.flops_per_s,
        work.bytes_per_s,
        strict=True,
    ):
        peak = peak_flops_per_s(gpu, find_model(point.model))
        power = saturating(gpu, peak)
        assert power.power_w(flops * peak / gpu.flops_per_s["bf16"], moved) == pytest.approx(watts, rel=1e-12)


def test_the_command_prints_tables_and_writes_constants_and_a_picture(runs, tmp_path):
    draw(runs, **LONG)
    toml, svg = tmp_path / "power.toml", tmp_path / "power.svg"
    ended = kavier("fit-power", runs, "--toml", toml, "--svg", svg)
    assert (ended.status, ended.err) == (0, "")
    assert "saturating.alpha" in ended.out
    tree = tomllib.loads(toml.read_text(encoding="utf-8"))
    assert tree["saturating"]["alpha"]["value"] == pytest.approx(LONG["alpha"], rel=1e-3)
    assert tree["saturating"]["alpha"].keys() == {"value", "unit", "source", "error", "date"}
    assert svg.read_text(encoding="utf-8").count("<circle") == 16 + len(MODELS)


def test_the_command_prints_json(runs):
    draw(runs, **LONG)
    found = json.loads(kavier("fit-power", runs, "--json").out)
    assert found["runs"] == 16
    assert found["candidates"]["saturating"]["parameters"] == pytest.approx(LONG, rel=1e-4)


# --- The runs played by the simulator


def test_a_histogram_is_an_inverse_cdf_without_its_empty_bins():
    assert quantiles(Histogram([0.0, 200.0, 400.0, 600.0], [5, 0, 5])) == [(0, 0), (0.5, 200), (1, 600)]
    assert quantiles(Histogram([0.0, 1.0, 9.0, 20.0], [0, 3, 0])) == [(0, 1), (1, 9)]
    assert quantile_mean(quantiles(Histogram([0.0, 10.0, 30.0], [1, 1]))) == pytest.approx(12.5)


def test_a_run_is_played_with_its_arguments(runs):
    measured = read_measured(runs)
    scenario = scenario_of(measured.points[4], measured)
    assert scenario["engine"] == {
        "vllm_version": "0.11", "max_num_batched_tokens": 8192,
        "max_model_len": 4096, "max_num_seqs": 8, "tensor_parallel_size": 2,
    }  # fmt: skip
    assert scenario["workload"]["synthetic"]["num_prompts"] == 2 * 1024


def test_played_runs_are_in_their_steady_state(runs):
    played = list(play_points(read_measured(runs), "datasheet", "saturating"))
    assert [one.point.model for one in played] == ["meta-llama/Llama-3.1-8B-Instruct"] * 4 + [
        "Qwen/Qwen3-32B"
    ] * 4
    for one in played:
        assert one.batch == pytest.approx(one.point.max_num_seqs, rel=0.01)
        assert 122 < one.power_w < 700
        assert one.j_per_token == pytest.approx(one.power_w * one.point.gpus / one.tokens_per_s)


def test_a_run_without_arguments_is_an_error(runs):
    (runs.parent / "vllm_configs.json").write_text('{"configs": []}', encoding="utf-8")
    assert "line 2: no vLLM arguments for meta-llama" in kavier("validate-power", runs).error


def test_the_validation_is_written_as_a_page(runs, tmp_path):
    page = tmp_path / "page.md"
    ended = kavier("validate-power", runs, "--out", page)
    assert ended.status == 0
    assert "Energy a token with simulated time, level auto" in ended.out
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        f"# Validation of power\n\n## How to repeat it\n\n`kavier validate-power {runs} --level auto"
    )
    assert "| saturating | 2 |" in text


def test_sections_become_markdown():
    sections = [Section("One", "Text.", ("a", "b"), [("x", "1")]), Section("Two", "More.")]
    assert markdown("Page", sections) == (
        "# Page\n\n## One\n\nText.\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\n## Two\n\nMore.\n"
    )


# --- The published data


needs_data = pytest.mark.skipif(not PUBLISHED.exists(), reason="../shared/data is not there")


@pytest.fixture(scope="module")
def published():
    work = work_of(read_measured(PUBLISHED).points)
    return work, fit_power(work)


@needs_data
def test_the_shipped_constants_are_those_of_a_fresh_fit(published):
    work, fits = published
    assert {name: value for name, (value, _) in constants(fits, work).items()} == FITTED
    tree = tomllib.loads(constants_toml(fits, work, PUBLISHED.name, "2026-11-28"))
    shipped = Path(__file__).parents[1] / "src" / "kavier" / "metrics" / "power.toml"
    stored = tomllib.loads(shipped.read_text(encoding="utf-8"))
    for model, entries in tree.items():
        for name, entry in entries.items():
            assert stored[model][name] | {"date": ""} == entry | {"date": ""}


@needs_data
def test_power_of_families_left_out_is_within_the_targets(published):
    work, fits = published
    assert (len(work.points), len(set(work.families))) == (171, 11)
    found = errors(fits[0].left_out_w, work.power_w)
    assert found.mape <= 0.10
    assert abs(found.bias) <= 0.03
    assert found.p95 <= 0.25
    plain = np.array([point.dtype == "bfloat16" for point in work.points])
    assert errors(fits[0].left_out_w[plain], work.power_w[plain]).mape <= 0.08
    assert calibrated(fits[0], work).mape <= 0.06


@pytest.mark.skipif(not SPLITWISE.exists(), reason="../shared/data is not there")
def test_power_carries_over_to_the_a100():
    runs = read_static_runs(SPLITWISE, ("saturating",))
    modelled = np.array([run.modelled_w("saturating") for run in runs])
    assert len(runs) == 36
    assert errors(modelled, np.array([run.measured_w for run in runs])).mape <= 0.10


def test_a_table_of_static_runs_without_its_columns_is_an_error(runs):
    said = kavier("validate-power", runs, "--splitwise", runs).error
    assert "runs.csv: no column average_power, batch_size" in said
