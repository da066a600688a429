"""The scenario tree: one YAML file in, one YAML file out, and nothing read differently than meant."""

from __future__ import annotations

import copy
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from kavier.errors import InputError, nearest
from kavier.scenario import Scenario, parse_scenario
from kavier.scenario_errors import _paths
from kavier.scenario_file import anchor_paths, dump_scenario, get_path, read_scenario_tree, set_path
from kavier.yaml_text import parse_yaml


def tree(**more: Any) -> dict[str, Any]:
    return {"model": "m", "fleet": {"gpu": "g"}, "workload": {"trace": "t.csv"}, **more}


FULL = tree(
    seed=7,
    workload={
        "synthetic": {
            "num_prompts": 10,
            "arrivals": {"process": "gamma", "request_rate": 2.5, "burstiness": 0.5},
            "prompt_tokens": {"kind": "quantiles", "quantiles": [[0, 1], [0.5, 10], [1, 100]]},
            "output_tokens": {"kind": "lognormal", "mean": 100, "p50": 80, "max": 1000},
            "prefixes": {"system_prompts": 2, "system_prompt_tokens": 100, "mean_turns": 2},
        },
        "max_concurrency": 8,
    },
    engine={"max_model_len": "auto", "enable_prefix_caching": False, "num_gpu_blocks_override": 100},
    site={"region": "NO", "pue": 1.1},
    slo={"ttft_s": 0.2},
)


@pytest.mark.parametrize(
    "plain",
    [
        tree(),
        FULL,
        tree(
            workload={
                "synthetic": {
                    "num_prompts": 3,
                    "arrivals": {"request_rate": inf},
                    "prompt_tokens": {"mean": 1},
                    "output_tokens": {"mean": 1},
                }
            }
        ),
        tree(engine={"max_model_len": 4096}),
    ],
)
def test_a_scenario_written_and_read_again_is_the_same(plain: dict[str, Any], tmp_path: Path) -> None:
    scenario = parse_scenario(plain)
    (tmp_path / "s.yaml").write_text(dump_scenario(scenario, Path()))
    again = parse_scenario(parse_yaml((tmp_path / "s.yaml").read_text(), "s.yaml"))
    assert again == scenario
    assert dump_scenario(again, Path()) == dump_scenario(scenario, Path())


def test_the_dump_writes_every_default_out() -> None:
    def keys(node: Any, prefix: str = "") -> set[str]:
        if not isinstance(node, dict):
            return {prefix}
        return {path for key, value in node.items() for path in keys(value, f"{prefix}.{key}")}

    written = keys(parse_yaml(dump_scenario(parse_scenario(tree()), Path()), "dump"))
    assert {".engine.gpu_memory_utilization", ".site.pue", ".output.steps", ".slo.ttft_s", ".seed"} <= written


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("site: {region: NO}", "site.region", "NO"),
        ("engine: {enable_prefix_caching: off}", "engine.enable_prefix_caching", False),
        ("engine: {enable_prefix_caching: false}", "engine.enable_prefix_caching", False),
        ("engine: {kv_cache: yes}", "engine.kv_cache", True),
        ("engine: {vllm_version: 0.33}", "engine.vllm_version", "0.33"),
        ("site: {start: 2024-05-01}", "site.start", "2024-05-01"),
        ("site: {start: 2024-05-01T12:30:00Z}", "site.start", "2024-05-01T12:30:00Z"),
        ("slo: {ttft_s: 2e-1}", "slo.ttft_s", 0.2),
        ("fleet: {gpu: 4090}", "fleet.gpu", "4090"),
        ("seed: 1_000", "seed", 1000),
        ("fleet: {gpu: g, replicas: '3'}", "fleet.replicas", 3),
        ("seed: 3.0", "seed", 3),
        ("prices: {usd_per_kwh:}", "prices.usd_per_kwh", None),
        ("\ufeffseed: 5", "seed", 5),
        ("seed: 5\r\nslo: {e2e_s: 1}\r\n", "slo.e2e_s", 1.0),
        ("x-: &one {ttft_s: 1, e2e_s: 2}\nslo: {<<: *one, e2e_s: 3}", "slo.e2e_s", 3.0),
    ],
)
def test_yaml_is_read_as_people_mean_it(text: str, path: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(text.encode())
    plain = read_scenario_tree(file)
    plain.pop("x-", None)
    scenario: Any = parse_scenario(tree() | plain)
    for key in path.split("."):
        scenario = getattr(scenario, key)
    assert scenario == value
    assert type(scenario) is type(value)


def test_relative_files_are_taken_from_the_scenarios_folder_and_absolute_ones_are_left(
    tmp_path: Path,
) -> None:
    plain = {
        "model": "models/config.json",
        "site": {"carbon_series": "/data/nl.csv"},
        "workload": {"trace": "t.csv", "synthetic": {"prompt_tokens": {"trace": "../u.csv"}}},
    }
    anchored = anchor_paths(plain, Path("deep"))
    assert anchored["model"] == str(Path("deep/models/config.json"))
    assert anchored["site"]["carbon_series"] == str(Path("/data/nl.csv"))
    assert anchored["workload"]["trace"] == str(Path("deep/t.csv"))
    assert anchored["workload"]["synthetic"]["prompt_tokens"]["trace"] == str(Path("deep/../u.csv"))
    assert anchor_paths({"model": "meta-llama/Llama-3.1-8B"}, Path("deep")) == {
        "model": "meta-llama/Llama-3.1-8B"
    }


def test_a_path_is_set_through_missing_and_empty_sections() -> None:
    plain: dict[str, Any] = {"engine": None}
    set_path(plain, "engine.block_size", 32)
    set_path(plain, "a.b.c", 1)
    assert plain == {"engine": {"block_size": 32}, "a": {"b": {"c": 1}}}
    assert get_path(plain, "a.b.c") == 1
    assert get_path(plain, "a.b.c.d") is None
    assert get_path(plain, "x.y") is None


def test_a_path_is_never_set_over_a_value() -> None:
    plain: dict[str, Any] = {"fleet": {"gpu": "H100"}}
    with pytest.raises(InputError, match=r"fleet.gpu is not a section of keys \(got 'H100'\)"):
        set_path(plain, "fleet.gpu.name", 1)
    assert plain == {"fleet": {"gpu": "H100"}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"engine": {"max_model_len": "x"}},
            "engine.max_model_len: bad value (got 'x'); expected a valid integer or 'auto'",
        ),
        ({"fleat": {}, "model": None}, "unknown key 'fleat'; did you mean fleet"),
        ({"block_size": 1}, "unknown key 'block_size'; expected engine.block_size"),
        (
            {"workload": {"synthetic": {"arrivals": {"burstiness": 2}}}},
            "burstiness needs process gamma, not unset",
        ),
        (
            {"workload": {"synthetic": {"arrivals": {"process": "constant", "request_rate": inf}}}},
            "process 'constant' needs a finite request_rate",
        ),
        ({"workload": {"synthetic": {}, "format": "azure"}}, "workload: format without a trace"),
        ({"workload": {"trace": 3}}, "workload.trace: bad value (got 3); expected a path"),
        (
            {
                "workload": {
                    "synthetic": {"output_tokens": {"kind": "quantiles", "quantiles": [[0, 1], [2, "x"]]}}
                }
            },
            "workload.synthetic.output_tokens.quantiles.1.0: bad value (got 2)",
        ),
        (
            {
                "workload": {
                    "synthetic": {"output_tokens": {"kind": "quantiles", "quantiles": [[0, 1], [inf, 2]]}}
                }
            },
            "quantiles.1.0: bad value (got inf)",
        ),
        (
            {"prices": {"usd_per_kwh": 1e308}},
            "prices.usd_per_kwh: bad value (got 1e+308); expected less than",
        ),
        ({"engine": {"max_num_seqs": 10**30}}, "engine.max_num_seqs: bad value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_scenario(tree(**wrong), where="s.yaml")
    assert str(caught.value).startswith("s.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scenario_cannot_be_changed() -> None:
    scenario = parse_scenario(tree())
    with pytest.raises(ValueError, match="frozen"):
        scenario.seed = 3  # type: ignore[misc]


def test_the_nearest_names_are_offered_whatever_the_case() -> None:
    assert nearest("h10", ["A100", "H100", "H200"])[0] == "H100"
    assert nearest("zzz", ["A100", "H100"]) == []
    assert sorted(nearest("LLAMA", ["meta-llama/a", "meta-llama/b", "qwen"])) == [
        "meta-llama/a",
        "meta-llama/b",
    ]


def test_a_long_value_is_cut_in_an_error() -> None:
    assert len(str(InputError("bad", value="x" * 10_000))) < 120


HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    nan,
    inf,
    -inf,
    1e308,
    10**40,
    "",
    "x",
    "1e9",
    "NO",
    [],
    [1],
    [[]],
    {},
    {"x": 1},
)


@pytest.mark.parametrize("path", sorted(_paths(Scenario)))
def test_whatever_stands_at_a_key_is_taken_or_refused_by_name(path: str) -> None:
    for value in HOSTILE:
        plain = copy.deepcopy(FULL)
        set_path(plain, path, value)
        try:
            scenario = parse_scenario(plain)
        except InputError as error:
            said = str(error)
        else:
            said = path
            assert parse_scenario(parse_yaml(dump_scenario(scenario, Path()), "dump")) == scenario
        assert path.split(".")[0] in said
        assert "\n" not in said
