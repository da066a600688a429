"""What each term is worth: the same cases with one of them removed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

from kavier.runner import Progress, Result, simulate
from kavier.scenario import Scenario, parse_scenario
from kavier.scenario_file import set_path
from kavier.timing.parameters import Parameters
from kavier.validation.case import NamedCase
from kavier.validation.compare import errors_over
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


def with_numbers(names: str, value: float) -> Simulate:
    """Plays scenarios with some numbers of the step-time model set to what takes the term away.

    Args:
        names: Of the numbers, as a pattern: see `timing.parameters`.
        value: 0 for a time, `FREE` for a rate.
    """
    pattern = re.compile(names)

    def adjust(parameters: Parameters) -> Parameters:
        return parameters.replaced({name: value for name in parameters.values if pattern.fullmatch(name)})

    def play(scenario: Scenario, workload: Workload | None, progress: Progress | None) -> Result:
        return simulate(
            scenario, progress, workload=workload, keep_timeline=lambda _: None, adjust=adjust
        )  # fmt: skip

    return play


FREE = 1e9
"""A share of bandwidth at which nothing takes time."""

VARIANTS: Mapping[str, Simulate] = {
    "prefix cache": without("engine.enable_prefix_caching", value=False),
    "asynchronous scheduling": without("engine.async_scheduling", value=False),
    "client term": without("client", "engine"),
    "KV read": with_numbers(r"attention\.decode\.memory_efficiency", FREE),
    "attention launch": with_numbers(r"attention\.(decode|prefill)\.launch_s", 0.0),
    "attention per sequence and KV head": with_numbers(r"attention\.decode\.sequence_head_s", 0.0),
    "attention of mixed batches": with_numbers(r"attention\.mixed\..*", 0.0),
    "GEMM launch": with_numbers(r"gemm\..*\.launch_s", 0.0),
    "short sums in GEMMs": with_numbers(r"gemm\.short_k", 0.0),
    "small kernels": with_numbers(r"small\.kernels", 0.0),
    "all-reduce": with_numbers(r"collectives\..*\.share_.*", FREE),
    "sampler": with_numbers(r"sampler\..*", 0.0),
    "top-k and top-p": without("engine.sampling", "plain"),
    "host work": with_numbers(r"host\..*", 0.0),
}
"""Term -> how a case is played without it."""


def ablate(cases: Sequence[NamedCase], progress: Progress | None = None) -> list[dict[str, Any]]:
    """{removed, cases, metrics} of each variant, over the cases that are not overloaded when all is there.

    Args:
        cases: What to play.
        progress: Told how many cases have been played, and how many will be at most.

    Raises:
        InputError: As `validate_case`.
    """
    kept, found = list(cases), []
    for number, (name, play) in enumerate({NOTHING: as_it_is, **VARIANTS}.items()):
        compared = []
        for case in kept:
            compared.append(validate_case(case, play))
            if progress:
                progress(number * len(cases) + len(compared), len(cases) * (1 + len(VARIANTS)))
        if name == NOTHING:
            calm = [not one.overloaded for one in compared]
            kept, compared = list(compress(kept, calm)), list(compress(compared, calm))
        found.append({"removed": name, "cases": len(kept), "metrics": errors_over(compared)})
    return found
