"""What a calibration found, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kavier.report.sections import Section
from kavier.report.validation import LABELS, size

WORSE = 0.005
"""By how much a mean error has to grow before it is said to be worse."""

Plain = Mapping[str, Any]
"""As `kavier.validation.calibrate` tells it as plain data."""


def calibration_sections(made: Plain) -> Iterator[Section]:
    """Numbers, refusals, errors where it was fitted, and elsewhere."""
    rows = [
        [name, f"{one['value']:.4g}", f"{one['standard_error']:.2g}", f"{one['default']:.4g}", one["unit"]]
        for name, one in made["numbers"].items()
    ]
    said = ", ".join(made["measured"].values())
    yield Section(
        f"Fitted on {made['source']}",
        f"{said}; corrects level {made['level']!r}",
        ("number", "value", "+-", "default", "unit"),
        rows,
    )
    if made["refused"]:
        lines = [f"{name}: {why}" for name, why in made["refused"].items()]
        yield Section("Not identified, left at its default", "\n".join(lines))
    if made["overloaded"]:
        lines = [f"{name}: {why.removeprefix('overloaded: ')}" for name, why in made["overloaded"].items()]
        yield Section("Overloaded, not fitted to", "\n".join(lines))
    titles = {
        "training": "Where it was fitted",
        "left_out": "Each case with the numbers of the others",
        "tests": "On other cases",
    }
    for key, title in titles.items():
        if made[key]:
            yield _errors(title, made[key])


def _errors(title: str, by_metric: Mapping[str, Plain]) -> Section:
    rows = [
        [LABELS[metric], *(size(one[name]) for name in ("without", "calibrated", "worst")), one["worst_case"]]
        for metric, one in by_metric.items()
    ]
    worse = [LABELS[m] for m, one in by_metric.items() if one["calibrated"] > one["without"] + WORSE]
    text = f"{' and '.join(worse)} got worse: these numbers do not hold there." if worse else ""
    heads = ("mean absolute error", "without", "calibrated", "worst", "which is")
    return Section(title, text, heads, rows)


def one_by_one_section(all_made: Sequence[Plain]) -> Section:
    """A row for each case that was fitted to alone: its numbers, errors on all others."""
    names = list(dict.fromkeys(name for made in all_made for name in made["numbers"]))
    rows = []
    for made in all_made:
        numbers = [f"{made['numbers'][n]['value']:.4g}" if n in made["numbers"] else "-" for n in names]
        errors = [
            f"{size(one['without'])} -> {size(one['calibrated'])}" if (one := made["tests"].get(m)) else "-"
            for m in LABELS
        ]
        rows.append([made["source"], *numbers, *errors])
    return Section(
        "Fitted on one case, tested on the others",
        "Mean absolute error of means over the other cases, without and with the calibration.",
        ("fitted on", *names, *LABELS.values()),
        rows,
    )
