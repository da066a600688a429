"""A calibration as a file that a scenario can name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kavier.timing.calibration import CLIENT, REPLACED, SECTION
from kavier.timing.parameters import shared_entries
from kavier.validation.calibrate import Calibrated, Tested, default_of
from kavier.validation.compare import errors_over

DIGITS = 4


def unit_of(name: str) -> str:
    """Of a number."""
    if name == CLIENT:
        return "s per request"
    return str(shared_entries()[name]["unit"]) if name in REPLACED else "1"


def calibration_toml(made: Calibrated, date: str) -> str:
    """The text of the file: numbers with unit, source, error and date, and what was measured."""
    calibration, found = made.calibration, made.found
    said = {"level": calibration.level, **calibration.measured}
    lines = ["# Written by `kavier calibrate`; do not edit.", "", f"[{SECTION}]"]
    lines += [f"{key} = {_quoted(value)}" for key, value in said.items()]
    for group in dict.fromkeys(name.rpartition(".")[0] for name in found.values):
        lines += [
            "",
            f"[{group}]",
            f"source = {_quoted(calibration.source)}",
            f"error = {_quoted(error_text(made))}",
            f'date = "{date}"',
        ]
        lines += [
            f"{name.rpartition('.')[2]} = {{ value = {_rounded(value)}, unit = {_quoted(unit_of(name))}, "
            f"standard_error = {_rounded(found.standard_errors[name])} }}"
            for name, value in found.values.items()
            if name.rpartition(".")[0] == group
        ]
    return "\n".join([*lines, ""])


def error_text(made: Calibrated) -> str:
    """Mean absolute errors where it was fitted."""
    text = f"mean absolute error there: {', '.join(_spans(made.training))}"
    if made.left_out:
        text += f"; each case left out of the fit: {', '.join(_spans(made.left_out))}"
    return text


def _spans(tested: Sequence[Tested]) -> Iterator[str]:
    for metric, one in errors_on(tested).items():
        yield f"{metric} {one['without']:.1%} to {one['calibrated']:.1%}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rounded(value: float) -> str:
    return repr(float(f"{value:.{DIGITS}g}"))


def as_plain(made: Calibrated) -> dict[str, Any]:
    """All of it as plain data."""
    found, calibration = made.found, made.calibration
    numbers = {
        name: {
            "value": value,
            "standard_error": found.standard_errors[name],
            "default": default_of(name),
            "unit": unit_of(name),
        }
        for name, value in found.values.items()
    }
    return {
        "level": calibration.level,
        "measured": dict(calibration.measured),
        "source": calibration.source,
        "cases": [case.name for case in made.cases],
        "metrics": list(made.metrics),
        "numbers": numbers,
        "refused": found.refused,
        "overloaded": dict(made.overloaded),
        "training": errors_on(made.training),
        "left_out": errors_on(made.left_out),
        "tests": errors_on(made.tests),
    }


def errors_on(tested: Sequence[Tested]) -> dict[str, dict[str, Any]]:
    """Metric -> mean absolute error of means, or else of medians, without and with the numbers.

    Overloaded cases are in no such average.
    """
    calm = [one for one in tested if not one.without.overloaded]
    without, calibrated = (
        errors_over(getattr(one, side) for one in calm) for side in ("without", "calibrated")
    )
    found = {}
    for metric, points in calibrated.items():
        point = min(points.keys() & {"mean", "p50"})
        found[metric] = {
            "cases": points[point]["cases"],
            "without": without[metric][point]["mean"],
            "calibrated": points[point]["mean"],
            "worst": points[point]["worst"],
            "worst_case": points[point]["worst_case"],
        }
    return found
