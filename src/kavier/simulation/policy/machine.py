"""A policy as machine code: a C function that the compiled engine calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.native.library import address
from kavier.simulation.kernel.records import ARRIVAL, VIEW, WORK
from kavier.simulation.policy.examples import CERTAIN, Examples, answers
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.purity import kept_outside, refuse_changes, refuse_memory
from kavier.simulation.policy.reasons import plain_reason

FAILED = -(2**62)
"""What a compiled router answers instead of raising; of the others it is NaN."""


def compiled(policy: Policy, examples: Examples) -> Policy:
    """The policy with its machine code, or with the reason why there is none.

    Raises:
        InputError: It answers the same question differently, or wrongly what the run is sure to ask.
    """
    replicas = examples.views.shape[1]
    before = kept_outside(policy.function)
    answers(policy, examples.first(CERTAIN[policy.what]))
    try:
        expected = answers(policy, examples)
        again = answers(policy, examples.backwards())[::-1]
    except InputError as error:  # it counts only if the run asks this too
        return replace(policy, why=f"asked beforehand: {error}")
    refuse_memory(policy, before)
    refuse_changes(policy, examples, expected, again)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = _compile(policy, replicas)
    except Exception as error:  # whatever Numba raises for what it cannot compile
        return replace(policy, why=f"it cannot be compiled ({plain_reason(error, policy.function)})")
    done = replace(policy, address=function.address, kept=function)
    if not np.array_equal(_ask(done, function.ctypes, examples), expected):
        return replace(policy, why="its machine code gives other answers")
    return done


def _compile(policy: Policy, replicas: int) -> Any:
    """A Numba C function of two addresses."""
    from numba import carray, cfunc, from_dtype, njit, types  # type: ignore[attr-defined]

    # As in Python: an index beyond an array and a division by zero raise.
    inner = njit(policy.function, boundscheck=True, error_model="python")
    first = types.CPointer(from_dtype(WORK if policy.what == "timing" else ARRIVAL))
    second = types.CPointer(from_dtype(VIEW))

    def choose(request: Any, views: Any) -> Any:
        try:
            return inner(carray(request, 1)[0], carray(views, replicas))
        except Exception:
            return FAILED

    def tell(one: Any, _: Any) -> Any:
        try:
            return float(inner(carray(one, 1)[0]))
        except Exception:
            return np.nan

    if policy.what == "router":
        function = cfunc(types.int64(first, second))(choose)
        if not all(isinstance(one.return_type, types.Integer) for one in inner.nopython_signatures):
            raise TypeError("it does not answer integers alone")
        return function
    return cfunc(types.float64(first, second))(tell)


def _ask(policy: Policy, function: Callable[..., Any], examples: Examples) -> NDArray[np.float64]:
    """What the machine code answers to the examples."""
    asked = examples.works if policy.what == "timing" else examples.seen
    pairs = zip(_addresses(asked), _addresses(examples.views), strict=True)
    return np.array([function(*pair) for pair in pairs], np.float64)


def _addresses(array: NDArray[Any]) -> list[int]:
    """Of its rows."""
    return [address(array) + i * array.strides[0] for i in range(len(array))]
