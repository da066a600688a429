"""What is kept of a validation, the errors of each configuration; and how well they tell those of others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from kavier.ecosystem.platform import build_platform
from kavier.errors import InputError
from kavier.metrics.expected import expected_errors
from kavier.metrics.validated import Configuration, Validated, nearest
from kavier.validation.case import NamedCase
from kavier.validation.compare import METRICS, Comparison

Played = Sequence[tuple[NamedCase, Comparison]]

WITHIN = (1.0, 2.0)
"""Standard deviations within which errors are counted."""


def recorded(played: Played) -> tuple[Validated, ...]:
    """An entry for each configuration, level and source.

    Raises:
        InputError: A case without source.
    """
    groups: dict[tuple[object, ...], list[tuple[NamedCase, Comparison]]] = {}
    for named, compared in played:
        if not named.source:
            raise InputError("a case without source", where=named.of, expected="source: who measured")
        configuration = Configuration.of(build_platform(named.scenario))
        key = (configuration, named.source, compared.level, compared.overloaded)
        groups.setdefault(key, []).append((named, compared))
    today = datetime.now(UTC).date().isoformat()
    return tuple(_entry(key[0], members, today) for key, members in groups.items())  # type: ignore[arg-type]


def _entry(configuration: Configuration, members: Played, date: str) -> Validated:
    named, compared = members[0]
    loads = [one.trust["load_factor"] for _, one in members]
    signed: dict[str, list[float]] = {}
    for member in members:
        for metric, error in errors_of(*member):
            signed.setdefault(metric, []).append(error)
    return Validated(
        case=", ".join(dict.fromkeys(one.of for one, _ in members)),
        level=compared.level,
        overloaded=compared.overloaded,
        configuration=configuration,
        runs=len(members),
        load=(min(loads), max(loads)),
        errors={metric: _spread(errors) for metric, errors in signed.items()},
        source=named.source,
        date=date,
        measured_with=_measured_with(named.case.note),
    )


def _measured_with(note: str | None) -> str:
    found = re.match(r"vLLM ([\d.]+\d),.* mirrored as ", note or "")
    return found[1] if found else ""


def errors_of(named: NamedCase, compared: Comparison) -> Iterator[tuple[str, float]]:
    """(metric, error of its mean, or else median) of what tells something of Kavier."""
    for metric in METRICS:
        points = compared.metrics.get(metric, {})
        error = points.get("mean", points.get("p50", {})).get("error")
        if error is not None and metric not in named.case.doubtful:
            yield metric, error


def _spread(errors: Sequence[float]) -> dict[str, float]:
    sizes = np.abs(errors)
    return {
        "median": float(np.median(sizes)),
        "p90": float(np.quantile(sizes, 0.9)),
        "bias": float(np.mean(errors)),
    }


def covered(played: Played, record: Sequence[Validated], *, left_out: bool) -> dict[str, dict[str, Any]]:
    """Metric -> {runs, within_1, within_2, worst}: shares of errors, and the largest, in expected ones.

    Args:
        played: Cases.
        record: What errors are expected from.
        left_out: Of each case without the entries of its own set: what a new configuration would see.
    """
    ratios: dict[str, list[float]] = {}
    for named, compared in played:
        own = Configuration.of(build_platform(named.scenario))
        known = [one for one in record if not (left_out and named.of in one.case.split(", "))]
        near = nearest(own, (compared.level,), compared.trust["load_factor"], known)
        sensitivity = compared.trust["sensitivity"]
        if near is None or sensitivity is None:
            continue
        expected = expected_errors(sensitivity, near.step_errors(), 0.0)
        for metric, error in errors_of(named, compared):
            ratios.setdefault(metric, []).append(abs(error) / expected[metric])
    return {metric: _share(found) for metric, found in ratios.items()}


def _share(ratios: Sequence[float]) -> dict[str, Any]:
    shares = {f"within_{limit:g}": sum(one <= limit for one in ratios) / len(ratios) for limit in WITHIN}
    return {"runs": len(ratios), **shares, "worst": max(ratios)}
