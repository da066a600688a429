"""What each term is worth: the same cases with one of them removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kavier.runner import Progress, Result
from kavier.scenario import Scenario, parse_scenario
from kavier.scenario_file import set_path
from kavier.validation.case import NamedCase
from kavier.validation.compare import Comparison, errors_over
from kavier.validation.validate import Simulate, as_it_is, validate_case
from kavier.workload.table import Workload

NOTHING = "nothing"


def without(path: str, value: object) -> Simulate:
    """Plays scenarios with one key set to what takes the term away."""

    def play(scenario: Scenario, workload: Workload | None, progress: Progress | None) -> Result:
        tree = scenario.model_dump()
        set_path(tree, path, value)
        return as_it_is(parse_scenario(tree), workload, progress)

    return play


VARIANTS: Mapping[str, Simulate] = {
    "prefix cache": without("engine.enable_prefix_caching", value=False),
    "asynchronous scheduling": without("engine.async_scheduling", value=False),
    "client term": without("client", "engine"),
}
"""Term -> how a case is played without it."""


def ablate(
    cases: Sequence[NamedCase], told: Callable[[str, NamedCase], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """{removed, cases, metrics} of each variant, over the cases that are not overloaded when all is there.

    Args:
        cases: What to play.
        told: Is given each variant and case before it is played.

    Raises:
        InputError: As `validate_case`.
    """
    compared = list(_played(NOTHING, as_it_is, cases, told))
    kept = [case for case, one in zip(cases, compared, strict=True) if not one.overloaded]
    found = {NOTHING: [one for one in compared if not one.overloaded]}
    found |= {name: list(_played(name, play, kept, told)) for name, play in VARIANTS.items()}
    return [
        {"removed": name, "cases": len(mine), "metrics": errors_over(mine)} for name, mine in found.items()
    ]


def _played(
    name: str, play: Simulate, cases: Sequence[NamedCase], told: Callable[[str, NamedCase], None]
) -> Iterator[Comparison]:
    for case in cases:
        told(name, case)
        yield validate_case(case, play)
