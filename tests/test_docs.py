"""What the documentation says is true: commands run, links lead somewhere, generated parts are fresh."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import kavier
from kavier.cli.main import main
from kavier.scenario import parse_scenario
from kavier.scenario_file import read_scenario_tree

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = "kavier run examples/azure-conversation-hour.yaml --out runs/demo"
TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
RUN = "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s\n" + "".join(
    f"{i / 2},{500 + i},{40 + i},0.021,{0.021 + 0.0068 * (39 + i):.4f}\n" for i in range(20)
)
CALIBRATION = """[measured]
level = "kernels"
[calibration.client_s]
value = 0.01
unit = "s"
source = "my-run.csv"
date = "2026-11-28"
"""


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [line.removeprefix(".venv/bin/") for line in lines]
    return list(dict.fromkeys(line for line in found if line.startswith("kavier ")))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with what the documentation's commands name."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "my-trace.csv").write_text(TRACE)
    (tmp_path / "my-run.csv").write_text(RUN)
    (tmp_path / "my-calibration.toml").write_text(CALIBRATION)
    (tmp_path / "my-scenario.yaml").write_text(blocks(ROOT / "docs" / "scenario.md", "yaml")[0])
    (tmp_path / "my-kernels.csv").write_text(blocks(ROOT / "docs" / "kernels.md", "csv")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, command


@pytest.mark.parametrize("command", commands())
def test_every_command_runs_as_it_is_written(command, desk, monkeypatch, capsys):
    run(command, monkeypatch)
    printed = capsys.readouterr()
    assert printed.out
    assert not printed.err.strip()
    if "--json" in command:
        json.loads(printed.out)


def test_there_are_commands_of_each_kind():
    assert {command.split()[1] for command in commands()} == {
        "run",
        "calibrate",
        "workload",
        "catalog",
        "explain",
        "fit-kernels",
        "validate",
    }


def test_make_demo_is_what_the_readme_says_and_its_scenario_is_sound():
    makefile = (ROOT / "Makefile").read_text()
    assert f"\t$(BIN)/{DEMO}\n" in makefile
    assert re.search(r"^test: .*\n\t\$\(BIN\)/pytest", makefile, re.MULTILINE)
    shown = "\n".join(blocks(ROOT / "README.md", "sh"))
    assert {"make demo", "make test"} <= set(shown.splitlines())
    parse_scenario(read_scenario_tree(generate.DEMO))


def labels(page: str) -> list[str]:
    """The page without its numbers and plots."""
    lines = [
        re.sub(r"\s{2,}(?:[-\d].*|.*up to .*|none)|^\d.* finished$|(?<=means of ).*|<?\d+%", "", line)
        for line in page.splitlines()
    ]
    return [" ".join(line.split()) for line in lines if line]


def test_the_page_in_the_readme_is_that_of_the_demo():
    """All but the numbers, which `python docs/generate.py --demo` takes from a real run (half a minute)."""
    tree = read_scenario_tree(generate.DEMO)
    tree["workload"]["synthetic"]["num_prompts"] = 200
    mine = generate.shortened(generate.render(kavier.simulate(tree)))
    (shown,) = blocks(ROOT / "README.md", "text")
    assert labels(shown) == labels(mine)
    for fact in (r"KV memory +[\d,]+ blocks", r"at \d+ gCO2e/kWh", r"GPU-h at [\d.]+ USD"):
        assert re.findall(fact, shown) == re.findall(fact, mine)


def test_the_readme_counts_the_requests_of_the_demo():
    from kavier.runner import load_workload

    count = len(load_workload(parse_scenario(read_scenario_tree(generate.DEMO))).requests)
    (shown,) = blocks(ROOT / "README.md", "text")
    assert f"{count:,} requests from azure-conversation load" in shown
    assert f": {count:,} finished" in shown


@pytest.mark.parametrize("file", generate.PARTS)
def test_generated_parts_are_fresh(file):
    text = fresh = (ROOT / file).read_text(encoding="utf-8")
    for name, body in generate.PARTS[file].items():
        fresh = generate.filled(fresh, name, body())
    assert text == fresh, "run: python docs/generate.py"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_run(page, desk, capsys):
    for block in blocks(page, "python"):
        assert len(block.splitlines()) <= 15
        exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out


def test_the_scenario_of_the_reference_uses_every_section_and_keeps_steps(desk, monkeypatch, capsys):
    tree = yaml.safe_load((desk / "my-scenario.yaml").read_text())
    assert tree.keys() == kavier.Scenario.model_fields.keys()
    run("kavier run my-scenario.yaml --out kept", monkeypatch)
    page = (ROOT / "docs" / "metrics.md").read_text()
    for table in ("requests", "timeline", "steps"):
        part = page.split(f"\n`{table}.parquet`")[1].split("\n\n")[0]
        columns = set(re.findall(r"`(\w+)`", part))
        missing = set(pl.read_parquet(desk / "kept" / f"{table}.parquet").columns) - columns
        assert not missing, table


def test_a_kept_scenario_can_be_run_again(desk, monkeypatch, capsys):
    run("kavier run my-scenario.yaml --out kept", monkeypatch)
    run("kavier run kept/scenario.resolved.yaml --out again", monkeypatch)
    assert (desk / "kept" / "requests.parquet").read_bytes() == (
        desk / "again" / "requests.parquet"
    ).read_bytes()


def test_every_key_of_the_summary_is_in_the_glossary():
    trace = {"synthetic": {"preset": "azure-code", "num_prompts": 5}}
    summary = kavier.simulate(
        {"model": "meta-llama/Llama-3.1-8B", "fleet": {"gpu": "L40S"}, "workload": trace,
         "engine": {"max_model_len": 16384}}
    ).summary  # fmt: skip
    assert summary.keys() - {"schema_version"} == generate.glossary().keys()


def test_hashes_mean_in_the_trace_example_what_the_page_says(tmp_path):
    (example,) = blocks(ROOT / "docs" / "traces.md", "json")
    (tmp_path / "t.jsonl").write_text(example)
    result = kavier.simulate(
        {"model": "meta-llama/Llama-3.1-8B", "fleet": {"gpu": "H100"},
         "workload": {"trace": str(tmp_path / "t.jsonl")}}
    )  # fmt: skip
    # The stranger shares a block. The second turn finds the 69 computed tokens before it: 4 full blocks.
    assert result.requests["cached_tokens"].to_list() == [0, 16, 64]
    finish, arrival = result.requests["finish_s"][0], result.requests["arrival_s"][2]
    assert arrival == pytest.approx(finish + 5)


def test_every_column_of_the_native_format_is_described():
    from kavier.workload.table import SCHEMA

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "traces.md").read_text(), re.MULTILINE)
    assert set(SCHEMA) <= set(rows)


def known_flags() -> set[str]:
    from typer.main import get_command

    from kavier.cli.main import app

    def walk(command: Any) -> set[str]:
        names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        return names.union(*map(walk, getattr(command, "commands", {}).values()))

    return walk(get_command(app)) | {"--help"}


FOREIGN_FLAGS = {"--save-result", "--save-detailed", "--demo"}
"""Flags of other programs that the pages name."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_the_text_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
    assert named <= known_flags() | FOREIGN_FLAGS


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_the_text_exist(page):
    """Paths of the repository in backticks; inside src/kavier they are given from there."""
    named = re.findall(r"`((?:[\w-]+/)+[\w.-]*)`", page.read_text(encoding="utf-8"))
    for name in named:
        if not name.startswith(("runs/", "path/", "meta-llama/")):
            assert any((place / name).exists() for place in (ROOT, ROOT / "src" / "kavier")), name


def test_the_known_limits_are_linked_from_the_readme():
    assert "(docs/known-limits.md)" in (ROOT / "README.md").read_text()


def test_the_citation_names_the_paper_and_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    assert cited["version"] == kavier.__version__
    assert cited["preferred-citation"]["url"].endswith("2605.25247")


def test_the_changelog_has_this_version():
    assert f"\n## [{kavier.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
