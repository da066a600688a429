"""How far to trust a result: load factor, limits, sensitivities, the nearest of what was validated."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import kavier as package
from kavier.ecosystem.platform import build_platform
from kavier.errors import InputError
from kavier.metrics.capacity import Load
from kavier.metrics.expected import MOST, expected_errors, sensitivity
from kavier.metrics.validated import (
    DISTANCE,
    Configuration,
    Near,
    Validated,
    nearest,
    parse_record,
    record,
    record_toml,
)
from kavier.report.console import print_page
from kavier.report.trust import LABELS, LIMITS, trust_table
from kavier.runner import Result, load_workload
from kavier.scenario import parse_scenario
from kavier.validation.case import read_cases
from kavier.validation.record import covered, recorded
from kavier.validation.validate import validate_case
from tests.command_line import kavier

ROOT = Path(__file__).parents[1]
CASES = ROOT / "validation" / "cases"
DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the measured runs in ../shared/data")


def uniform(shortest: int, longest: int) -> dict[str, Any]:
    return {"kind": "quantiles", "quantiles": [[0, shortest], [1, longest]]}


def tree(rate: float, *, requests: int = 1500, clients: int | None = None, **engine: Any) -> dict[str, Any]:
    return {
        "model": "meta-llama/Llama-3.1-8B",
        "fleet": {"gpu": "H100-SXM"},
        "engine": engine,
        "workload": {
            "synthetic": {
                "num_prompts": requests,
                "arrivals": {"request_rate": rate},
                "prompt_tokens": uniform(100, 1500),
                "output_tokens": uniform(20, 400),
            },
            "max_concurrency": clients,
        },
    }


def trust_of(plain: dict[str, Any], **given: Any) -> dict[str, Any]:
    found: dict[str, Any] = package.simulate(plain, **given).summary["trust"]
    return found


# Load factor and limits


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [({"rate": 2}, 0.05, 0.15), ({"rate": 16}, 0.6, 0.8), ({"rate": 40}, 1.4, 2.0)],
)
def test_the_load_factor_is_one_where_the_queue_begins_to_grow(changes, low, high):
    found = package.simulate(tree(**changes, max_num_seqs=64)).summary
    assert low < found["trust"]["load_factor"] < high
    assert (found["queue_s"]["mean"] > found["e2e_s"]["mean"] / 2) == (low > 1)


@pytest.mark.parametrize(
    "engine",
    [{"max_num_seqs": 16}, {"max_num_seqs": 256}, {"max_num_seqs": 256, "num_gpu_blocks_override": 2000}],
)
def test_an_overloaded_run_serves_what_the_load_factor_says_that_it_can(engine):
    """Capacity = offered / load factor, by the cost of a mean step: the run comes within 5 % when full."""
    result = package.simulate(tree(60, requests=4000, **engine))
    requests, factor = result.requests, result.summary["trust"]["load_factor"]
    life_s = (requests["finish_s"] - requests["first_scheduled_s"]).to_numpy().mean()
    possible = len(requests) / (requests["arrival_s"].to_numpy().max() + life_s) / factor
    ends = requests["finish_s"].sort().to_numpy()
    assert factor > 1.3
    assert 2000 / (ends[3000] - ends[1000]) == pytest.approx(possible, rel=0.05)


def test_replicas_share_the_load():
    one, two = tree(16, max_num_seqs=64), tree(16, max_num_seqs=64)
    two["fleet"]["replicas"] = 2
    assert trust_of(two)["load_factor"] == pytest.approx(trust_of(one)["load_factor"] / 2, rel=0.15)


@pytest.mark.parametrize(
    ("limit", "plain"),
    [
        ("arrivals", tree(2)),
        ("burst", tree(40, requests=500)),
        ("burst", tree(math.inf, requests=20)),
        ("clients", tree(math.inf, clients=8)),
        ("seats", tree(40, max_num_seqs=32)),
        ("kv_blocks", tree(40, num_gpu_blocks_override=2000)),
        ("token_budget", tree(40, max_num_batched_tokens=128, max_num_seqs=128)),
        ("compute", tree(60, max_num_seqs=512)),
    ],
)
def test_what_limits_a_run(limit, plain):
    assert trust_of(plain)["limited_by"] == limit


@pytest.mark.parametrize(
    ("limit", "prompts", "answers"), [("compute", (2000, 3000), (1, 1)), ("bandwidth", (10, 50), (500, 1500))]
)
def test_which_peak_limits_a_gpu(limit, prompts, answers):
    """A model without grouped queries on more KV memory than there is: the cache is most of what it reads."""
    plain = tree(200, requests=3000, num_gpu_blocks_override=40_000, max_num_seqs=1024)
    plain["model"] = "meta-llama/Llama-2-7b-hf"
    plain["workload"]["synthetic"] |= {"prompt_tokens": uniform(*prompts), "output_tokens": uniform(*answers)}
    assert trust_of(plain)["limited_by"] == limit


def test_lifting_the_limit_helps_and_lifting_another_does_not():
    seats = tree(40, max_num_seqs=32)
    served = [
        package.simulate(tree(40, **engine)).summary["throughput"]["requests_per_s"]
        for engine in ({"max_num_seqs": 32}, {"max_num_seqs": 64},
                       {"max_num_seqs": 32, "gpu_memory_utilization": 0.95})
    ]  # fmt: skip
    assert trust_of(seats)["limited_by"] == "seats"
    assert served[1] > 1.1 * served[0]
    assert served[2] == pytest.approx(served[0], rel=0.01)


@pytest.mark.parametrize(
    "plain", [tree(2, requests=5, kv_cache=False), tree(2, requests=5, max_model_len=32)]
)
def test_nothing_is_said_of_load_where_nothing_can_be(plain):
    found = trust_of(plain)
    assert found["load_factor"] is found["limited_by"] is found["expected_error"] is None
    assert found["nearest"] is not None


def test_nothing_is_expected_of_a_step_time_that_nobody_validated():
    found = trust_of(tree(2, requests=50), timing=lambda work: 0.01 + 1e-5 * work.prefill_tokens)
    assert found["timing_level"] == "python"
    assert found["nearest"] is found["expected_error"] is found["load_factor"] is None


def test_a_limit_of_clients_that_never_binds_is_none():
    assert trust_of(tree(2, clients=1000))["limited_by"] == "arrivals"


# Sensitivity: against the same run with all steps longer


LONGER = 1.02


def grown(plain: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metric -> its exact sensitivity; and the trust of the run.

    Steps that take 1.02 times as long are those of a run whose requests come 1.02 times as fast, on a clock
    that runs as much slower.
    """
    workload = load_workload(parse_scenario(plain))
    faster = replace(workload, requests=workload.requests.with_columns(pl.col("arrival_s") / LONGER))
    before, after = (package.simulate(plain, workload=one).summary for one in (workload, faster))
    exact = {
        name: math.log(LONGER * after[name]["mean"] / before[name]["mean"]) / math.log(LONGER)
        for name in ("ttft_s", "tpot_s", "e2e_s")
    }
    return exact, before["trust"]


@pytest.mark.parametrize(
    "plain",
    [
        tree(4, requests=3000, max_num_seqs=64), tree(16, requests=3000, max_num_seqs=64),
        tree(24, requests=3000, max_num_seqs=256), tree(28, requests=3000, max_num_seqs=256),
        tree(40, requests=3000, max_num_seqs=64), tree(60, requests=3000, max_num_seqs=256),
        tree(math.inf, clients=32), tree(math.inf, clients=64, max_num_seqs=32),
    ],
)  # fmt: skip
def test_sensitivities_are_those_of_longer_steps(plain):
    exact, trust = grown(plain)
    for metric, size in exact.items():
        told = sum(trust["sensitivity"][metric].values())
        assert told == pytest.approx(size, rel=0.3), metric


@pytest.mark.parametrize(("rate", "requests"), [(40, 200), (40, 500), (60, 500), (35, 1000)])
def test_a_short_burst_ends_before_batches_have_grown(rate, requests):
    exact, trust = grown(tree(rate, requests=requests))
    told = sum(trust["sensitivity"]["tpot_s"].values())
    assert 0.5 < told / exact["tpot_s"] < 1.5


@pytest.mark.parametrize("rate", [0.5, 1, 1.5, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    ("model", "gpu", "tp"),
    [("Qwen/Qwen3-30B-A3B", "H100", 2), ("deepseek-ai/DeepSeek-V2-Lite", "H200", 1),
     ("openai/gpt-oss-20b", "A100", 1)],
)  # fmt: skip
def test_sensitivities_do_not_jump_with_graph_sizes_and_experts(model, gpu, tp, rate):
    plain = tree(rate, requests=1500, tensor_parallel_size=tp, max_model_len=8192)
    exact, trust = grown({**plain, "model": model, "fleet": {"gpu": gpu}})
    assert sum(trust["sensitivity"]["tpot_s"].values()) == pytest.approx(exact["tpot_s"], rel=0.3)


def test_near_saturation_the_wait_grows_many_times_as_much_as_the_step():
    """TTFT of a full batch at load 0.88: told and exact sensitivity within a factor of two."""
    exact, trust = grown(tree(8, requests=3000, max_num_seqs=16))
    told = sum(trust["sensitivity"]["ttft_s"].values())
    assert told > 5
    assert 0.5 < told / exact["ttft_s"] < 2
    assert any("near saturation" in note for note in trust["notes"])


def load_at(factor: float, *, slope: float = 0.0, closed: bool = False) -> Load:
    return Load(factor, "seats", slope=slope, prefill_share=0.25, lives=1e6, closed=closed)


def waiting(load: Load) -> float:
    """TTFT sensitivity of requests that do little but wait."""
    mean = {"ttft_s": 100.0, "queue_s": 99.9, "tpot_s": 0.01, "e2e_s": 101.0}
    summary = {**{name: {"mean": value} for name, value in mean.items()}, "makespan_s": 1e3}
    return sum(sensitivity(load, summary)["ttft_s"].values())


@pytest.mark.parametrize(
    ("load", "times"),
    [
        (load_at(0.5), 2), (load_at(0.9), 10), (load_at(0.5, slope=0.5), 4), (load_at(1.0), MOST),
        (load_at(0.999), MOST), (load_at(2.0), 2), (load_at(50.0), 1.02), (load_at(0.95, closed=True), 1),
    ],
)  # fmt: skip
def test_the_wait_grows_by_what_is_left_of_the_capacity(load, times):
    assert waiting(load) == pytest.approx(times, rel=0.01)


def test_energy_errs_by_power_and_by_a_part_of_time():
    found = expected_errors(
        {"energy": {"decode": 0.65, "prefill": 0.0}}, {"decode": 0.06, "prefill": 0.5}, 0.095
    )
    assert found["energy"] == pytest.approx(math.hypot(0.095, 0.65 * 0.06))


# The nearest of what was validated


def own(**changes: Any) -> Configuration:
    plain = {**tree(2), "engine": {"vllm_version": "0.14"}}
    return replace(Configuration.of(build_platform(parse_scenario(plain))), **changes)


def validated(configuration: Configuration, **changes: Any) -> Validated:
    errors = {name: {"median": 0.01, "p90": 0.04, "bias": 0.0} for name in ("ttft_s", "tpot_s")}
    one = Validated("set", "kernels", False, configuration, 3, (0.2, 0.9), errors, "somebody", "2026-11-28")
    return replace(one, **changes)


def test_what_was_validated_itself_is_nearest_and_differs_by_nothing():
    others = [validated(own(gpu="L40S")), validated(own()), validated(own(weight_dtype="fp8"))]
    near = nearest(own(), ("kernels",), 0.5, others)
    assert near is not None
    assert near.validated is others[1]
    assert near.differs == ()
    assert near.step_errors() == pytest.approx({"decode": 0.04 / 1.645, "prefill": DISTANCE["floor.prefill"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "H200-SXM"}, "GPU H200-SXM instead of H100-SXM"),
        ({"active_parameters": 70 * 10**9, "model": "big"}, "model big instead of meta-llama/Llama-3.1-8B"),
        ({"kind": "moe"}, "experts instead of a dense model"),
        ({"kind": "mla"}, "latent attention instead of a dense model"),
        ({"weight_dtype": "fp8"}, "fp8 weights instead of bf16"),
        ({"tensor_parallel_size": 4}, "TP 4 instead of 1"),
        ({"data_parallel_size": 2}, "data parallel 2 instead of 1"),
        ({"expert_parallel": True}, "with expert parallelism"),
        ({"asynchronous": False}, "synchronous scheduling instead of asynchronous"),
        ({"vllm_version": "0.11"}, "vLLM 0.11 instead of 0.14"),
    ],
)
def test_each_difference_is_named_and_widens_the_error(change, words):
    near = nearest(own(), ("kernels",), 0.5, [validated(own(**change))])
    assert near is not None
    assert near.differs == (words,)
    assert near.distance > 0
    here = nearest(own(), ("kernels",), 0.5, [validated(own())])
    assert here is not None
    assert all(far > here.step_errors()[kind] for kind, far in near.step_errors().items())


def test_another_name_of_the_same_model_is_no_difference():
    near = nearest(own(), ("kernels",), None, [validated(own(model="meta-llama/Llama-3.1-8B-Instruct"))])
    assert near is not None
    assert near.differs == ()


def test_a_gpu_of_the_same_architecture_is_nearer():
    near = nearest(own(), ("kernels",), 0.5, [validated(own(gpu="L40S")), validated(own(gpu="H200-SXM"))])
    assert near is not None
    assert near.validated.configuration.gpu == "H200-SXM"


def test_a_level_that_knows_less_says_more_of_one_that_knows_more():
    low, high = validated(own(), level="datasheet"), validated(own())
    up, down = nearest(own(), ("kernels",), 0.5, [low]), nearest(own(), ("datasheet",), 0.5, [high])
    assert up is not None
    assert down is not None
    assert 0 < up.distance < down.distance
    assert up.differs == ("step times of level datasheet instead of kernels",)


@pytest.mark.parametrize(("own_level", "below"), [("calibrated", "kernels"), ("kernels", "datasheet")])
def test_own_numbers_are_as_near_as_those_that_they_took_the_place_of(own_level, below):
    near = nearest(own(), (own_level, below), 0.5, [validated(own(), level=below)])
    assert near is not None
    assert near.differs == ()


CALIBRATION = """
[measured]
level = "kernels"
gpu = "H100-SXM"
model = "meta-llama/Llama-3.1-8B"

[calibration]
source = "somebody"
error = "small"
date = "2026-11-28"
compute_factor = { value = 1.05, unit = "1", standard_error = 0.01 }
"""


def test_a_calibration_does_not_lower_the_trust(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CALIBRATION)
    plain = tree(2, requests=100)
    before, after = trust_of(plain), trust_of({**plain, "calibration": str(path)})
    assert after["timing_level"] == "calibrated"
    assert after["nearest"] == before["nearest"]
    assert all(after["step_error"][kind] <= error for kind, error in before["step_error"].items())


def test_the_release_that_was_measured_is_said_where_another_is_mirrored():
    assert "vLLM 0.14 (measured with 0.15.1)" in validated(own(), measured_with="0.15.1").name
    assert "measured" not in validated(own()).name


def test_more_load_than_was_validated_is_a_difference():
    near = nearest(own(), ("kernels",), 1.5, [validated(own())])
    assert near is not None
    assert near.differs == ("load up to 0.90 instead of 1.50",)


def test_without_a_record_nothing_is_near():
    assert nearest(own(), ("kernels",), 0.5, []) is None


# The record


def test_every_entry_of_the_record_has_a_source_and_numbers_that_hang_together():
    assert len(record()) > 10
    for one in record():
        assert one.source
        assert one.date
        assert one.runs >= 1
        assert 0 < one.load[0] <= one.load[1]
        assert one.errors
        for error in one.errors.values():
            assert 0 <= error["median"] <= error["p90"] * 1.001
            assert abs(error["bias"]) <= error["p90"] or one.runs > 1


def test_distances_are_above_zero_and_judgement_is_called_so():
    text = files("kavier.metrics").joinpath("distance.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["differs"]["source"].startswith("judgement")
    assert all(value > 0 for value in DISTANCE.values())


def test_a_record_is_read_as_it_was_written():
    entries = (validated(own(), source='a "quoted" \\ name'), validated(own(), overloaded=True))
    assert parse_record(record_toml(entries)) == entries


@needs_data
def test_the_record_is_what_a_validation_finds():
    """Runs `make validate` again when step times have changed."""
    names = {"llmservingsim": None, "vllm_h100_runs": "reasoning"}
    played = [
        (case, validate_case(case))
        for stem, part in names.items()
        for case in read_cases(CASES / f"{stem}.yaml")
        if part is None or part in case.name
    ]
    fresh = parse_record(record_toml(recorded(played)))
    shipped = {(one.configuration, one.level, one.overloaded): one for one in record()}
    assert len(fresh) == 4
    for one in fresh:
        kept = shipped[one.configuration, one.level, one.overloaded]
        assert replace(one, date=kept.date) == kept


@needs_data
def test_most_errors_are_covered_by_what_was_expected_without_their_own_set():
    """85 % of the errors are within two standard deviations, in each metric (docs/validation.md has more)."""
    cases = [case for path in sorted(CASES.glob("*.yaml")) for case in read_cases(path)]
    played = [(case, validate_case(case)) for case in cases]
    for left_out in (True, False):
        found = covered(played, record(), left_out=left_out)
        assert found.keys() == {"ttft_s", "tpot_s", "e2e_s"}
        assert all(one["within_2"] >= 0.85 for one in found.values()), found
    assert found["tpot_s"]["within_1"] < 0.95  # nor is everything called doubtful


@needs_data
def test_validate_writes_a_record(tmp_path):
    path = tmp_path / "record.toml"
    assert kavier("validate", CASES / "surf_a10_prefill.yaml", "--record", path).status == 0
    (one,) = parse_record(path.read_text())
    assert (one.configuration.gpu, one.runs, list(one.errors)) == ("A10", 8, ["ttft_s"])


@needs_data
def test_what_hangs_on_unknown_settings_is_no_error_of_ours():
    shown = [one for one in record() if one.case == "silicon_qwen3_32b"]
    assert shown
    assert all(one.errors.keys() == {"tpot_s"} for one in shown)


def test_a_record_of_what_has_no_source_is_refused(tmp_path):
    named = read_cases(CASES / "surf_a10_prefill.yaml")[:1] if DATA.exists() else pytest.skip("needs data")
    with pytest.raises(InputError, match="a case without source"):
        recorded([(replace(named[0], source=""), validate_case(named[0]))])


@pytest.mark.parametrize("flag", ["--ablate", "--measured"])
def test_a_record_goes_with_case_files_alone(flag, tmp_path):
    given = [flag] if flag == "--ablate" else [flag, tmp_path / "mine.csv"]
    error = kavier("validate", CASES / "surf_a10_prefill.yaml", "--record", tmp_path / "r", *given).error
    assert "--record is of case files as they are" in error


# The page


def page(result: Result, capsys: pytest.CaptureFixture[str]) -> str:
    print_page(result, None)
    return capsys.readouterr().out


def test_the_page_tells_errors_load_and_the_nearest(capsys):
    shown = page(package.simulate(tree(2, requests=100)), capsys)
    for part in ("Expected error", "Load factor", "Nearest validated", "Differs by"):
        assert part in shown
    assert all(label in shown for label in LABELS.values())
    assert LIMITS["arrivals"] in shown


@pytest.mark.parametrize(
    ("bias", "runs", "words"),
    [(-0.03, 9, "TPOT 4.0% (mostly too short)"), (0.04, 1, "TPOT 4.0% (too long)"), (0.01, 9, "TPOT 4.0%")],
)
def test_the_page_tells_the_direction_of_a_bias(bias, runs, words):
    error = {"median": 0.04, "p90": 0.05, "bias": bias}
    near = Near(validated(own(), errors={"tpot_s": error}, runs=runs), (), 0.0)
    trust = trust_of(tree(2, requests=50)) | {"nearest": near.as_dict()}
    cells = [str(cell) for cell in trust_table({"trust": trust}).columns[1].cells]
    assert any(cell.endswith(words) for cell in cells), cells


def test_the_page_does_not_give_a_number_where_nothing_is_predicted(capsys):
    result = package.simulate(tree(24, requests=2000, max_num_seqs=64))
    assert result.summary["trust"]["expected_error"]["ttft_s"] > 0.5
    assert "TTFT not predictable" in page(result, capsys)


def test_every_limit_has_words():
    from typing import get_args

    from kavier.metrics.capacity import Limit

    assert LIMITS.keys() == set(get_args(Limit))
