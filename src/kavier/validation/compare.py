"""Measured against simulated: the same metrics of both sides, by the same functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from kavier.errors import InputError
from kavier.metrics.capacity import OVERLOAD
from kavier.metrics.distribution import NOTHING, Summary, summarise
from kavier.runner import Result
from kavier.validation.case import MetricName, StatisticName
from kavier.validation.measured import MeasuredRun

METRICS = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = tuple(NOTHING)

MOST_FAILED = 0.01
"""Share of failed requests from which on a run counts as overloaded."""

OTHER_UNIT = 0.9
"""Median error from which on times may be of another unit than seconds."""

TPOT = pl.when(pl.col("output_tokens") > 1).then(
    (pl.col("e2e_s") - pl.col("ttft_s")) / (pl.col("output_tokens") - 1)
)
"""As `metrics.latency`, from what both sides have."""

Metrics = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case, both sides.

    Attributes:
        case: Its name.
        of: The file it came from.
        level: Of the step times.
        metrics: Metric -> statistic -> {measured, simulated, error}, error = (simulated - measured) /
            measured; only what was measured.
        per_request: Metric -> median of the absolute error of single requests; empty for aggregates.
        overloaded: Whether it belongs into an average of its own.
        requests: How many were scored on the measured side; None for aggregates.
        notes: What was left out or assumed.
        trust: As in the summary.
        measured: Columns of `METRICS`, the scored requests; None for aggregates.
        simulated: Likewise.
        overload: Why it counts as overloaded; None = it does not.
        unit_hint: That times may not be seconds; None = nothing says so.
    """

    case: str
    of: str
    level: str
    metrics: Metrics
    per_request: dict[str, float]
    overloaded: bool
    requests: int | None
    notes: tuple[str, ...]
    trust: Mapping[str, Any]
    measured: pl.DataFrame | None
    simulated: pl.DataFrame
    overload: str | None = None
    unit_hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "case": self.case,
            "set": self.of,
            "level": self.level,
            "metrics": self.metrics,
            "per_request_median_error": self.per_request,
            "overloaded": self.overloaded,
            "requests": self.requests,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """What is compared of a run.

    Attributes:
        warmup: So many of the first requests are not.
        client_timeout_s: Nor are simulated requests that end later; None = all are.
        overloaded: As the case says.
    """

    warmup: int = 0
    client_timeout_s: float | None = None
    overloaded: bool = False


def compare_requests(run: MeasuredRun, result: Result, scored: Scored) -> dict[str, Any]:
    """Fields of a `Comparison` with a measured run, request by request.

    Raises:
        InputError: No request is left to compare.
    """
    sides = _Sides(run, result.requests, scored)
    ours, theirs, pairs = sides.simulated, sides.measured, sides.pairs
    metrics = {name: _statistics(_summary(theirs[name]), _summary(ours[name])) for name in METRICS}
    overload = AS_THE_CASE_SAYS if scored.overloaded else sides.overload()
    return {
        "metrics": metrics,
        "per_request": {
            name: error for name in METRICS if (error := _median(pairs[name], ours[name])) is not None
        },
        "overloaded": overload is not None,
        "overload": overload,
        "unit_hint": _unit_hint(metrics),
        "requests": len(theirs),
        "notes": tuple(sides.left_out()),
        "measured": theirs.select(METRICS),
        "simulated": ours.select(METRICS),
    }


AS_THE_CASE_SAYS = "overloaded: as the case file says"


def _unit_hint(metrics: Metrics) -> str | None:
    """That a median is so far off that it may be of another unit."""
    for name in ("ttft_s", "e2e_s"):
        pair = metrics[name]["p50"]
        if pair["error"] is not None and abs(pair["error"]) > OTHER_UNIT:
            return (
                f"the median {name} is {pair['measured']:.3g} as measured and {pair['simulated']:.3g} "
                "simulated: are all times of the table in seconds, not milliseconds?"
            )
    return None


class _Sides:
    """Which requests are scored on which side.

    Attributes:
        measured: Those that did not fail, beyond the warm-up.
        simulated: Of these, those that finish, and within the client's patience.
        pairs: What was measured of the simulated ones, row for row.
    """

    def __init__(self, run: MeasuredRun, requests: pl.DataFrame, scored: Scored) -> None:
        self._run, self._scored = run, scored
        measured, simulated = (frame.with_columns(TPOT.alias("tpot_s")) for frame in (run.times, requests))
        served = ~measured["failed"] & (pl.Series(np.arange(len(measured))) >= scored.warmup)
        finished = served & (simulated["status"] == "finished")
        limit_s = math.inf if scored.client_timeout_s is None else scored.client_timeout_s
        both = finished & (simulated["e2e_s"] <= limit_s)
        if not both.any():
            raise InputError(
                "no request is left to compare",
                where=run.workload.source,
                expected=f"requests that end on both sides, beyond the first {scored.warmup:,}",
            )
        self.measured, self.simulated = measured.filter(served), simulated.filter(both)
        self.pairs = measured.filter(both)
        self._failed = int(measured["failed"][scored.warmup :].sum()) + run.unknown
        self._sent = len(measured) - scored.warmup + run.unknown
        self._rejected = int((served & ~finished).sum())
        self._late = int(finished.sum()) - int(both.sum())

    def overload(self) -> str | None:
        """Why the measured fleet had more work than it could do, whatever the simulated one had.

        More than `MOST_FAILED` of the requests failed; or those with more than one token waited longer than
        `OVERLOAD` of their lives on average, the wait being what measured TTFT has beyond the simulated
        time from first schedule to first token.
        """
        if self._failed > MOST_FAILED * self._sent:
            return f"overloaded: {self._failed:,} of {self._sent:,} failed, more than {100 * MOST_FAILED:g} %"
        several = self.pairs["output_tokens"] > 1
        if not several.any():
            return None
        ours, theirs = self.simulated.filter(several), self.pairs.filter(several)
        prefill_s = _mean(ours["ttft_s"]) - _mean(ours["queue_s"])
        wait_s, e2e_s = _mean(theirs["ttft_s"]) - prefill_s, _mean(theirs["e2e_s"])
        if wait_s <= OVERLOAD * e2e_s:
            return None
        return (
            f"overloaded: measured requests wait {wait_s:.3g} s of {e2e_s:.3g} s on average, more than "
            f"{100 * OVERLOAD:g} %"
        )

    def left_out(self) -> Iterator[str]:
        """A sentence for each reason."""
        scored, unread = self._scored, self._run.workload.unread_columns
        yield from _warmup(scored)
        if self._failed:
            yield f"{self._failed:,} measured requests failed, and are left out"
        if self._run.unknown:
            yield f"{self._run.unknown:,} of them were not simulated: their lengths are not known"
        if scored.client_timeout_s is not None:
            yield (
                f"{self._late:,} requests that did not fail take longer than the client waited "
                f"({scored.client_timeout_s:g} s) when simulated, and are left out on that side"
            )
        if self._rejected:
            yield (
                f"{self._rejected:,} requests that were served are rejected when simulated, and left out on "
                "that side"
            )
        if unread:
            yield f"columns that were not read: {', '.join(unread)}"


def compare_aggregates(
    aggregates: Mapping[MetricName, Mapping[StatisticName, float]], result: Result, scored: Scored
) -> dict[str, Any]:
    """Fields of a `Comparison` with numbers that somebody published of a run.

    Raises:
        InputError: No request is left to compare.
    """
    simulated = result.requests.with_columns(TPOT.alias("tpot_s")).slice(scored.warmup)
    ours = simulated.filter(pl.col("status") == "finished").select(METRICS)
    if not len(ours):
        expected = f"requests that finish, beyond the first {scored.warmup:,}"
        raise InputError("no simulated request is left to compare", expected=expected)
    rejected = len(simulated) - len(ours)
    metrics = {}
    for name, known in aggregates.items():
        mine = _summary(ours[name])
        metrics[name] = {point: _pair(value, mine[point]) for point, value in known.items()}
    return {
        "metrics": metrics,
        "per_request": {},
        "overloaded": scored.overloaded,
        "overload": AS_THE_CASE_SAYS if scored.overloaded else None,
        "unit_hint": None,
        "requests": None,
        "notes": (
            *_warmup(scored),
            *([f"{rejected:,} simulated requests are rejected, and left out"] if rejected else ()),
        ),
        "measured": None,
        "simulated": ours,
    }


def _warmup(scored: Scored) -> Iterator[str]:
    if scored.warmup:
        yield f"the first {scored.warmup:,} requests are left out (warm-up)"


def _summary(values: pl.Series) -> Summary:
    return summarise(values.drop_nulls().to_numpy())


def _statistics(measured: Summary, simulated: Summary) -> dict[str, dict[str, float | None]]:
    return {point: _pair(measured[point], simulated[point]) for point in STATISTICS}


def _pair(measured: float | None, simulated: float | None) -> dict[str, float | None]:
    error = None
    if measured and simulated is not None:
        error = (simulated - measured) / measured
    return {"measured": measured, "simulated": simulated, "error": error}


def _median(measured: pl.Series, simulated: pl.Series) -> float | None:
    """Median absolute error of single requests."""
    errors = ((simulated - measured) / measured).abs().drop_nulls().drop_nans()
    return None if errors.is_empty() else float(np.median(errors.to_numpy()))


def _mean(values: pl.Series) -> float:
    return float(values.to_numpy().mean())


def summary(compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Median, mean and worst absolute error over cases: of each level, overloaded cases apart."""
    groups: dict[tuple[str, bool], list[Comparison]] = {}
    for one in compared:
        groups.setdefault((one.level, one.overloaded), []).append(one)
    return [
        {"level": level, "overloaded": overloaded, "cases": len(mine), "metrics": errors_over(mine)}
        for (level, overloaded), mine in groups.items()
    ]


def errors_over(compared: Iterable[Comparison]) -> dict[str, dict[str, dict[str, Any]]]:
    """Metric -> statistic -> {cases, median, mean, bias, worst, worst_case}; what no case has is left out.

    median, mean and worst are of absolute errors, bias is the mean of the signed ones.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    compared = list(compared)
    for metric in METRICS:
        for point in STATISTICS:
            errors = [
                (one.case, error)
                for one in compared
                if (error := one.metrics.get(metric, {}).get(point, {}).get("error")) is not None
            ]
            if errors:
                found.setdefault(metric, {})[point] = _spread(errors)
    return found


def _spread(errors: Sequence[tuple[str, float]]) -> dict[str, Any]:
    signed = np.array([error for _, error in errors])
    sizes = np.abs(signed)
    return {
        "cases": len(errors),
        "median": float(np.median(sizes)),
        "mean": float(sizes.mean()),
        "bias": float(signed.mean()),
        "worst": float(sizes.max()),
        "worst_case": errors[int(sizes.argmax())][0],
    }
