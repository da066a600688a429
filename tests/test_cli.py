"""The command line under good input: every flag arrives where it should, and output goes where it should."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import shlex
import subprocess
from math import inf
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import kavier as package
from kavier.cli.run import run
from kavier.scenario import Scenario, parse_scenario
from kavier.scenario_file import dump_scenario
from kavier.workload.formats.mooncake import BLOCK_TOKENS
from kavier.workload.presets import preset_names
from kavier.yaml_text import parse_yaml
from tests.command_line import LLAMA, THREE, Terminal, command, kavier, run_process

MODEL, GPU = LLAMA[1], LLAMA[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds a good trace `t.csv`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(THREE)
    return tmp_path


class ParsedError(Exception):
    """Carries the scenario out of a run that must not be simulated."""


@pytest.fixture
def parsed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scenario that `kavier run` makes of its arguments."""

    def instead(scenario: Scenario, *_: object, **__: object) -> None:
        raise ParsedError(scenario)

    def parse(*arguments: str | Path) -> Scenario:
        with pytest.raises(ParsedError) as caught:
            kavier("run", *arguments)
        scenario = caught.value.args[0]
        assert isinstance(scenario, Scenario)
        return scenario

    monkeypatch.setattr("kavier.runner.simulate", instead)
    return parse


def base(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "fleet": {"gpu": GPU}, "workload": {"trace": "t.csv"}, **more}


# ---------------------------------------------------------------- flags -> scenario

_BENCH = {
    "num_prompts": 1000,
    "arrivals": {"process": "poisson", "request_rate": inf},
    "prompt_tokens": {"kind": "fixed", "mean": 1024},
    "output_tokens": {"kind": "fixed", "mean": 128},
}


def engine(**more: Any) -> dict[str, Any]:
    return base(engine=more)


def load(**more: Any) -> dict[str, Any]:
    return base(workload={"synthetic": {**_BENCH, **more}})


FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("--trace t.csv", base()),
    ("--trace t.csv --format azure", base(workload={"trace": "t.csv", "format": "azure"})),
    ("--trace t.csv --model m", base(model="m")),
    ("--trace t.csv --gpu g", base(fleet={"gpu": "g"})),
    ("--trace t.csv --replicas 2", base(fleet={"gpu": GPU, "replicas": 2})),
    ("--trace t.csv --router least-outstanding", base(fleet={"gpu": GPU, "router": "least-outstanding"})),
    ("--trace t.csv --client http", base(client="http")),
    ("--trace t.csv --region NO", base(site={"region": "NO"})),
    ("--trace t.csv --seed 5", base(seed=5)),
    ("--trace t.csv --max-concurrency 3", base(workload={"trace": "t.csv", "max_concurrency": 3})),
    ("--trace t.csv --max-model-len 4096", engine(max_model_len=4096)),
    ("--trace t.csv --max-model-len auto", engine(max_model_len="auto")),
    ("--trace t.csv --tensor-parallel-size 2", engine(tensor_parallel_size=2)),
    (
        "--trace t.csv --data-parallel-size 4",
        {**engine(data_parallel_size=4), "fleet": {**engine()["fleet"], "replicas": 4}},
    ),
    (
        "--trace t.csv --data-parallel-size 2 --replicas 6",
        {**engine(data_parallel_size=2), "fleet": {**engine()["fleet"], "replicas": 6}},
    ),
    ("--trace t.csv --enable-expert-parallel", engine(enable_expert_parallel=True)),
    ("--trace t.csv -tp 2", engine(tensor_parallel_size=2)),
    ("--trace t.csv --gpu-memory-utilization 0.5", engine(gpu_memory_utilization=0.5)),
    ("--trace t.csv --num-gpu-blocks-override 9", engine(num_gpu_blocks_override=9)),
    ("--trace t.csv --block-size 32", engine(block_size=32)),
    ("--trace t.csv --kv-cache-dtype fp8", engine(kv_cache_dtype="fp8")),
    ("--trace t.csv --kv-cache-dtype fp8_e4m3", engine(kv_cache_dtype="fp8")),
    ("--trace t.csv --kv-cache-dtype fp8_e5m2", engine(kv_cache_dtype="fp8")),
    ("--trace t.csv --kv-cache-dtype bfloat16", engine(kv_cache_dtype="auto")),
    ("--trace t.csv --dtype float16", engine(dtype="float16")),
    ("--trace t.csv --dtype half", engine(dtype="float16")),
    ("--trace t.csv --max-num-seqs 7", engine(max_num_seqs=7)),
    ("--trace t.csv --max_num_seqs 7", engine(max_num_seqs=7)),
    ("--trace t.csv --max_num_seqs=7", engine(max_num_seqs=7)),
    ("--trace t.csv --no-enable_prefix_caching", engine(enable_prefix_caching=False)),
    ("--trace t.csv --max-num-batched-tokens 77", engine(max_num_batched_tokens=77)),
    ("--trace t.csv --long-prefill-token-threshold 8", engine(long_prefill_token_threshold=8)),
    ("--trace t.csv --scheduling-policy priority", engine(scheduling_policy="priority")),
    ("--trace t.csv --enable-prefix-caching", engine(enable_prefix_caching=True)),
    ("--trace t.csv --no-enable-prefix-caching", engine(enable_prefix_caching=False)),
    ("--trace t.csv --no-enable-chunked-prefill", engine(enable_chunked_prefill=False)),
    ("--trace t.csv --no-async-scheduling", engine(async_scheduling=False)),
    ("--trace t.csv --async-scheduling", engine(async_scheduling=True)),
    ("--trace t.csv --vllm-version 0.25", engine(vllm_version="0.25")),
    ("--trace t.csv --vllm-version 0.25.1", engine(vllm_version="0.25")),
    ("--trace t.csv --vllm-version v0.25.1", engine(vllm_version="0.25")),
    ("--trace t.csv --vllm-version v0.25", engine(vllm_version="0.25")),
    ("--trace t.csv --set engine.vllm_version=0.20", engine(vllm_version="0.20")),
    ("--trace t.csv --watermark 0.1", engine(watermark=0.1)),
    ("--trace t.csv --no-scheduler-reserve-full-isl", engine(scheduler_reserve_full_isl=False)),
    ("--trace t.csv --trace-block-size 16", base(workload={"trace": "t.csv", "block_tokens": 16})),
    ("--trace t.csv --timing p.py:f", base(timing="p.py:f")),
    ("--trace t.csv --calibration c.toml", base(calibration="c.toml")),
    ("--trace t.csv --kernels mine", base(kernels="mine")),
    ("--trace t.csv --router p.py:f", base(fleet={"gpu": GPU, "router": "p.py:f"})),
    ("--trace t.csv --no-kv-cache", engine(kv_cache=False)),
    (
        "--trace t.csv --goodput ttft:200 --goodput tpot:50 --goodput e2el:5000",
        base(slo={"ttft_s": 0.2, "tpot_s": 0.05, "e2e_s": 5.0}),
    ),
    (
        "--goodput ttft:200 tpot:50 e2el:5000 --trace t.csv",
        base(slo={"ttft_s": 0.2, "tpot_s": 0.05, "e2e_s": 5.0}),
    ),
    ("--goodput=ttft:200 tpot:50 --trace t.csv", base(slo={"ttft_s": 0.2, "tpot_s": 0.05})),
    ("--trace t.csv --json", base()),
    ("--trace t.csv --out out", base()),
    (
        "--trace t.csv --set site.pue=1.5 --set fleet.replicas=3 --set site.region=NO",
        base(site={"pue": 1.5, "region": "NO"}, fleet={"gpu": GPU, "replicas": 3}),
    ),
    ("--trace t.csv --replicas 4 --set fleet.replicas=3", base(fleet={"gpu": GPU, "replicas": 3})),
    ("--trace t.csv --set engine.kv_cache=off", engine(kv_cache=False)),
    ("--num-prompts 7", load(num_prompts=7)),
    ("--request-rate 3", load(arrivals={"process": "poisson", "request_rate": 3})),
    ("--request-rate inf", load()),
    (
        "--burstiness 0.5 --request-rate 3",
        load(arrivals={"process": "gamma", "request_rate": 3, "burstiness": 0.5}),
    ),
    ("--random-input-len 10", load(prompt_tokens={"kind": "fixed", "mean": 10})),
    ("--random-output-len 10", load(output_tokens={"kind": "fixed", "mean": 10})),
    (
        "--random-range-ratio 0.5",
        load(
            prompt_tokens={"kind": "uniform", "mean": 1024, "range_ratio": 0.5},
            output_tokens={"kind": "uniform", "mean": 128, "range_ratio": 0.5},
        ),
    ),
    (
        "--random-range-ratio 0.5 --random-input-len 10",
        load(
            prompt_tokens={"kind": "uniform", "mean": 10, "range_ratio": 0.5},
            output_tokens={"kind": "uniform", "mean": 128, "range_ratio": 0.5},
        ),
    ),
    ("--preset azure-code", base(workload={"synthetic": {"preset": "azure-code"}})),
    (
        "--preset azure-code --num-prompts 5 --request-rate 2",
        base(
            workload={
                "synthetic": {"preset": "azure-code", "num_prompts": 5, "arrivals": {"request_rate": 2}}
            }
        ),
    ),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_a_flag_sets_its_key_and_no_other(parsed: Any, flags: str, expected: dict[str, Any]) -> None:
    arguments = flags.split()
    named = [*([] if "--model" in arguments else LLAMA[:2]), *([] if "--gpu" in arguments else LLAMA[2:])]
    assert parsed(*arguments, *named) == parse_scenario(expected)


def test_every_flag_is_tried_above() -> None:
    tried = " ".join(flags for flags, _ in FLAGS)
    flags = {name.rstrip("_").replace("_", "-") for name in inspect.signature(run).parameters} - {"scenario"}
    assert {flag for flag in flags if f"--{flag}" not in tried and f"--no-{flag}" not in tried} == set()


def test_the_defaults_that_help_states_are_true() -> None:
    stated = dict(
        re.findall(r"--([a-z-]+) <\w+>(?:(?!--).)*?\[([\w.-]+)\]", _joined(kavier("run", "--help").out))
    )
    scenario = parse_scenario(base())
    synthetic: Any = parse_scenario(load()).workload.synthetic
    true = {
        "replicas": scenario.fleet.replicas,
        "router": scenario.fleet.router,
        "region": scenario.site.region,
        "seed": scenario.seed,
        "tensor-parallel-size": scenario.engine.tensor_parallel_size,
        "data-parallel-size": scenario.engine.data_parallel_size,
        "block-size": scenario.engine.block_size,
        "kv-cache-dtype": scenario.engine.kv_cache_dtype,
        "dtype": scenario.engine.dtype,
        "scheduling-policy": scenario.engine.scheduling_policy,
        "timing": scenario.timing,
        "client": scenario.client,
        "vllm-version": scenario.engine.vllm_version,
        "watermark": scenario.engine.watermark,
        "trace-block-size": BLOCK_TOKENS,
        "burstiness": 1,
        "random-range-ratio": 0,
    }
    assert stated == {
        flag: f"{value:g}" if isinstance(value, float) else str(value) for flag, value in true.items()
    }
    assert (synthetic.num_prompts, synthetic.arrivals.request_rate) == (1000, inf)
    assert (scenario.engine.enable_prefix_caching, scenario.engine.enable_chunked_prefill) == (True, True)


def _joined(text: str) -> str:
    """Help on one line: typer breaks words at hyphens."""
    return re.sub(r"\s+", " ", re.sub(r"-\n\s+", "-", text))


# ---------------------------------------------------------------- scenario files


def write(path: str, **more: Any) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps(base(**more)))  # JSON is YAML


def test_a_scenario_file_alone_is_enough(parsed: Any) -> None:
    write("s.yaml", seed=3)
    assert parsed("s.yaml") == parse_scenario(base(seed=3))


def test_a_scenario_file_may_follow_an_objective(parsed: Any) -> None:
    write("s.yaml")
    assert parsed("--goodput", "ttft:200", "s.yaml", "--seed", "3").slo.ttft_s == 0.2


def test_flags_override_the_file_and_set_overrides_flags(parsed: Any) -> None:
    write("s.yaml", seed=3, fleet={"gpu": GPU, "replicas": 2, "router": "least-outstanding"})
    scenario = parsed("s.yaml", "--replicas", "5", "--seed", "8", "--set", "seed=9")
    assert (scenario.fleet.replicas, scenario.seed, scenario.fleet.router) == (5, 9, "least-outstanding")


def test_a_trace_flag_replaces_the_generator_of_the_file(parsed: Any) -> None:
    write("s.yaml", workload={"synthetic": {"preset": "azure-code"}, "max_concurrency": 4})
    section = parsed("s.yaml", "--trace", "t.csv").workload
    assert (section.trace, section.synthetic, section.max_concurrency) == (Path("t.csv"), None, 4)


def test_a_trace_flag_replaces_the_trace_of_the_file_and_its_format(parsed: Any) -> None:
    write("s.yaml", workload={"trace": "mooncake.jsonl", "format": "mooncake"})
    section = parsed("s.yaml", "--trace", "t.csv").workload
    assert (section.trace, section.format) == (Path("t.csv"), "auto")


def test_load_flags_change_the_generator_of_the_file(parsed: Any) -> None:
    write("s.yaml", workload={"synthetic": {"preset": "azure-code", "duration_s": 60}})
    synthetic = parsed("s.yaml", "--request-rate", "2").workload.synthetic
    assert (synthetic.preset, synthetic.duration_s, synthetic.arrivals.request_rate) == ("azure-code", 60, 2)


def test_files_of_a_scenario_are_taken_from_its_folder_and_flags_from_here(parsed: Any) -> None:
    write("deep/s.yaml", site={"carbon_series": "nl.csv"})
    scenario = parsed("deep/s.yaml")
    assert scenario.workload.trace == Path("deep/t.csv")
    assert scenario.site.carbon_series == Path("deep/nl.csv")
    assert parsed("deep/s.yaml", "--trace", "t.csv").workload.trace == Path("t.csv")


def test_an_empty_section_of_the_file_takes_flags(parsed: Any) -> None:
    Path("s.yaml").write_text(f"model: {MODEL}\nfleet:\nworkload:\nengine:\n")
    scenario = parsed("s.yaml", "--gpu", GPU, "--num-prompts", "3", "--block-size", "32")
    assert (scenario.fleet.gpu, scenario.engine.block_size) == (GPU, 32)


# ---------------------------------------------------------------- output

RUN = ("run", "--trace", "t.csv", *LLAMA)


def test_json_prints_the_summary_and_nothing_else(here: Path) -> None:
    ended = kavier(*RUN, "--json", "--out", "out")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == Path("out/summary.json").read_text()
    assert json.loads(ended.out)["requests"]["finished"] == 3


def test_the_page_goes_to_stdout_and_nothing_to_stderr(here: Path) -> None:
    ended = kavier(*RUN)
    assert (ended.status, ended.err) == (0, "")
    assert "3 finished" in ended.out
    assert "Nothing kept" in ended.out
    assert sorted(path.name for path in here.iterdir()) == ["t.csv"]


def test_python_and_the_command_line_agree(here: Path) -> None:
    summary = package.simulate(base()).summary
    assert json.loads(json.dumps(summary)) == json.loads(kavier(*RUN, "--json").out)


def test_a_kept_run_has_its_files_and_a_second_one_replaces_it_byte_for_byte(here: Path) -> None:
    assert f"Kept in {Path('out')}" in kavier(*RUN, "--out", "out").out
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert set(first) == {"scenario.resolved.yaml", "summary.json", "requests.parquet", "timeline.parquet"}
    again = kavier(*RUN, "--out", "out")
    assert (again.status, again.err) == (0, "kavier: the earlier run in out was replaced\n")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first


def test_steps_are_kept_on_request_only(here: Path) -> None:
    assert kavier(*RUN, "--out", "out", "--set", "output.steps=true").status == 0
    assert pl.read_parquet("out/steps.parquet").height > 0
    assert kavier(*RUN, "--out", "out").status == 0
    assert not Path("out/steps.parquet").exists()


@pytest.mark.parametrize(
    "arguments",
    [RUN, ("run", "--num-prompts", "4", "--random-input-len", "20", "--random-output-len", "3", *LLAMA)],
)
def test_the_resolved_scenario_of_a_run_runs_again(here: Path, arguments: tuple[str, ...]) -> None:
    """Notes aside: what vLLM had defaulted is now given."""
    first = json.loads(kavier(*arguments, "--json", "--out", "out").out)
    again = json.loads(kavier("run", "out/scenario.resolved.yaml", "--json").out)
    assert {**again, "trust": None} == {**first, "trust": None}


def test_the_resolved_scenario_is_the_scenario_with_engine_defaults_filled_in(here: Path) -> None:
    kavier(*RUN, "--out", "out", "--replicas", "2")
    resolved = parse_yaml(Path("out/scenario.resolved.yaml").read_text(), "resolved")
    assert resolved["fleet"]["replicas"] == 2
    assert resolved["engine"]["max_num_batched_tokens"] == 8192
    given = parse_yaml(
        dump_scenario(parse_scenario(base(fleet={"gpu": GPU, "replicas": 2})), Path("out")), "given"
    )
    assert resolved["fleet"]["gpu"] == "H100-SXM"
    assert {key for key in given if given[key] != resolved[key]} == {
        "engine", "fleet", "prices", "site", "timing",
    }  # fmt: skip


def test_a_progress_bar_shows_on_stderr_only_and_only_when_it_takes_long(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kavier.cli.progress.PATIENCE_S", 0.0)
    monkeypatch.setattr("kavier.cli.progress.REFRESH_S", 0.0)
    ended = kavier(*RUN, "--json")
    assert ended.status == 0
    assert "simulating" not in ended.err  # no terminal
    assert json.loads(ended.out)
    ended = kavier(*RUN, "--json", stderr=Terminal)
    assert json.loads(ended.out)
    assert "simulating" in ended.err
    monkeypatch.setattr("kavier.cli.progress.PATIENCE_S", 3600.0)
    assert "simulating" not in kavier(*RUN, "--json", stderr=Terminal).err


# ---------------------------------------------------------------- presets, and what changes them


LOAD_FLAGS = {
    "": "",
    "--request-rate 2": "request_rate",
    "--request-rate inf": "request_rate",
    "--burstiness 0.5": "process|gaps between arrivals",
    "--burstiness 0.5 --request-rate 2": "request_rate, (process|gaps between arrivals)",
    "--random-input-len 20": "prompt_tokens",
    "--random-output-len 5": "output_tokens",
    "--random-input-len 20 --random-output-len 5 --random-range-ratio 0.5": "prompt_tokens, output_tokens",
    "--max-concurrency 2": "",
    "--seed 3": "",
}
"""Flags of the load -> what the headline says is changed."""


@pytest.mark.parametrize("flags", LOAD_FLAGS)
@pytest.mark.parametrize("preset", preset_names())
def test_every_flag_of_the_load_goes_with_every_preset_and_a_changed_one_says_so(
    here: Path, preset: str, flags: str
) -> None:
    ended = kavier("run", *LLAMA, "--preset", preset, "--num-prompts", "3", *flags.split())
    assert (ended.status, ended.err) == (0, "")
    changed = rf" \(changed: ({LOAD_FLAGS[flags]})\)" if LOAD_FLAGS[flags] else ""
    assert re.search(rf"^3 requests from {preset} load{changed} in ", ended.out, re.MULTILINE)


@pytest.mark.parametrize(
    "flags", ["", "--duration-s 60", "--request-rate 2", "--request-rate inf", "--seed 3"]
)
@pytest.mark.parametrize("preset", preset_names())
def test_every_flag_of_synth_goes_with_every_preset(here: Path, preset: str, flags: str) -> None:
    ended = kavier("workload", "synth", "a.jsonl", "--preset", preset, "--num-prompts", "3", *flags.split())
    assert (ended.status, ended.err) == (0, "")
    assert re.match("[1-3] requests written", ended.out)


@pytest.mark.parametrize("preset", preset_names())
def test_an_infinite_rate_sends_the_first_turn_of_all_at_once(here: Path, preset: str) -> None:
    flags = ("--preset", preset, "--num-prompts", "30", "--request-rate", "inf")
    assert kavier("workload", "synth", "a.parquet", *flags).status == 0
    table = pl.read_parquet("a.parquet")
    first = table.filter(pl.col("parent").is_null()) if "parent" in table.columns else table
    assert set(first["arrival_s"]) == {0.0}
    assert first.height > 1
    assert "for a steady rate" not in kavier("run", *LLAMA, *flags).out


def test_what_pydantic_refuses_anywhere_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        Scenario.model_validate({"fleet": {"gpus": "H100"}})

    monkeypatch.setattr("kavier.runner.simulate", refuse)
    assert kavier(*RUN).error == "scenario: unknown key 'fleet.gpus'; did you mean gpu?"


# ---------------------------------------------------------------- traces as people have them


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + THREE.encode(),
        THREE.replace("\n", "\r\n").encode(),
        (THREE + "\n\n\n").encode(),
        THREE.rstrip("\n").encode(),
        THREE.replace("1,200,20", '"1","200","20"').encode(),
        THREE.replace(",", " , ").encode(),
        b'note,arrival_s,input_tokens,output_tokens\n"a, ""b""",0,100,10\n"two\nlines",1,200,20\n,2,300,5\n',
    ],
    ids=["bom", "crlf", "blank lines", "no last newline", "quoted", "spaces", "other columns"],
)
def test_a_csv_however_it_was_saved_gives_the_same_run(here: Path, data: bytes) -> None:
    expected = kavier(*RUN, "--json").out
    Path("t.csv").write_bytes(data)
    assert kavier(*RUN, "--json").out.replace(UNREAD, "") == expected


UNREAD = '\n      "columns of the trace that were not read: note",'


def test_a_trace_behind_a_link_or_under_another_name_is_read(here: Path) -> None:
    Path("Größe 大.csv").symlink_to("t.csv")
    ended = kavier("run", "--trace", "Größe 大.csv", *LLAMA)
    assert ended.status == 0
    assert "Größe 大.csv" in ended.out


# ---------------------------------------------------------------- kavier workload


def test_a_workload_is_made_converted_and_described(here: Path) -> None:
    assert kavier(
        "workload",
        "synth",
        "a.jsonl",
        "--preset",
        "mooncake-conversation",
        "--num-prompts",
        "50",
        "--seed",
        "3",
    ).out.startswith("50 requests written to a.jsonl")
    assert kavier("workload", "convert", "a.jsonl", "b.parquet").out.startswith(
        "50 requests written to b.parquet"
    )
    described = [
        json.loads(kavier("workload", "info", name, "--json").out) for name in ("a.jsonl", "b.parquet")
    ]
    first, second = ({**one, "source": None} for one in described)
    assert first == second
    assert first["requests"] == 50
    page = kavier("workload", "info", "a.jsonl").out
    assert "50" in page
    assert "an infinite cache hits" in " ".join(page.split())


def test_the_same_seed_makes_the_same_trace_and_another_seed_another(here: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        kavier(
            "workload",
            "synth",
            f"{name}.jsonl",
            "--preset",
            "azure-code",
            "--num-prompts",
            "20",
            "--seed",
            seed,
        )
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes() != Path("c.jsonl").read_bytes()


def test_a_specification_is_overridden_by_flags(here: Path) -> None:
    Path("spec.yaml").write_text(
        "num_prompts: 5\narrivals: {process: constant, request_rate: 2}\n"
        "prompt_tokens: {mean: 10}\noutput_tokens: {mean: 3}\n"
    )
    assert kavier("workload", "synth", "a.jsonl", "--spec", "spec.yaml", "--request-rate", "4").status == 0
    rows = pl.read_ndjson("a.jsonl")
    assert rows["prompt_tokens"].to_list() == [10] * 5
    assert rows["arrival_s"].diff().drop_nulls().to_list() == [0.25] * 4


def test_a_converted_trace_runs_as_the_original(here: Path) -> None:
    kavier("workload", "convert", "t.csv", "t.parquet")
    original, converted = (
        json.loads(kavier("run", "--trace", name, *LLAMA, "--json").out) for name in ("t.csv", "t.parquet")
    )
    assert original["ttft_s"] == converted["ttft_s"]


# ---------------------------------------------------------------- kavier catalog and explain


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("gpus", "h100", "H100-SXM"),
        ("models", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("regions", "nl", "NLD"),
        ("prices", "H100", "USD"),
    ],
)
def test_the_catalog_lists_and_names_sources(kind: str, name: str, said: str) -> None:
    listing, entry = kavier("catalog", kind), kavier("catalog", kind, name)
    assert (listing.status, entry.status, listing.err, entry.err) == (0, 0, "", "")
    assert said in entry.out
    assert re.search(r"\b20\d\d-\d\d", entry.out)  # the date of a source
    assert len(json.loads(kavier("catalog", kind, "--json").out)) > 5
    assert json.loads(kavier("catalog", kind, name, "--json").out)


@pytest.mark.parametrize(
    ("metric", "said"), [("ttft_s", "first token"), ("ttft", "first token"), ("energy.gpu_kwh", "kWh")]
)
def test_a_metric_is_explained(metric: str, said: str) -> None:
    ended = kavier("explain", metric)
    assert (ended.status, ended.err) == (0, "")
    assert said in ended.out
    assert "formula" in ended.out


def test_every_number_of_the_summary_is_explained(here: Path) -> None:
    summary = json.loads(kavier(*RUN, "--json").out)
    listed = kavier("explain").out
    for key in summary.keys() - {"schema_version"}:
        assert key in listed
        assert kavier("explain", key).status == 0


def test_a_part_of_a_metric_that_does_not_exist_is_refused() -> None:
    assert "unknown metric 'energy.foo'" in kavier("explain", "energy.foo").error


# ---------------------------------------------------------------- the command itself


def test_the_version_is_printed() -> None:
    assert kavier("--version").out == f"kavier {package.__version__}\n"


def test_without_arguments_help_is_shown_and_the_code_is_2() -> None:
    for arguments in ((), ("workload",)):
        ended = kavier(*arguments)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith("Usage: kavier")


@pytest.mark.parametrize("command_", ["", "run", "catalog", "explain", "workload", "workload synth"])
def test_help_is_plain_text_on_stdout(command_: str) -> None:
    ended = kavier(*command_.split(), "--help")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("Usage: kavier")
    assert "\x1b" not in ended.out


def test_help_needs_less_than_0_3_s_of_cpu(here: Path) -> None:
    def used() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_process(["--help"], here).status == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(used() for _ in range(3)) < 0.3


def test_help_imports_nothing_heavy(here: Path) -> None:
    script = (
        "import sys\nfrom kavier.cli.main import main\nsys.argv = ['kavier', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'numpy', 'polars', 'pydantic', 'yaml', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([*command()[:1], "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_ctrl_c_ends_a_run_with_130_and_no_traceback_and_nothing_written(here: Path) -> None:
    script = (
        "import os, signal, sys, time, kavier.runner\nfrom kavier.cli.main import main\n"
        "def interrupted(*_, **__):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n"
        "kavier.runner.simulate_compiled = interrupted\nmain()"
    )
    line = [*command()[:1], "-c", script, *RUN, "--out", "out"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", [RUN, (*RUN, "--json"), ("--help",), ("catalog", "models")])
def test_a_reader_that_leaves_early_sees_no_traceback(here: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command(*arguments), cwd=here, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_error(here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*RUN, "--json"), stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "kavier: error: [Errno 28] No space left on device\n"


def test_a_closed_stdout_is_no_error(here: Path) -> None:
    line = shlex.join(command(*RUN, "--out", "out")) + " >&-"
    done = subprocess.run(line, shell=True, stderr=-1, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("out/summary.json").exists()


def test_a_terminal_without_unicode_still_gets_a_page(here: Path) -> None:
    ended = run_process(RUN, here, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ended.status, ended.err) == (0, "")
    assert "3 finished" in ended.out


def test_a_path_that_is_no_text_is_shown_without_a_traceback(here: Path) -> None:
    name = os.fsdecode(b"\xff.csv")
    Path(name).write_text(THREE)
    assert run_process(("run", "--trace", name, *LLAMA), here).status == 0
    assert run_process(("run", "--trace", name, *LLAMA, "--format", "mooncake"), here).error
