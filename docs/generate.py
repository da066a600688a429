"""Fills the generated parts of the documentation: `python docs/generate.py`, with `--demo` README's page too.

A part lies between `<!-- generated: NAME -->` and `<!-- end -->`. tests/test_docs.py fails when one is stale.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

from numpy.random import default_rng

from kavier.cli.run import PATHS
from kavier.ecosystem.vllm_versions import RULES, VersionRules
from kavier.report.console import glossary, print_page
from kavier.report.kernel_catalog import by_group, numbers_told
from kavier.runner import simulate
from kavier.scenario import Scenario
from kavier.simulation.router import PLANS, ROUTERS
from kavier.timing.parameters import kernel_entries, kernel_versions, measured_gpus
from kavier.workload.read import FORMATS

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "azure-conversation-hour.yaml"
Schema = Mapping[str, Any]


def scenario_keys() -> str:
    """A section, its prose and its table of keys for each part of a scenario."""
    schema = Scenario.model_json_schema()
    sections: Schema = {"Scenario": schema, **schema["$defs"]}
    notes = tomllib.loads((ROOT / "docs" / "scenario.toml").read_text(encoding="utf-8"))
    if unknown := notes.keys() - sections.keys():
        raise ValueError(f"docs/scenario.toml describes no section of a scenario: {unknown}")
    return "\n\n".join(_section(path, sections[name], notes[name]) for path, name in _places(sections))


def _places(sections: Schema) -> Iterator[tuple[str, str]]:
    """(path in a scenario, section); lengths occur in three places and come once, at the end."""
    yield "top level", "Scenario"
    todo = [("", "Scenario")]
    while todo:
        path, name = todo.pop(0)
        for key, field in sections[name]["properties"].items():
            if (child := _child(field)) and child != "Lengths":
                yield f"{path}{key}", child
                todo.append((f"{path}{key}.", child))
    yield "prompt_tokens, output_tokens, turn_tokens", "Lengths"


def _section(path: str, section: Schema, notes: Mapping[str, Mapping[str, str]]) -> str:
    fields = {key: field for key, field in section["properties"].items() if not _child(field)}
    if odd := fields.keys() ^ notes.keys():
        raise ValueError(f"docs/scenario.toml and the section {section['title']} differ: {odd}")
    rows = [_row(key, field, notes[key], section) for key, field in fields.items()]
    table = ["| Key | Type | Default | Unit | Meaning |", "|---|---|---|---|---|", *rows]
    heading = path if path == "top level" else ", ".join(f"`{part}`" for part in path.split(", "))
    return f"### {heading}\n\n{section['description']}\n\n" + "\n".join(table)


def _row(key: str, field: Schema, note: Mapping[str, str], section: Schema) -> str:
    meaning = note.get("meaning") or field.get("description")
    if not meaning:
        raise ValueError(f"docs/scenario.toml: no meaning for {section['title']}.{key}")
    default = "required" if key in section.get("required", ()) else _value(field["default"])
    kinds = " or ".join(_kind(one) for one in field.get("anyOf", [field]) if one.get("type") != "null")
    meaning = (meaning[0].upper() + meaning[1:]).replace("None =", "Not given =")
    return f"| `{key}` | {kinds} | {default} | {note.get('unit', '')} | {meaning} |"


def _kind(field: Schema) -> str:
    if names := field.get("enum") or [field["const"]] if {"enum", "const"} & field.keys() else []:
        return ", ".join(f"`{name}`" for name in names)
    if field["type"] == "array":
        return "list of pairs"
    if "pattern" in field:
        return "`FILE.py:FUNCTION`"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {field[name]:g}" for name, sign in bounds.items() if name in field)
    names = {"boolean": "`true` or `false`", "string": "text", "integer": "whole number"}
    kind = "path" if field.get("format") == "path" else names.get(field["type"], field["type"])
    return f"{kind} {limits}".rstrip()


def _value(value: object) -> str:
    return "not given" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _child(field: Schema) -> str | None:
    """Name of the section that a key holds, if it holds one."""
    references = (one.get("$ref") for one in [field, *field.get("anyOf", ())])
    return next((reference.rpartition("/")[2] for reference in references if reference), None)


def flags() -> str:
    """Which flag sets which key."""
    rows = [f"| `--{name.replace('_', '-')}` | `{path}` |" for name, path in PATHS.items()]
    return "\n".join(["| Flag | Key |", "|---|---|", *rows])


def routers() -> str:
    """All routers: those that look at nothing, then those that look at replicas."""
    made = {name: type(make(0, 1, default_rng(0))) for name, make in ROUTERS.items()}
    described = {name: inspect.getdoc(one) or "" for name, one in {**PLANS, **made}.items()}
    rows = [f"| `{name}` | {' '.join(text.split())} |" for name, text in described.items()]
    return "\n".join(["| Router | A request goes to |", "|---|---|", *rows])


def versions() -> str:
    """What releases do differently, a column each; the words are those of `VersionRules`."""
    text = (inspect.getdoc(VersionRules) or "").partition("Attributes:\n")[2]
    meanings = {
        name: " ".join(words.split())
        for name, words in re.findall(r"^ +(\w+): ((?:.|\n +(?! *\w+: ))+)", text, re.MULTILINE)
    }
    if meanings.keys() != {field.name for field in fields(VersionRules)}:
        raise ValueError(f"VersionRules: described are {sorted(meanings)}")
    rows = [
        f"| {meaning} | " + " | ".join(_rule(getattr(rules, name)) for rules in RULES.values()) + " |"
        for name, meaning in meanings.items()
    ]
    head = f"| Rule | {' | '.join(RULES)} |"
    return "\n".join([head, "|---" * (1 + len(RULES)) + "|", *rows])


def _rule(value: object) -> str:
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))


def metrics() -> str:
    """The glossary, a section a metric."""
    return "\n\n".join(_metric(name, entry) for name, entry in glossary().items())


def _metric(name: str, entry: Mapping[str, str]) -> str:
    facts = [
        f"- {key.capitalize()}: {entry[key]}" for key in ("unit", "formula", "source", "note") if key in entry
    ]
    return "\n".join([f"### `{name}`", "", entry["meaning"], "", *facts])


def formats() -> str:
    """All trace formats and what they are known by."""
    rows = [f"| `{name}` | {one.shape} |" for name, one in FORMATS.items()]
    return "\n".join(["| Format | Known by |", "|---|---|", *rows])


def kernels() -> str:
    """A table for each GPU: every group of numbers, its errors, and what it was fitted to."""
    return "\n\n".join(_kernels_of(gpu) for gpu in measured_gpus())


def _kernels_of(gpu: str) -> str:
    head = ["| Group | vLLM | Numbers | Errors: median (p90) | Fitted to |", "|---|---|---|---|---|"]
    rows = [
        _kernel_row(group, version, numbers)
        for version in kernel_versions(gpu)
        for group, numbers in by_group(kernel_entries(gpu, version)).items()
    ]
    return "\n".join([f"### {gpu}", "", *head, *rows])


def _kernel_row(group: str, version: str, numbers: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(numbers.values()))
    values = {name: float(entry["value"]) for name, entry in numbers.items()}
    units = {name: str(entry["unit"]) for name, entry in numbers.items()}
    told = numbers_told(values, units).replace("\n", "<br>")
    errors = str(first["error"]).replace("; ", "<br>")
    return f"| `{group}` | {version} | {told} | {errors} | {first['source']} |"


def demo_page() -> str:
    """What `make demo` prints, the first notes alone."""
    return "```text\n" + shortened(render(simulate(DEMO))) + "\n```"


def shortened(page: str) -> str:
    """The page with its first three notes, and how many there are."""
    head, *notes = page.strip().split("\n- ")
    notes[-1], kept = notes[-1].split("\n\n")
    shown = "".join(f"\n- {note}" for note in notes[:3])
    return f"{head}{shown}\n  [and {len(notes) - 3} more notes]\n\n{kept}"


def render(result: Any) -> str:
    """The result page as `make demo` prints it."""
    with redirect_stdout(io.StringIO()) as page:
        print_page(result, Path("runs/demo"))
    return page.getvalue()


PARTS = {
    "docs/scenario.md": {"keys": scenario_keys, "flags": flags, "routers": routers},
    "docs/how-it-works.md": {"versions": versions},
    "docs/metrics.md": {"glossary": metrics},
    "docs/traces.md": {"formats": formats},
    "docs/kernels.md": {"numbers": kernels},
}
DEMO_PARTS = {"README.md": {"demo": demo_page}}


def filled(text: str, name: str, body: str) -> str:
    """`text` with the part `name` replaced."""
    part = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = part.subn(lambda match: f"{match[1]}{body}\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"{count} parts are called {name!r}, not one")
    return text


def main() -> None:
    """Fill all parts in place."""
    for file, parts in {**PARTS, **(DEMO_PARTS if "--demo" in sys.argv else {})}.items():
        path = ROOT / file
        text = path.read_text(encoding="utf-8")
        for name, body in parts.items():
            text = filled(text, name, body())
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
