"""Case files: what was measured, where, and the scenario that should come out the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kavier.errors import InputError
from kavier.scenario import CountOrZero, Positive, Scenario, Section, parse_scenario
from kavier.scenario_errors import explain
from kavier.scenario_file import anchor_paths, set_path
from kavier.validation.closed_loop import ClosedLoop
from kavier.validation.layout import ColumnSpec, Rows, choose
from kavier.validation.measured import Measured
from kavier.workload.columns import OPTIONAL_TEXT, refuse

MetricName = Literal["ttft_s", "tpot_s", "e2e_s"]
StatisticName = Literal["mean", "p50", "p90", "p99"]


class Case(Section):
    """One measured run and the scenario that should reproduce it.

    Either `measured` requests, which are then the workload; or `aggregates` alone, of a `closed_loop` or of
    the scenario's own workload. `warmup_requests`: so many of the first requests are left out.
    `client_timeout_s`: when the client gave up; simulated requests that take longer are left out, as the
    failed ones are on the measured side. `doubtful`: metrics that hang on what was not recorded of the run:
    they are shown, but tell no error of Kavier.
    """

    note: str | None = None
    scenario: Mapping[str, Any]
    measured: Measured | None = None
    aggregates: Mapping[MetricName, Mapping[StatisticName, Positive]] = Field(default_factory=dict)
    closed_loop: ClosedLoop | None = None
    warmup_requests: CountOrZero = 0
    client_timeout_s: Positive | None = None
    overloaded: bool = False
    doubtful: tuple[MetricName, ...] = ()

    @model_validator(mode="after")
    def _one_truth(self) -> Case:
        if (self.measured is None) == (not any(self.aggregates.values())):
            raise ValueError("give either measured requests or aggregates")
        if self.closed_loop and (self.measured or "workload" in self.scenario):
            raise ValueError("closed_loop is a workload of its own")
        if self.measured and "workload" in self.scenario:
            raise ValueError("measured requests are the workload")
        if self.closed_loop and self.warmup_requests:
            raise ValueError("warmup_requests of a closed loop belong into closed_loop")
        return self


_Parts = Sequence[tuple[str, dict[str, Any]]]
"""(name, tree) of each case of a file."""


class EachRow(Rows):
    """A case for every chosen row of a file; rows that set the same, to nine digits, are one.

    `set`: dotted key of a case -> where its value is found. `label`: what tells the rows apart, columns in
    braces ("TP{tp_size}").
    """

    set: Annotated[Mapping[str, ColumnSpec], Field(min_length=1)]
    label: str

    @field_validator("label")
    @classmethod
    def _is_template(cls, label: str) -> str:
        try:
            label.format(**dict.fromkeys(_columns_of(label), ""))
        except (ValueError, LookupError):
            raise ValueError("a label needs names of columns in its braces") from None
        return label


def _columns_of(label: str) -> list[str]:
    return re.findall(r"{(\w+)}", label)


class CaseFile(Section):
    """What a file holds besides the keys of a case: those hold for all its cases.

    `about`: what was measured, and where it is published. `source`: the latter in few words. `data`: folder
    that the measured files' paths are taken from, itself taken from the case file's.
    """

    about: str = ""
    source: str = ""
    data: Path = Path()
    cases: Mapping[str, Mapping[str, Any]] | None = None
    each_row: EachRow | None = None


@dataclass(frozen=True, slots=True)
class NamedCase:
    """A case and where it came from.

    Attributes:
        name: Of the case; unique within its file.
        of: Stem of the file.
        case: The case.
        scenario: Its scenario, without measured workload.
        root: Folder that the paths of measured data are taken from.
        source: Where the measurements are published.
    """

    name: str
    of: str
    case: Case
    scenario: Scenario
    root: Path
    source: str = ""


def read_cases(
    path: Path, data: Path | None = None, level: str | None = None, calibration: Path | None = None
) -> list[NamedCase]:
    """The cases of a file.

    Args:
        path: YAML; FILE::PATTERN are those whose name, without the file's, matches (`TP8 1024/*`).
        data: Root of the measured data; None = the file's own `data`, taken from the file's folder.
        level: Of step times; None = as the scenarios say.
        calibration: Likewise.

    Raises:
        InputError: Whatever is wrong with the file, its data are not there, or no case matches.
    """
    text, _, pattern = str(path).partition(CHOICE)
    path = Path(text)
    tree = _read_tree(path)
    head = {key: tree.pop(key) for key in CaseFile.model_fields if key in tree}
    try:
        file = CaseFile.model_validate(head)
    except ValidationError as error:
        raise explain(error, str(path), CaseFile) from None
    if file.cases is not None and file.each_row is not None:
        raise InputError("both cases and each_row", where=str(path), expected="one of the two")
    root = (data or path.parent / file.data).resolve()
    over = {"timing": level, "calibration": str(calibration) if calibration else None}
    parts = _chosen(_parts(path, tree, file, root), path, pattern)
    return [replace(_named(path, name, part, root, over), source=file.source) for name, part in parts]


CHOICE = "::"
"""Between a case file and the pattern of the cases that are wanted."""


def _chosen(parts: _Parts, path: Path, pattern: str) -> _Parts:
    """Those whose name matches."""
    if not pattern:
        return parts
    names = [name.removeprefix(f"{path.stem} ") for name, _ in parts]
    found = [part for name, part in zip(names, parts, strict=True) if fnmatchcase(name, pattern)]
    if not found:
        raise InputError(f"no case {pattern!r}", where=str(path), near=(pattern, names))
    return found


def _read_tree(path: Path) -> dict[str, Any]:
    from kavier.yaml_text import read_mapping  # as `scenario_file` does: it takes 20 ms

    if path.suffix.casefold() in (".csv", ".jsonl", ".parquet", ".gz"):
        raise InputError(f"a table is no case file (YAML): {path}", expected=f"--measured {path}")
    return read_mapping(path, "case file", "scenario, measured, cases")


def _named(
    path: Path, name: str, tree: dict[str, Any], root: Path, over: Mapping[str, str | None]
) -> NamedCase:
    where = str(path) if name == path.stem else f"{path}, case {name}"
    try:
        case = Case.model_validate(tree)
    except ValidationError as error:
        raise explain(error, where, Case) from None
    plain = anchor_paths(deepcopy(dict(case.scenario)), path.parent)
    plain |= {key: value for key, value in over.items() if value is not None}
    if case.closed_loop:
        plain["workload"] = case.closed_loop.workload()
    if case.measured:
        plain["workload"] = {"trace": str(existing(root / case.measured.file))}
    return NamedCase(name, path.stem, case, parse_scenario(plain, where=where), root)


def existing(path: Path) -> Path:
    """The path, if there is such a file.

    Raises:
        InputError: There is not.
    """
    if not path.exists():
        raise InputError(
            "the measured data are not there",
            where=str(path),
            expected="--data DIR, the folder that holds them",
        )
    return path


def _parts(path: Path, tree: dict[str, Any], file: CaseFile, root: Path) -> _Parts:
    if file.cases is not None:
        return [(name, merged(tree, part)) for name, part in file.cases.items()]
    if file.each_row is not None:
        return list(_each(path, tree, file.each_row, root))
    return [(path.stem, tree)]


def _each(
    path: Path, tree: dict[str, Any], section: EachRow, root: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    existing(root / section.file)
    chosen = choose(section, root)
    columns = {key: chosen.column(spec) for key, spec in section.set.items()}
    for found in columns.values():
        refuse(~found.is_finite().fill_null(value=False), found, chosen.at, "no number")
    values = {key: column.to_list() for key, column in columns.items()}
    words = {name: chosen.raw(name, OPTIONAL_TEXT).to_list() for name in _columns_of(section.label)}
    named: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    for row in range(len(next(iter(values.values())))):
        said = tuple(f"{column[row]:.9g}" for column in values.values())
        if said in seen:
            continue
        seen.add(said)
        name = section.label.format(**{column: _tidy(texts[row]) for column, texts in words.items()})
        part = deepcopy(tree)
        for key, column in values.items():
            set_path(part, key, _whole(column[row]))
        named[name] += 1
        again = f" ({named[name]})" if named[name] > 1 else ""
        yield f"{path.stem} {name}{again}", part


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _tidy(word: str | None) -> str:
    """8.0 as 8."""
    return str(word).removesuffix(".0")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; where both have a value, that of `over`."""
    both = deepcopy(dict(base))
    for key, value in over.items():
        inside = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if inside else deepcopy(value)
    return both
