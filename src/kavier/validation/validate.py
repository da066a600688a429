"""Simulate what was measured, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kavier.metrics.trust import NOTHING_SHARED
from kavier.runner import Progress, Result, simulate
from kavier.scenario import Scenario
from kavier.validation.case import Case, NamedCase
from kavier.validation.compare import Comparison, Scored, compare_aggregates, compare_requests
from kavier.validation.measured import Measured, read_measured
from kavier.workload.table import Workload

Simulate = Callable[[Scenario, Workload | None, Progress | None], Result]
"""How a scenario is played; its workload, where it is not the scenario's own, comes beside it."""


def as_it_is(scenario: Scenario, workload: Workload | None, progress: Progress | None) -> Result:
    """As `kavier run`."""
    return simulate(scenario, progress, workload=workload, keep_timeline=lambda _: None)


def validate_case(
    named: NamedCase, play: Simulate = as_it_is, progress: Progress | None = None
) -> Comparison:
    """Simulate a case and compare.

    Raises:
        InputError: As `read_measured`, `simulate` and `compare_requests` say.
    """
    case = named.case
    if case.measured:
        block_tokens = named.scenario.engine.block_size
        run = read_measured(case.measured, named.root, block_tokens, case.warmup_requests)
        result = play(named.scenario, run.workload, progress)
        fields = compare_requests(
            run, result, Scored(case.warmup_requests, case.client_timeout_s, case.overloaded)
        )
    else:
        loop = case.closed_loop
        result = play(named.scenario, None, progress)
        warmup = loop.warmup if loop else case.warmup_requests
        fields = compare_aggregates(case.aggregates, result, Scored(warmup, overloaded=case.overloaded))
        fields["notes"] = (*([loop.note()] if loop else ()), *fields["notes"])
    trust = result.summary["trust"]
    said = (fields["overload"], fields["unit_hint"])
    notes = (*filter(None, [case.note]), *fields.pop("notes"), *_assumed(named, trust["notes"]))
    notes = (*notes, *filter(None, said))
    level = trust["timing_level"]
    return Comparison(case=named.name, of=named.of, level=level, notes=notes, trust=trust, **fields)


def _assumed(named: NamedCase, trust_notes: list[str]) -> Iterator[str]:
    """What moves whole metrics when it is not so."""
    if named.case.measured and NOTHING_SHARED in trust_notes:
        yield NOTHING_SHARED
    if named.scenario.client == "http":
        yield "simulated TTFT and E2E include an HTTP client's share"
    else:
        yield "simulated latencies are in-engine"


def measured_file(path: Path, scenario: Scenario, warmup: int) -> NamedCase:
    """The case of a table of measured requests and a scenario for it."""
    case = Case(scenario={}, measured=Measured(file=path), warmup_requests=warmup)
    return NamedCase(path.name, path.name, case, scenario, Path())
