"""Policies are pure: a run could not be repeated otherwise, nor could questions be asked before it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from kavier.errors import InputError
from kavier.simulation.policy.examples import Array, Examples
from kavier.simulation.policy.policy import Policy, asked
from kavier.simulation.policy.views import RequestView
from kavier.timing.step import StepWork

EXPECTED = (
    "answers that follow from what it is given: no memory, clock or random numbers; draw from request.row"
)


def kept_outside(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> contents of the collections outside of a function that it reads: there it might remember."""
    try:
        outside = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # an object that can be called; a name that is not there yet
        return {}
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    found = {**outside.globals, **outside.nonlocals, **defaults}
    return {name: repr(one) for name, one in found.items() if isinstance(one, dict | list | set | deque)}


def refuse_memory(policy: Policy, before: dict[str, str]) -> None:
    """Complain if a collection is no longer what it was.

    Raises:
        InputError: It has changed.
    """
    after = kept_outside(policy.function)
    if changed := next((name for name in before if after.get(name) != before[name]), None):
        raise InputError(
            f"{policy.what} remembers: it changes {changed!r}", where=policy.name, expected=EXPECTED
        )


def refuse_changes(policy: Policy, examples: Examples, first: Array, again: Array) -> None:
    """Complain if an example was answered in two ways.

    Raises:
        InputError: It was.
    """
    changed = np.flatnonzero(first != again).tolist()
    if not changed:
        return
    at = changed[0]
    timing = policy.what == "timing"
    question = StepWork(*examples.works[at].tolist()) if timing else RequestView(*examples.seen[at].tolist())
    raise InputError(
        f"{policy.what} answers {first[at]:g}, and asked the same again {again[at]:g}, for {asked(question)}",
        where=policy.name,
        expected=EXPECTED,
    )
