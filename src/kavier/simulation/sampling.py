"""Sample intervals: how finely a run is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.simulation.output import Sink

ROUNDING = 1e-9
"""Of an interval: a window longer by less is rounding, not one more interval."""

MOST_INTERVALS = 2**53
"""Their numbers are exact in doubles."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the compiled engine adds up while it plays.

    Attributes:
        start_s: Where the first sample interval begins: not after the first arrival.
        interval_s: Length of an interval.
        power: One record of `kernel.records.POWER`; None leaves energies at zero.
        steps: Also keep every step.
        sink: Takes what is final of long timelines; None = `CompiledResult.cells` holds them whole.
    """

    start_s: float = 0.0
    interval_s: float = 1.0
    power: NDArray[Any] | None = None
    steps: bool = False
    sink: Sink | None = None

    def take(
        self, replica: int, kept: list[NDArray[Any]], cells: NDArray[Any], end: int
    ) -> Callable[[], None]:
        """Read a piece of a replica's cells; what is returned takes it over, into `kept` without a sink."""
        if self.sink is None:
            return partial(kept.append, cells.copy())
        return self.sink(replica, cells, end)


def count_intervals(length_s: float, interval_s: float) -> int:
    """Intervals that cover a window, at least one.

    Raises:
        InputError: More than can be numbered.
    """
    intervals = max(1.0, length_s / interval_s - ROUNDING)
    if intervals > MOST_INTERVALS:
        raise InputError(
            f"{intervals:.3g} sample intervals: the run lasts {length_s:.6g} s",
            where="output.sample_interval_s",
            value=interval_s,
            expected=f"at least {length_s / MOST_INTERVALS:.3g}",
        )
    return ceil(intervals)
