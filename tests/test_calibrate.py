"""`kavier calibrate`: numbers that a run tells come back, those that it does not are refused."""

from __future__ import annotations

import builtins
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kavier as package
from kavier.ecosystem.gpu import find_gpu
from kavier.errors import InputError
from kavier.metrics.client import CLIENT_CONSTANTS
from kavier.report.calibration import calibration_sections
from kavier.scenario import Scenario, parse_scenario
from kavier.timing.calibration import NAMES, calibrated_gpus, read_calibration
from kavier.timing.constants import entries
from kavier.timing.parameters import kernel_entries, parameters_of, shared_entries
from kavier.validation.calibrate import Played, calibrate, default_of, one_by_one
from kavier.validation.calibration_file import as_plain
from kavier.validation.case import NamedCase, read_cases
from kavier.validation.compare import Comparison
from kavier.validation.identify import Errors, identify, names_from
from kavier.validation.validate import measured_file
from tests.command_line import LLAMA, kavier

ROOT = Path(__file__).parents[1]
CASES = ROOT / "validation" / "cases"
DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the measured runs in ../shared/data")

MEASURED = '[measured]\nlevel = "kernels"\ngpu = "H100-SXM"\nmodel = "meta-llama/Llama-3.1-8B"\n\n'


def calibration_file(folder: Path, **numbers: float) -> Path:
    """As `kavier calibrate` writes them; host numbers are `host__row_s`."""
    lines = [MEASURED]
    for name, value in numbers.items():
        full = name.replace("__", ".") if "__" in name else f"calibration.{name}"
        lines.append(f'[{full}]\nvalue = {value}\nunit = "1"\nsource = "a test"\ndate = "2026-11-28"\n')
    path = folder / "numbers.toml"
    path.write_text("\n".join(lines))
    return path


def load(requests: int = 300, rate: float = 6.0, prompt: int = 2000, output: int = 100) -> dict[str, Any]:
    lengths = {
        key: {"kind": "uniform", "mean": mean, "range_ratio": 0.9}
        for key, mean in (("prompt_tokens", prompt), ("output_tokens", output))
    }
    return {"synthetic": {"num_prompts": requests, "arrivals": {"request_rate": rate}, **lengths}}


def scenario(**changes: Any) -> dict[str, Any]:
    return {
        "model": LLAMA[1],
        "fleet": {"gpu": "H100"},
        "client": "http",
        "workload": load(),
    } | changes


def run_of(folder: Path, numbers: Mapping[str, float], name: str = "run", **changes: Any) -> NamedCase:
    """A run of a machine on which these numbers hold."""
    tree = scenario(**changes)
    truth = tree if not numbers else tree | {"calibration": str(calibration_file(folder, **numbers))}
    path = folder / f"{name}.parquet"
    package.simulate(truth).requests.write_parquet(path)
    tree["workload"] = {"trace": str(path)}
    return measured_file(path, parse_scenario(tree), 0)


def error_of(compared: Comparison, metric: str, point: str = "mean") -> float:
    error = compared.metrics[metric][point]["error"]
    assert error is not None
    return error


def full(*names: str) -> list[str]:
    return list(names_from(",".join(names)))


# What a run tells comes back


@pytest.mark.parametrize(
    ("numbers", "loads", "engine"),
    [
        ({"client_s": 0.012}, [load()], {}),
        ({"client_s": 0.004, "compute_factor": 1.3}, [load(200, 0.4, 600, 20)], {}),
        ({"compute_factor": 1.2, "memory_factor": 1.1}, [load(200, 0.4, 4000, 60)], {}),
        ({"kv_read_factor": 1.15}, [load(100, 0.7, 20_000, 600)], {}),
        (
            {"host__step_s": 2e-3, "host__row_s": 60e-6},
            [load(60, 0.3, 100, 200), load(400, 30, 100, 200)],
            {"async_scheduling": False},
        ),
    ],
)
def test_numbers_of_a_simulated_machine_are_found_again(tmp_path, numbers, loads, engine):
    runs = enumerate(loads)
    cases = [run_of(tmp_path, numbers, f"run{i}", workload=work, engine=engine) for i, work in runs]
    names = full(*(name.replace("__", ".") for name in numbers))
    made = calibrate(cases, names)
    assert not made.found.refused
    for name, value in zip(names, numbers.values(), strict=True):
        assert made.found.values[name] == pytest.approx(value, rel=0.03)
        assert 0 < made.found.standard_errors[name] < 0.2 * value or name == "calibration.client_s"
    for trained in made.training:
        for metric in ("ttft_s", "tpot_s", "e2e_s"):
            assert abs(error_of(trained.calibrated, metric)) < 0.02  # scheduling turns small errors to 1 %


def test_a_run_that_is_as_simulated_calibrates_to_the_defaults(tmp_path):
    names = full("client_s", "compute_factor")
    found = calibrate([run_of(tmp_path, {})], names).found
    for name in names:
        assert found.values[name] == pytest.approx(default_of(name), rel=1e-3)


def test_a_prior_keeps_kv_reads_near_1_where_little_speaks_for_more(tmp_path):
    """On the same run a factor of less consequence comes back less of the way, but never beyond."""
    case = run_of(tmp_path, {"kv_read_factor": 1.3}, workload=load(150, 1.5, 12_000, 400))
    value = calibrate([case], full("kv_read_factor")).found.values["calibration.kv_read_factor"]
    assert 1.1 < value < 1.3


# What it does not tell is refused


def test_short_contexts_tell_nothing_of_kv_reads(tmp_path):
    case = run_of(tmp_path, {"client_s": 0.01}, workload=load(200, 1, 50, 20))
    made = calibrate([case], full("client_s", "kv_read_factor"))
    assert made.found.values.keys() == {"calibration.client_s"}
    assert "moves no metric" in made.found.refused["calibration.kv_read_factor"]
    assert made.calibration.values == made.found.values


def test_an_engine_without_client_tells_nothing_of_clients(tmp_path):
    case = run_of(tmp_path, {}, client="engine")
    with pytest.raises(InputError, match=r"identifies none of these numbers: calibration\.client_s: 20%"):
        calibrate([case])


def test_one_level_of_load_does_not_tell_steps_from_rows(tmp_path):
    numbers = {"host__step_s": 2e-3, "host__row_s": 60e-6}
    case = run_of(tmp_path, numbers, workload=load(200, 1e4, 200, 200), engine={"async_scheduling": False})
    found = calibrate([case], full("host.step_s", "host.row_s")).found
    assert len(found.values) == len(found.refused) == 1


def test_numbers_that_do_the_same_are_not_both_identified():
    """Two numbers whose sum alone is seen: one of them is refused, the other takes it all."""

    def errors(values: Mapping[str, float]) -> Errors:
        both = sum(values.get(f"calibration.{name}", 1.0) for name in ("compute_factor", "memory_factor"))
        return Errors(np.log(np.array([both, both]) / 2.2), np.ones(2))

    found = identify(errors, dict.fromkeys(full("compute_factor", "memory_factor"), 1.0))
    ((kept, value),) = found.values.items()
    assert value == pytest.approx(1.2, rel=1e-3)
    assert found.refused.keys() == set(full("compute_factor", "memory_factor")) - {kept}


def test_a_number_of_which_the_run_tells_no_more_than_its_prior_is_refused():
    rest = np.array([0.1, -0.1, 0.1, -0.1])
    name = "calibration.kv_read_factor"

    def errors(values: Mapping[str, float]) -> Errors:
        return Errors(0.1 * (values.get(name, 1.0) - 1.0) + rest, np.full(4, 0.5))

    with pytest.raises(InputError, match=r"kv_read_factor: .* the run tells no more than the prior"):
        identify(errors, {name: 1.0})


def test_a_factor_that_runs_away_is_no_correction():
    def errors(values: Mapping[str, float]) -> Errors:
        return Errors(np.log(np.full(3, values.get("calibration.compute_factor", 1.0) / 100)), np.ones(3))

    with pytest.raises(InputError, match="runs to 4, which is no small correction"):
        identify(errors, {"calibration.compute_factor": 1.0})


def test_scatter_makes_a_number_uncertain():
    """Standard error of a mean of n errors with standard deviation s: s / sqrt(n) of the number."""
    noise = np.random.default_rng(1).normal(0, 0.3, 400)

    def errors(values: Mapping[str, float]) -> Errors:
        return Errors(np.log(values.get("calibration.compute_factor", 1.0)) + noise, np.ones(400))

    found = identify(errors, {"calibration.compute_factor": 1.0})
    value, error = (side["calibration.compute_factor"] for side in (found.values, found.standard_errors))
    assert value == pytest.approx(np.exp(-noise.mean()), rel=1e-3)
    assert error == pytest.approx(value * noise.std() / 20, rel=0.05)
    noise *= 20
    with pytest.raises(InputError, match="and only"):
        identify(errors, {"calibration.compute_factor": 1.0})


# Power


def test_a_power_factor_gives_the_measured_power(tmp_path):
    case = run_of(tmp_path, {"power_factor": 0.8})
    truth = package.simulate(scenario(calibration=str(tmp_path / "numbers.toml")))
    span_s = np.ptp(np.concatenate([truth.requests[name].to_numpy() for name in ("arrival_s", "finish_s")]))
    power_w = truth.summary["energy"]["gpu_kwh"] * 3.6e6 / span_s
    found = calibrate([case], gpu_power_w=power_w).found
    assert found.values["calibration.power_factor"] == pytest.approx(0.8, rel=0.02)
    with pytest.raises(InputError, match="no factor of power model 'saturating' gives"):
        calibrate([case], gpu_power_w=5.0)


# What a calibration does to a run


def test_a_calibration_is_named_wherever_it_is_used(tmp_path):
    path = calibration_file(tmp_path, compute_factor=1.25)
    plain, corrected = (
        package.simulate(scenario(**more)).summary for more in ({}, {"calibration": str(path)})
    )
    assert plain["trust"]["timing_level"] == "kernels"
    assert corrected["trust"]["timing_level"] == "calibrated"
    assert corrected["ttft_s"]["mean"] > 1.05 * plain["ttft_s"]["mean"]
    notes = " | ".join(corrected["trust"]["notes"])
    assert "calibrated (compute_factor 1.25) on a test" in notes
    assert "belongs to another configuration" not in notes
    other = package.simulate(scenario(fleet={"gpu": "A100"}, calibration=str(path))).summary["trust"]["notes"]
    assert any("another configuration: A100-80GB-SXM, not H100-SXM" in note for note in other)


def test_the_client_s_constant_is_the_calibrated_one(tmp_path):
    path = calibration_file(tmp_path, client_s=0.02)
    plain, corrected = (package.simulate(scenario(**more)) for more in ({}, {"calibration": str(path)}))
    more_s = corrected.requests["client_s"] - plain.requests["client_s"]
    assert more_s.to_numpy() == pytest.approx(0.02 - CLIENT_CONSTANTS["fixed_s"], abs=1e-12)
    assert any("20 ms a request beyond the engine" in note for note in corrected.summary["trust"]["notes"])


def test_each_factor_divides_its_own_efficiencies(tmp_path):
    gpu = find_gpu("H100")
    before = parameters_of(gpu, "kernels").values
    touched = {
        "compute_factor": ("gemm.bf16.compute_efficiency", "attention.prefill.compute_efficiency"),
        "prefill_attention_factor": ("attention.prefill.compute_efficiency",),
        "memory_factor": ("gemm.bf16.memory_efficiency", "moe.bf16.memory_efficiency"),
        "kv_read_factor": ("attention.decode.memory_efficiency",),
    }
    for name, keys in touched.items():
        calibration = read_calibration(calibration_file(tmp_path, **{name: 2.0}))
        after = parameters_of(gpu, calibration=calibration).values
        assert {after[key] / before[key] for key in keys} == {0.5}
        changed = {key for key in before if after[key] != before[key]}
        assert set(keys) <= changed
        assert all(key.endswith(keys[0].rpartition(".")[2]) for key in changed)


def test_levels_stay_what_was_asked_for(tmp_path):
    a10, h100 = find_gpu("A10"), find_gpu("H100")
    assert parameters_of(a10).level == "calibrated"
    assert parameters_of(a10, "datasheet").level == "datasheet"
    assert parameters_of(h100).level == "kernels"
    with pytest.raises(InputError, match="no measured kernels of A10"):
        parameters_of(a10, "kernels")
    with pytest.raises(InputError, match="no calibration of H100-SXM comes with Kavier; expected one of A10"):
        parameters_of(h100, "calibrated")
    path = str(calibration_file(tmp_path, compute_factor=1.1))
    for level in ("kernels", "datasheet"):
        with pytest.raises(InputError, match=f"timing '{level}' takes no calibration"):
            parse_scenario(scenario(timing=level, calibration=path))


# Files


def test_what_is_written_is_read(tmp_path, monkeypatch):
    case = run_of(tmp_path, {"client_s": 0.011})
    monkeypatch.chdir(tmp_path)
    engine = ("--measured", "run.parquet", *LLAMA)
    ended = kavier("calibrate", *engine, "--out", "mine.toml")
    assert ended.status == 0, ended.err
    assert "calibration.client_s" in ended.out
    said = json.loads(kavier("calibrate", *engine, "--json").out)
    read = read_calibration(tmp_path / "mine.toml")
    assert read.values["calibration.client_s"] == pytest.approx(0.011, rel=0.01)
    assert said["numbers"]["calibration.client_s"]["value"] == pytest.approx(0.011, rel=0.01)
    assert said["numbers"]["calibration.client_s"]["default"] == CLIENT_CONSTANTS["fixed_s"]
    assert said["level"] == read.level == "kernels"
    assert said["measured"] == read.measured
    assert said["training"]["ttft_s"]["calibrated"] < 0.01 < said["training"]["ttft_s"]["without"]
    found = json.loads(kavier("validate", *engine, "--calibration", "mine.toml", "--json").out)["cases"][0]
    assert found["level"] == "calibrated"
    assert abs(found["metrics"]["ttft_s"]["mean"]["error"]) < 0.01
    assert case.scenario.calibration is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not toml", "no TOML"),
        ("a = 1", "measured.level does not say what it corrects"),
        ('[measured]\nlevel = "calibrated"', "measured.level does not say what it corrects"),
        ("{head}[calibration.speed]\n{rest}", "unknown number 'calibration.speed'"),
        ("{head}[calibration.compute_facto]\n{rest}", "did you mean calibration.compute_factor"),
        ("{head}[calibration.compute_factor]\nvalue = 1.0", "has no date, source, unit"),
        ("{head}[calibration]\ncompute_factor = 1.0", "calibration.compute_factor is not usable (got 1.0)"),
        ("client_s = 3\n{head}", "client_s is not usable (got 3); expected a table with value"),
        (
            "{head}[calibration]\nclient_s = 3\n[calibration.memory_factor]\n{rest}",
            "calibration.client_s is not usable (got 3); expected a table",
        ),
        ("{head}", "no calibration: no table of a constant"),
        ("value = 1\n{head}", "no calibration: no table of a constant"),
        ("{head}[calibration.memory_factor]\n{many}", "memory_factor is not usable (got 1000000000.0)"),
        ("{head}[calibration.compute_factor]\n{zero}", "(got 0); expected a number from 0.1 to 10"),
        (
            "{head}[calibration.memory_factor]\nvalue=1\nunit='1'\nsource=5\ndate=''",
            "source is no text (got 5)",
        ),
        (
            '[measured]\nlevel = "kernels"\ngpu = 5\n[calibration.memory_factor]\n{rest}',
            "measured.gpu is no text",
        ),
    ],
)
def test_a_file_that_does_not_do(tmp_path, text, problem):
    rest = 'unit = "1"\nsource = "x"\ndate = "2026-11-28"\n'
    head = MEASURED
    path = tmp_path / "bad.toml"
    texts = {name: f"value = {value}\n{rest}" for name, value in (("rest", 1.0), ("zero", 0), ("many", 1e9))}
    path.write_text(text.format(head=head, **texts))
    with pytest.raises(InputError) as caught:
        read_calibration(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match="cannot read the calibration"):
        package.simulate(scenario(calibration="/nowhere.toml"))


# Commands that do not do


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--fit", "speed"), "unknown number 'speed'"),
        (("--fit", "compute_facto"), "did you mean compute_factor"),
        (("--fit", ","), "no number to fit"),
        (("--fit", "power_factor"), "latencies do not tell power_factor; expected --gpu-power-w W"),
        (("--on", "latency"), "--on (got 'latency'); expected ttft, tpot or e2e"),
        (("--one-by-one", "--leave-one-out"), "--one-by-one makes a table"),
        (("--leave-one-out",), "one case cannot be left out of one"),
        (("--gpu-power-w", "0"), "--gpu-power-w is no power (got 0.0); expected watts above 0"),
        (("--level", "calibrated"), "a calibration corrects no other pricing of steps than a level"),
        (("--client", "engine"), "the run identifies none of these numbers"),
        (("--out", "/nowhere/x.toml"), "cannot write it"),
    ],
)
def test_a_command_that_does_not_do(tmp_path, monkeypatch, flags, problem):
    run_of(tmp_path, {}, workload=load(30))
    monkeypatch.chdir(tmp_path)
    assert problem in kavier("calibrate", "--measured", "run.parquet", *LLAMA, *flags).error


def test_nothing_to_fit_to():
    assert "no measured run" in kavier("calibrate").error


def test_without_scipy_the_extra_is_named(tmp_path, monkeypatch):
    case = run_of(tmp_path, {}, workload=load(30))
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install kavier-sim\[fit\]"):
        calibrate([case])


def test_overloaded_runs_identify_nothing(tmp_path):
    case = run_of(tmp_path, {}, workload=load(200, 200, 8000, 50))
    with pytest.raises(InputError, match=r"overloaded runs identify nothing.*requests wait .* on average"):
        calibrate([case])
    with pytest.raises(InputError, match="overloaded runs identify nothing"):
        one_by_one([case])


def test_overloaded_runs_beside_others_are_told_with_their_reasons(tmp_path):
    calm = run_of(tmp_path, {}, "calm", workload=load(60, 2))
    busy = run_of(tmp_path, {}, "busy", workload=load(200, 200, 8000, 50))
    plain = as_plain(calibrate([calm, busy]))
    assert plain["overloaded"].keys() == {"busy.parquet"}
    sections = {one.title: one.text for one in calibration_sections(plain)}
    assert sections["Overloaded, not fitted to"].startswith("busy.parquet: measured requests wait ")


def test_cases_of_two_machines_are_no_calibration(tmp_path):
    one, two = (
        run_of(tmp_path, {}, gpu, workload=load(60, 2), fleet={"gpu": gpu}) for gpu in ("H100", "A100")
    )
    with pytest.raises(InputError, match="cases of two machines: gpu H100-SXM and A100-80GB-SXM"):
        calibrate([one, two])


def test_cases_are_chosen_by_their_names(tmp_path):
    path = CASES / "vllm_h100_runs.yaml"
    if DATA.exists():
        assert [c.name for c in read_cases(Path(f"{path}::codellama-*"))] == [
            f"codellama-34b-{kind}" for kind in ("codegen", "roleplay", "general", "reasoning")
        ]
        with pytest.raises(InputError, match="no case 'codellama'; did you mean codellama-34b-"):
            read_cases(Path(f"{path}::codellama"))


# Errors elsewhere


def test_others_are_tested_with_and_without_and_never_those_it_was_fitted_to(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    one = run_of(folders[0], {"client_s": 0.012}, "a", workload=load(200))
    two = run_of(folders[1], {"client_s": 0.003}, "b", workload=load(200))
    made = calibrate([one], tests=[one, two])
    (tested,) = made.tests
    assert tested.calibrated.case == "b.parquet"
    before, after = (error_of(side, "ttft_s") for side in (tested.without, tested.calibrated))
    assert 0 < before < after  # it holds on another machine only
    first, second = one_by_one([one, two])
    assert first.found.values == made.found.values
    assert second.found.values["calibration.client_s"] == pytest.approx(0.003, rel=0.02)


def test_every_simulation_is_made_once(tmp_path):
    case = run_of(tmp_path, {"client_s": 0.012}, workload=load(100))
    counts: list[int] = []
    played = Played(counts.append)
    calibrate([case], played=played)
    before = played.count
    calibrate([case], played=played)
    assert played.count == before == len(counts)


# The sets of ../shared/data


def a10() -> list[NamedCase]:
    return [c for part in ("decode", "prefill") for c in read_cases(CASES / f"surf_a10_{part}.yaml")]


A10 = ROOT / "src" / "kavier" / "timing" / "calibrated" / "A10.toml"


@needs_data
def test_the_calibration_of_the_a10_is_what_the_command_makes():
    shipped = read_calibration(A10)
    made = calibrate(a10(), list(shipped.values))
    assert made.calibration.measured == shipped.measured
    assert made.calibration.source == shipped.source
    for name, value in shipped.values.items():
        assert made.found.values[name] == pytest.approx(value, rel=0.01)
    for metric, most in (("e2e_s", 0.005), ("ttft_s", 0.025)):
        mine = [one.calibrated for one in made.training if metric in one.calibrated.metrics]
        assert np.mean([abs(error_of(one, metric, "p50")) for one in mine]) <= most


@needs_data
def test_host_work_is_what_the_command_makes():
    cases = read_cases(Path(f"{CASES / 'silicon_qwen3_32b.yaml'}::TP8 1024/1024*"))
    assert len(cases) == 5
    found = calibrate(cases, full("host.step_s", "host.row_s"), ["tpot_s"]).found
    assert found.values["host.row_s"] == pytest.approx(shared_entries()["host.row_s"]["value"], rel=0.01)
    assert found.refused.keys() == {"host.step_s"}


def test_every_shipped_calibration_is_sound():
    assert calibrated_gpus()
    for gpu in calibrated_gpus():
        text = (A10.parent / f"{gpu}.toml").read_text()
        calibration = read_calibration(A10.parent / f"{gpu}.toml")
        assert calibration.measured["gpu"] == gpu == find_gpu(gpu).name
        tree = tomllib.loads(text)
        tree.pop("measured")
        for name, entry in entries(tree).items():
            assert name in NAMES
            assert entry.keys() >= {"error", "standard_error"}


def test_a_scenario_that_names_a_calibration_takes_it_from_its_folder(tmp_path):
    import yaml

    calibration_file(tmp_path, client_s=0.01)
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario(calibration="numbers.toml", workload=load(20))))
    result = package.simulate(path)
    assert isinstance(result.scenario, Scenario)
    assert result.summary["trust"]["timing_level"] == "calibrated"
    assert result.scenario.timing == "calibrated"


def test_a_kept_run_can_be_run_again_with_its_calibration(tmp_path, monkeypatch):
    calibration_file(tmp_path, compute_factor=1.2, client_s=0.01)
    monkeypatch.chdir(tmp_path)
    flags = ("--calibration", "numbers.toml", "--num-prompts", "20", "--request-rate", "2", "--json")
    first = kavier("run", *LLAMA, *flags, "--out", "kept")
    again = kavier("run", Path("kept", "scenario.resolved.yaml"), "--json")
    summaries = [json.loads(ended.out) for ended in (first, again)]
    assert summaries[0]["ttft_s"] == summaries[1]["ttft_s"]
    assert {summary["trust"]["timing_level"] for summary in summaries} == {"calibrated"}


def test_kernels_of_the_version_lie_under_a_calibration(tmp_path):
    calibration = read_calibration(calibration_file(tmp_path, memory_factor=2.0))
    own = kernel_entries("H100-SXM", "0.14")["gemm.bf16.memory_efficiency"]["value"]
    corrected = parameters_of(find_gpu("H100"), None, "0.14", calibration)
    assert corrected["gemm.bf16.memory_efficiency"] == pytest.approx(own / 2.0)
