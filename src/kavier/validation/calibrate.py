"""From a measured run to a calibration: fit, leave out, and test on other runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, cast, get_args

import numpy as np

from kavier.ecosystem.platform import Platform, build_platform
from kavier.errors import InputError
from kavier.metrics.client import CLIENT_CONSTANTS
from kavier.runner import Progress, Result, simulate
from kavier.scenario import Scenario
from kavier.timing.calibration import CLIENT, REPLACED, BaseLevel, Calibration, engine_text
from kavier.timing.parameters import has_kernels, shared_entries
from kavier.validation.calibrate_power import with_power
from kavier.validation.case import NamedCase
from kavier.validation.compare import METRICS, Comparison
from kavier.validation.identify import Errors, Identified, identify, least_squares
from kavier.validation.validate import Simulate, validate_case
from kavier.workload.table import Workload

STATISTICS = ("mean", "p50", "p90")
"""What is fitted of each metric: P99 hangs on a few requests, often the first ones."""

Compare = Callable[[NamedCase, Mapping[str, float]], Comparison]
"""Plays a case with some numbers set."""


def default_of(name: str) -> float:
    """What a number is without a calibration."""
    if name == CLIENT:
        return CLIENT_CONSTANTS["fixed_s"]
    return float(shared_entries()[name]["value"]) if name in REPLACED else 1.0


def base_level(scenario: Scenario, platform: Platform) -> BaseLevel:
    """What a calibration of this scenario corrects: the level it asks for, or else the best.

    Raises:
        InputError: It is calibrated already, or prices steps by a function.
    """
    if scenario.calibration is None:
        if scenario.timing in get_args(BaseLevel):
            return cast("BaseLevel", scenario.timing)
        if scenario.timing == "auto":
            return "kernels" if has_kernels(platform.gpu.name) else "datasheet"
    given = scenario.calibration or scenario.timing
    raise InputError(
        f"a calibration corrects no other pricing of steps than a level: {given}",
        expected="--level datasheet or kernels",
    )


def with_values(level: BaseLevel, values: Mapping[str, float]) -> Simulate:
    """Plays scenarios at a level with some numbers set."""
    calibration = Calibration(level, values)

    def play(scenario: Scenario, workload: Workload | None, progress: Progress | None) -> Result:
        return simulate(
            scenario.model_copy(update={"timing": level}),
            progress,
            workload=workload,
            keep_timeline=lambda _: None,
            adjust=(lambda numbers: numbers.calibrated(calibration)) if values else None,
        )

    return play


class Played:
    """Comparisons of cases with numbers set, each made once.

    Attributes:
        count: How many were made.
    """

    def __init__(self, told: Callable[[int], None] = lambda _: None) -> None:
        self._known: dict[tuple[Any, ...], Comparison] = {}
        self._levels: dict[tuple[str, str], BaseLevel] = {}
        self._told, self.count = told, 0

    def __call__(self, case: NamedCase, values: Mapping[str, float]) -> Comparison:
        """The case with these numbers."""
        key = (case.of, case.name, *sorted(values.items()))
        if key not in self._known:
            self._known[key] = validate_case(case, with_values(self._level(case), values))
            self.count += 1
            self._told(self.count)
        return self._known[key]

    def _level(self, case: NamedCase) -> BaseLevel:
        key = (case.of, case.name)
        if key not in self._levels:
            self._levels[key] = base_level(case.scenario, build_platform(case.scenario))
        return self._levels[key]


@dataclass(frozen=True, slots=True)
class Tested:
    """A case that is not part of a fit.

    Attributes:
        without: At the base level.
        calibrated: With the numbers.
    """

    without: Comparison
    calibrated: Comparison


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A fit and what came of it.

    Attributes:
        cases: It was fitted on.
        metrics: That it was fitted to.
        found: Numbers, standard errors, refusals.
        calibration: The same as simulations take it.
        training: Its cases, without and with it.
        tests: Other cases.
        left_out: Its cases, each with the numbers of a fit to the others; empty unless asked for.
        overloaded: Cases that were left out: name -> why.
    """

    cases: tuple[NamedCase, ...]
    metrics: tuple[str, ...]
    found: Identified
    calibration: Calibration
    training: tuple[Tested, ...]
    tests: tuple[Tested, ...] = ()
    left_out: tuple[Tested, ...] = ()
    overloaded: Mapping[str, str] = field(default_factory=dict)


def calibrate(
    cases: Sequence[NamedCase],
    names: Sequence[str] = (CLIENT,),
    metrics: Sequence[str] = METRICS,
    tests: Sequence[NamedCase] = (),
    *,
    leave_one_out: bool = False,
    gpu_power_w: float | None = None,
    played: Compare | None = None,
) -> Calibrated:
    """Fit numbers to measured cases, and test them on others.

    Overloaded cases are not fitted to: there a small error of step time is a large one of queueing.

    Args:
        cases: To fit to; of one GPU, model and level.
        names: Of the numbers, see `timing.calibration`.
        metrics: To fit to.
        tests: Other cases; those that are fitted to are not tested.
        leave_one_out: Fit to all cases but one as well, for each one.
        gpu_power_w: Measured mean power of one GPU of the one case, for a power factor.
        played: Plays cases, maybe knowing some already.

    Raises:
        InputError: Cases of several machines, nothing to fit to or nothing identified, and as
            `validate_case`.
    """
    _check_power(gpu_power_w)
    played = played or Played()
    calm = [case for case in cases if not played(case, {}).overloaded]
    if not calm:
        raise _all_overloaded([played(case, {}) for case in cases])
    if gpu_power_w is not None and len(calm) > 1:
        raise InputError("one power for several cases", expected="a run of its own")
    found = _identified(calm, names, metrics, played)
    if gpu_power_w is not None:
        level = base_level(calm[0].scenario, build_platform(calm[0].scenario))
        found = with_power(found, calm[0], with_values(level, found.values), gpu_power_w)
    fitted = {(case.of, case.name) for case in calm}
    others = [case for case in tests if (case.of, case.name) not in fitted]
    return Calibrated(
        cases=tuple(calm),
        metrics=tuple(metrics),
        found=found,
        calibration=_calibration(calm, found),
        training=tuple(_tested(case, found.values, played) for case in calm),
        tests=tuple(_tested(case, found.values, played) for case in others),
        left_out=tuple(_left_out(calm, metrics, found, played)) if leave_one_out else (),
        overloaded={case.name: played(case, {}).overload or "" for case in cases if case not in calm},
    )


def _check_power(gpu_power_w: float | None) -> None:
    """Before anything is simulated."""
    if gpu_power_w is not None and not 0.0 < gpu_power_w < math.inf:
        raise InputError("--gpu-power-w is no power", value=gpu_power_w, expected="watts above 0")


def _all_overloaded(compared: Sequence[Comparison]) -> InputError:
    """Why, case by case."""
    shown = [f"{one.case}: {one.overload}" for one in compared[:MOST_SHOWN]]
    more = len(compared) - len(shown)
    said = "; ".join([*shown, *([f"and {more:,} more"] if more else [])])
    return InputError(
        "overloaded runs identify nothing: an error of step time is a much larger one of queueing there "
        f"({said})",
        expected="a run whose requests do not pile up",
    )


MOST_SHOWN = 3
"""Overloaded cases whose reasons an error lists."""


def _identified(
    cases: Sequence[NamedCase], names: Sequence[str], metrics: Sequence[str], played: Compare
) -> Identified:
    """What the cases tell.

    Raises:
        InputError: As `identify`, with a hint where times may be of another unit.
    """
    try:
        return identify(_simulated(cases, metrics, played), {name: default_of(name) for name in names})
    except InputError as error:
        hint = next(filter(None, (played(case, {}).unit_hint for case in cases)), None)
        if hint is None:
            raise
        raise InputError(f"{error}; {hint}") from None


def one_by_one(
    cases: Sequence[NamedCase],
    names: Sequence[str] = (CLIENT,),
    metrics: Sequence[str] = METRICS,
    played: Compare | None = None,
) -> list[Calibrated]:
    """Each case that is not overloaded as the only one to fit to, and tested on all the others.

    Raises:
        InputError: As `calibrate`.
    """
    played = played or Played()
    calm = [case for case in cases if not played(case, {}).overloaded]
    if not calm:
        raise _all_overloaded([played(case, {}) for case in cases])
    return [calibrate([case], names, metrics, calm, played=played) for case in calm]


def _tested(case: NamedCase, values: Mapping[str, float], played: Compare) -> Tested:
    return Tested(played(case, {}), played(case, values))


def _left_out(
    cases: Sequence[NamedCase], metrics: Sequence[str], found: Identified, played: Compare
) -> Iterator[Tested]:
    """Each case with the numbers of all others."""
    if len(cases) < 2:
        raise InputError("one case cannot be left out of one", expected="several cases to fit to")
    defaults = {name: default_of(name) for name in found.values}
    for case in cases:
        others = [other for other in cases if other is not case]
        fit = least_squares(_simulated(others, metrics, played), defaults, found.values)
        yield _tested(case, fit.values, played)


def _simulated(
    cases: Sequence[NamedCase], metrics: Sequence[str], played: Compare
) -> Callable[[Mapping[str, float]], Errors]:
    """The errors of these cases as a function of the numbers."""
    known = [list(_known(played(case, {}), metrics)) for case in cases]
    if not any(known):
        raise InputError(
            f"nothing was measured of {', '.join(metrics)}", expected="metrics that were measured"
        )
    weights = [w for points in known for w in _weights(points)]

    def errors(values: Mapping[str, float]) -> Errors:
        compared = [played(case, values).metrics for case in cases]
        found = [
            one[metric][point]["error"] or 0.0
            for one, points in zip(compared, known, strict=True)
            for metric, point in points
        ]
        return Errors(np.log1p(found), np.array(weights))

    return errors


def _known(compared: Comparison, metrics: Sequence[str]) -> Iterator[tuple[str, str]]:
    for metric in metrics:
        for point, pair in compared.metrics.get(metric, {}).items():
            if point in STATISTICS and pair["error"] is not None:
                yield metric, point


def _weights(points: Sequence[tuple[str, str]]) -> Iterator[float]:
    names = [metric for metric, _ in points]
    yield from (1.0 / np.sqrt(names.count(metric)) for metric in names)


def _calibration(cases: Sequence[NamedCase], found: Identified) -> Calibration:
    """As a scenario takes it.

    Raises:
        InputError: The cases are not of one GPU, model, engine and level.
    """
    machines = [_machine(case) for case in cases]
    first = machines[0]
    for other, case in zip(machines, cases, strict=True):
        if other != first:
            what = next(key for key in first if other[key] != first[key])
            raise InputError(
                f"cases of two machines: {what} {first[what]} and {other[what]} ({case.name})",
                expected="runs of one GPU, model and engine",
            )
    level = cast("BaseLevel", first.pop("level"))
    return Calibration(level, found.values, first, _source(cases))


def _machine(case: NamedCase) -> dict[str, str]:
    platform = build_platform(case.scenario)
    return {
        "level": base_level(case.scenario, platform),
        "gpu": platform.gpu.name,
        "model": platform.model.name,
        "engine": engine_text(platform.engine),
    }


def _source(cases: Sequence[NamedCase]) -> str:
    """surf_a10_decode (9 cases) and surf_a10_prefill (8 cases)."""
    if len(cases) == 1:
        of, name = cases[0].of, cases[0].name
        return of if name == of else f"{of}, {name.removeprefix(f'{of} ')}"
    counts = reduce(lambda known, case: known | {case.of: known.get(case.of, 0) + 1}, cases, dict[str, int]())
    return " and ".join(f"{of} ({count} cases)" for of, count in counts.items())
