"""A function of the user, and what it may answer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kavier.errors import InputError
from kavier.simulation.kernel.records import ARRIVAL, VIEW, WORK
from kavier.simulation.policy.views import ReplicaView, RequestView
from kavier.timing.step import LEAST_STEP_S, MOST_STEP_S, StepWork


@dataclass(frozen=True, slots=True)
class Policy:
    """A function of the user.

    Attributes:
        what: "router", "scheduling_policy" or "timing": the key of the scenario.
        function: Called with what `what` says.
        name: FILE.py:function, for errors.
        address: Of the same function as machine code; 0 if there is none.
        why: Why there is none.
        kept: Holds the machine code.
    """

    what: str
    function: Callable[..., Any]
    name: str
    address: int = 0
    why: str | None = None
    kept: object = None

    def ask(self, *arguments: Any) -> Any:
        """Call it.

        Raises:
            InputError: It raised.
        """
        try:
            return self.function(*arguments)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.what} raised {type(error).__name__} for {asked(arguments[0])}: {error}",
                where=self.name,
                expected=_SEES[self.what],
                near=(error.name, _FIELDS[self.what])
                if isinstance(error, AttributeError) and error.name
                else None,
            ) from error

    def index(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """A router's choice.

        Raises:
            InputError: It raised, or answered something else.
        """
        answer = self.ask(request, replicas)
        if (
            isinstance(answer, bool)
            or not isinstance(answer, int | np.integer)
            or not 0 <= answer < len(replicas)
        ):
            expected = f"a whole number, the index of a replica: 0 to {len(replicas) - 1}"
            raise self._refused(answer, request, expected)
        return int(answer)

    def key(self, request: RequestView) -> float:
        """An admission order's number.

        Raises:
            InputError: It raised, or answered no number.
        """
        answer = self.ask(request)
        if math.isnan(number := _as_double(answer)):
            raise self._refused(answer, request, "a number; the smallest is served first")
        return number

    def seconds(self, work: StepWork) -> float:
        """A step-time model's answer.

        Raises:
            InputError: It raised, or answered no time.
        """
        answer = self.ask(work)
        if not LEAST_STEP_S <= (seconds := _as_double(answer)) <= MOST_STEP_S:
            raise self._refused(answer, work, f"seconds, {LEAST_STEP_S:g} to {MOST_STEP_S:g}")
        return seconds

    def _refused(self, answer: object, question: RequestView | StepWork, expected: str) -> InputError:
        shown = repr(answer)  # None too, which is what a branch without `return` answers
        problem = f"bad answer of {self.what} for {asked(question)} (got {shown[:100]})"
        return InputError(problem, where=self.name, expected=expected)


def asked(question: RequestView | StepWork) -> str:
    """Which question it was."""
    if not isinstance(question, RequestView):
        return str(question)
    row, arrival_s, prompt_tokens = question.row, question.arrival_s, question.prompt_tokens
    return f"request.row {row} (arrival_s {arrival_s:g}, prompt_tokens {prompt_tokens})"


_REQUEST, _REPLICAS, _WORK = (", ".join(record.names or ()) for record in (ARRIVAL, VIEW, WORK))

_SEES = {
    "router": f"a function of a RequestView ({_REQUEST}) and a list of ReplicaView ({_REPLICAS})",
    "scheduling_policy": f"a function of a RequestView ({_REQUEST})",
    "timing": f"a function of a StepWork ({_WORK})",
}

_FIELDS = {
    "router": (*(ARRIVAL.names or ()), *(VIEW.names or ())),
    "scheduling_policy": ARRIVAL.names or (),
    "timing": WORK.names or (),
}

_PARAMETERS = {"router": 2, "scheduling_policy": 1, "timing": 1}


def _as_double(answer: object) -> float:
    """The answer, if it is a number; else NaN."""
    if isinstance(answer, bool) or not isinstance(answer, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(answer)
    except OverflowError:
        return math.nan


def make_policy(what: str, function: Callable[..., Any], name: str | None = None) -> Policy:
    """A policy of a function.

    Args:
        what: As `Policy.what`.
        function: The function.
        name: For errors; default: where it is defined.

    Raises:
        InputError: It takes another number of arguments.
    """
    name = name or _name_of(function)
    try:
        inspect.signature(function).bind(*range(_PARAMETERS[what]))
    except (TypeError, ValueError):
        raise InputError(f"{what} is not such a function", where=name, expected=_SEES[what]) from None
    return Policy(what, function, name)


def _name_of(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename if code else ''}:{getattr(function, '__qualname__', type(function).__name__)}"
