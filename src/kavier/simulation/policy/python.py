"""Policies in the places of the built-in ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.native.library import address
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.views import LiveView, RequestView
from kavier.simulation.replica import Replica
from kavier.simulation.request import RANK, Request
from kavier.timing.compiled import Compilable, StepTables
from kavier.timing.step import StepCost, StepTimeModel, StepWork, UnitCosts


class PythonRouter:
    """Asks a policy. See `router.Router`."""

    def __init__(self, policy: Policy, seen: NDArray[Any]) -> None:
        self._policy, self._seen = policy, seen

    def route(self, request: Request, replicas: Sequence[Replica]) -> int:  # noqa: D102
        row, _, *others = self._seen[request.row].tolist()
        view = RequestView(row, request.arrival_s, *others)
        return self._policy.index(view, [LiveView(replica, request) for replica in replicas])


def in_order(table: pl.DataFrame, keys: NDArray[np.float64]) -> pl.DataFrame:
    """The table with the ranks that the priority policy serves by; `priority` stays the trace's."""
    _, ranks = np.unique(keys, return_inverse=True)
    return table.with_columns(pl.Series(RANK, ranks.astype(np.int64)))


class PythonTiming:
    """Steps take as long as a policy says; FLOPs and bytes, and so energy, are those of another model."""

    level = "python"

    def __init__(self, policy: Policy, work: StepTimeModel) -> None:
        self._policy, self._work = policy, work

    def cost(self, work: StepWork) -> StepCost:
        """As `timing.step.StepTimeModel`."""
        return self._work.cost(work)._replace(time_s=self._policy.seconds(work))

    def unit_costs(self, work: StepWork) -> UnitCosts:
        """Those of the other model."""
        return self._work.unit_costs(work)

    def compiled(self) -> StepTables:
        """The other model's tables, and the function for the time."""
        assert self._policy.address
        assert isinstance(self._work, Compilable)
        tables = self._work.compiled()
        assert isinstance(tables, StepTables)
        return replace(tables, function=self._policy.address)

    def assumptions(self) -> list[str]:
        """For the trust notes."""
        return [
            f"step time: {self._policy.name}, whose error nobody told; FLOPs, bytes and energy: Kavier's",
        ]

    def refuse(self, work: Sequence[int]) -> None:
        """Complain about what machine code answered to this: raises what the function itself raises.

        Raises:
            InputError: In any case.
        """
        answer = self._policy.seconds(StepWork(*work))
        raise InputError(
            f"compiled, {self._policy.what} answers no time where it is {answer} s", where=self._policy.name
        )


def keys_of(policy: Policy, seen: NDArray[Any]) -> NDArray[np.float64]:
    """An admission order's number for every request.

    Raises:
        InputError: It raised, or answered no number.
    """
    keys = np.full(len(seen), np.nan)
    if policy.address:
        LIBRARY.call(operations.RANK_KEYS, policy.address, address(seen), address(keys), len(keys))
    for row in np.flatnonzero(np.isnan(keys)).tolist():  # without machine code, or where it raised
        keys[row] = policy.key(RequestView(*seen[row].tolist()))
    return keys
