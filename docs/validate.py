"""Fills docs/validation.md and its plots: `python docs/validate.py [LEVEL...]`, with ../shared/data there.

Every case of validation/cases is played at every level (by default the best there is and the datasheet), then
once more without each term, at the first level. What was found is also written to metrics/validated.toml,
which tells every run how far off it may be.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kavier.metrics.validated import Validated, record_toml
from kavier.report.amounts import latency
from kavier.report.svg import Panel, Series, svg
from kavier.report.validation import LABELS, percent, size
from kavier.validation.ablation import ablate
from kavier.validation.case import NamedCase, read_cases
from kavier.validation.compare import METRICS, STATISTICS, Comparison, errors_over
from kavier.validation.record import covered, recorded
from kavier.validation.validate import validate_case
from kavier.yaml_text import parse_yaml

ROOT = Path(__file__).parents[1]
CASES = sorted((ROOT / "validation" / "cases").glob("*.yaml"))
PAGE = ROOT / "docs" / "validation.md"
PLOTS = ROOT / "docs" / "validation"
RECORD = ROOT / "src" / "kavier" / "metrics" / "validated.toml"
LEVELS = ("auto", "datasheet")

Results = dict[str, dict[str, list[Comparison]]]
"""Stem of a case file -> level -> its cases."""

BAD = 0.10
"""Absolute error of a mean (or median) from which on a case is listed."""


def played(chosen: Sequence[str]) -> tuple[Results, list[tuple[NamedCase, Comparison]]]:
    """All cases at all levels: by set and level, and one by one."""
    results: Results = {}
    pairs = []
    for path in CASES:
        for level in chosen:
            sys.stderr.write(f"{path.stem}, {level}\n")
            mine = [(case, validate_case(case)) for case in read_cases(path, level=level)]
            found, by_level = mine[0][1].level, results.setdefault(path.stem, {})
            if found not in by_level:  # the best may be the datasheet
                by_level[found] = [compared for _, compared in mine]
                pairs += mine
    return results, pairs


def overview(results: Results) -> str:
    """A row for each set and level: absolute errors over its cases."""
    head = "| Set | Level | Cases | Of | TTFT | TPOT | E2E |\n|---|---|---|---|---|---|---|"
    rows = [
        f"| {stem}{', overloaded' if overloaded else ''} | {level} | {len(mine)} | {point} | {cells} |"
        for stem, by_level in results.items()
        for level, compared in by_level.items()
        for overloaded in (False, True)
        if (mine := [one for one in compared if one.overloaded == overloaded])
        for point, cells in _points(errors_over(mine))
    ]
    return "\n".join([head, *rows])


def _points(errors: dict[str, dict[str, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    """(statistic, cells) of the mean, or else the median, and of P99."""
    present = {point for points in errors.values() for point in points}
    for point in [min(present & {"mean", "p50"}), *sorted(present & {"p99"})]:
        found = [errors.get(metric, {}).get(point) for metric in METRICS]
        cells = (
            f"{size(one['median'])} / {size(one['mean'])} / {size(one['worst'])}" if one else "-"
            for one in found
        )
        yield point.replace("p", "P"), " | ".join(cells)


def sections(results: Results) -> str:
    """A section for each set: what it is, its cases, its plots."""
    return "\n\n".join(_section(stem, by_level) for stem, by_level in results.items())


def _section(stem: str, by_level: dict[str, list[Comparison]]) -> str:
    about = parse_yaml((ROOT / "validation" / "cases" / f"{stem}.yaml").read_text(), stem)["about"]
    first = next(iter(by_level.values()))
    notes = "\n".join(f"- {note}" for note in dict.fromkeys(note for one in first for note in one.notes[:1]))
    whole = first[0].measured is None
    body = _lines(by_level) if whole else _tables(by_level)
    return f"### {stem}\n\n{about}\n\n{notes}\n\n{body}\n\n{_plots(stem, by_level)}"


def _tables(by_level: dict[str, list[Comparison]]) -> str:
    """Measured requests: a row for each run, metric and level."""
    head = "| Run | Metric | Measured mean / P50 / P90 / P99 | Level | Error | Median of requests |"
    rows = [head, "|---|---|---|---|---|---|"]
    for number, one in enumerate(next(iter(by_level.values()))):
        for metric, points in one.metrics.items():
            measured = " / ".join(latency(points[point]["measured"]) for point in STATISTICS)
            for level, compared in by_level.items():
                mine = compared[number]
                errors = " / ".join(percent(mine.metrics[metric][point]["error"]) for point in STATISTICS)
                each = size(mine.per_request.get(metric))
                name = one.case + (" (overloaded)" if one.overloaded else "")
                rows.append(f"| {name} | {LABELS[metric]} | {measured} | {level} | {errors} | {each} |")
    return "\n".join(rows)


def _lines(by_level: dict[str, list[Comparison]]) -> str:
    """Aggregates: a row each, folded away where there are many."""
    first = next(iter(by_level.values()))
    known = [(metric, point) for metric, points in first[0].metrics.items() for point in points]
    names = [
        f"{LABELS[metric]} {point.replace('p', 'P')} | {' | '.join(by_level)}" for metric, point in known
    ]
    rows = [f"| Case | {' | '.join(names)} |", "|---" * (1 + len(known) * (1 + len(by_level))) + "|"]
    for number, one in sorted(enumerate(first), key=lambda pair: _natural(pair[1].case)):
        cells = [one.case.removeprefix(f"{one.of} ")]
        for metric, point in known:
            cells.append(latency(one.metrics[metric][point]["measured"]))
            cells += [percent(all_[number].metrics[metric][point]["error"]) for all_ in by_level.values()]
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(rows)
    return (
        f"<details><summary>All {len(first)} cases</summary>\n\n{table}\n\n</details>"
        if len(first) > 9
        else table
    )


def _natural(name: str) -> list[int]:
    """For an order by the numbers in a name."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _plots(stem: str, by_level: dict[str, list[Comparison]]) -> str:
    first = next(iter(by_level.values()))
    if first[0].measured is None:
        panels = [_errors(metric, by_level) for metric in first[0].metrics]
        return _kept(stem, "error against what was measured", panels)
    return "\n\n".join(
        _kept(f"{stem}-{one.case}", f"{one.case}: distributions, and error of each percentile",
              _distributions({level: compared[number] for level, compared in by_level.items()}))
        for number, one in enumerate(first)
    )  # fmt: skip


def _kept(name: str, title: str, panels: Sequence[Panel]) -> str:
    (PLOTS / f"{name}.svg").write_text(svg(panels), encoding="utf-8")
    return f"![{title}](validation/{name}.svg)"


def _errors(metric: str, by_level: dict[str, list[Comparison]]) -> Panel:
    """Residuals of aggregates: error in percent against the measured value."""
    series = []
    for level, compared in by_level.items():
        pairs = [pair for one in compared for pair in one.metrics[metric].values()]
        x, y = [pair["measured"] for pair in pairs], [100 * (pair["error"] or 0) for pair in pairs]
        series.append(Series(level, x, y, dots=True))  # type: ignore[arg-type]
    title = f"{LABELS[metric]}: error, %"
    return Panel(title, "measured, s (log scale)", series, log_x=True, zero=True)


QUANTILES = np.linspace(0, 1, 51)


def _distributions(by_level: dict[str, Comparison]) -> list[Panel]:
    """CDFs of both sides, and residuals: error in percent of each quantile from 1 to 99 %."""
    panels, inner = [], QUANTILES[1:-1]
    first = next(iter(by_level.values()))
    assert first.measured is not None
    for metric in METRICS:
        curves = [("measured", first.measured), *((level, one.simulated) for level, one in by_level.items())]
        series = [Series(name, _at(frame[metric], QUANTILES), QUANTILES.tolist()) for name, frame in curves]
        panels.append(Panel(f"{LABELS[metric]}: share of requests", "s (log scale)", series, log_x=True))
    last_level, last = list(by_level.items())[-1]
    residuals = []
    for metric in METRICS:
        measured, simulated = (
            np.array(_at(frame[metric], inner)) for frame in (first.measured, last.simulated)
        )
        residuals.append(
            Series(LABELS[metric], (100 * inner).tolist(), (100 * (simulated / measured - 1)).tolist())
        )
    return [*panels, Panel(f"Error, %, level {last_level}", "percentile", residuals, zero=True)]


def _at(values: pl.Series, quantiles: np.ndarray) -> list[float]:
    found: list[float] = np.quantile(values.drop_nulls().to_numpy(), quantiles).tolist()
    return found


def failures(results: Results) -> str:
    """Sets of which a case, not overloaded, is off in its mean or median by more than `BAD`."""
    rows = ["| Set | Level | Metric | Off by more than 10 % | Worst | Which |", "|---|---|---|---|---|---|"]
    for stem, by_level in results.items():
        for level, compared in by_level.items():
            rows += [f"| {stem} | {level} | {bad} |" for bad in _bad(stem, compared)]
    return "\n".join(rows)


def _bad(stem: str, compared: Sequence[Comparison]) -> Iterator[str]:
    kept = [one for one in compared if not one.overloaded]
    for metric, points in errors_over(kept).items():
        point = min(points.keys() & {"mean", "p50"})
        errors = [one.metrics[metric][point]["error"] or 0.0 for one in kept]
        if bad := sum(abs(error) > BAD for error in errors):
            worst, which = percent(max(errors, key=abs)), points[point]["worst_case"].removeprefix(f"{stem} ")
            name = f"{LABELS[metric]} {point.replace('p', 'P')}"
            yield f"{name} | {bad} of {len(kept)} | {worst} | {which}"


def trust(pairs: Sequence[tuple[NamedCase, Comparison]], record: Sequence[Validated]) -> str:
    """How often the error that a run is told to expect covers the measured one."""
    head = "| Expected from | Level | Metric | Runs | Within 1 | Within 2 | Worst |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for left_out, known in ((False, "all sets"), (True, "the other sets")):
        for level in dict.fromkeys(compared.level for _, compared in pairs):
            mine = [pair for pair in pairs if pair[1].level == level]
            for metric, found in covered(mine, record, left_out=left_out).items():
                shares = f"{found['within_1']:.0%} | {found['within_2']:.0%} | {found['worst']:.1f}"
                rows.append(f"| {known} | {level} | {LABELS[metric]} | {found['runs']} | {shares} |")
    return "\n".join(rows)


def ablation(level: str) -> str:
    """Median absolute error of means without each term, a table for each set of whole runs."""
    tables = []
    for path in CASES:
        cases = read_cases(path, level=level)
        if cases[0].case.measured is None:
            continue
        sys.stderr.write(f"{path.stem}, ablation\n")
        rows = ["| Without | TTFT | TPOT | E2E |", "|---|---|---|---|"]
        for one in ablate(cases):
            means = [one["metrics"].get(metric, {}).get("mean", {}) for metric in METRICS]
            cells = (f"{size(mean.get('median'))} / {size(mean.get('worst'))}" for mean in means)
            rows.append(f"| {one['removed']} | {' | '.join(cells)} |")
        tables.append(f"{path.stem}, level {level}:\n\n" + "\n".join(rows))
    return "\n\n".join(tables)


def main() -> None:
    """Play all cases and fill the page."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    chosen = sys.argv[1:] or LEVELS
    PLOTS.mkdir(exist_ok=True)
    results, pairs = played(chosen)
    record = recorded(pairs)
    RECORD.write_text(record_toml(record), encoding="utf-8")
    parts = {
        "overview": overview(results),
        "failures": failures(results),
        "sets": sections(results),
        "trust": trust(pairs, record),
        "ablation": ablation(chosen[0]),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, body in parts.items():
        text = generate.filled(text, name, body)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
